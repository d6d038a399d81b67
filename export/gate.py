"""The graph of the gate: whole decoder layers on the tap, and one score of the last row, without a norm between.

That of a probe has no layers: it scores the tap's row and statistics of the map, which the runtime computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.checkpoint.tensor_shapes import gate_shapes
from sdrpn.export.decoder import FLOAT, INT64, DecoderAuthor, last_layer_weights, layer_weights, row_of
from sdrpn.export.dialects import Dialect
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, WeightTable
from sdrpn.method.gate import MAP_STATISTICS
from sdrpn.method.spec import ModelSpec

__all__ = ["gate_graph", "gate_weights"]


def gate_weights(spec: ModelSpec) -> list[Weight]:
    """Its layers and its head, which stays fp32: it is one row."""
    assert spec.rpn is not None
    layers = [f"gate.layers.{index}" for index in range(spec.rpn.gate_layers)]
    width = gate_shapes(spec.llm, spec.rpn)["gate.head.weight"][1]
    return [
        *(weight for prefix in layers[:-1] for weight in layer_weights(spec.llm, prefix)),
        *(weight for prefix in layers[-1:] for weight in last_layer_weights(spec.llm, prefix)),
        Weight("gate.head.weight", (width, 1), "norm", ("gate.head.weight",), _transposed),
        Weight("gate.head.bias", (1,), "norm", ("gate.head.bias",), np.concatenate),
    ]


def gate_graph(spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable) -> GraphAuthor:
    """tap (B,S,D) -> gate_logit (B,1) fp32 of the row at last_index."""
    assert spec.rpn is not None
    g = GraphAuthor("gate", dialect.opset, table)
    hidden = g.input(Declared("tap", FLOAT, ("batch", "sequence", spec.llm.width), "tap"))
    if spec.rpn.gate_probe:
        return _probe(g, hidden)
    author = DecoderAuthor.open(g, dialect, spec.llm, dtype)
    last_index = g.input(Declared("last_index", INT64, ("batch",), "last_index"))
    for index in range(spec.rpn.gate_layers - 1):
        hidden = author.layer(hidden, f"gate.layers.{index}", index)
    last = spec.rpn.gate_layers - 1
    return _scored(g, author.last_layer(hidden, f"gate.layers.{last}", last, last_index))  # (B,1,D)


def _probe(g: GraphAuthor, tap: ir.Value) -> GraphAuthor:
    dims = ("batch", len(MAP_STATISTICS))
    statistics = g.input(Declared("map_statistics", FLOAT, dims, "map_statistics"))
    last_index = g.input(Declared("last_index", INT64, ("batch",), "last_index"))
    beside = g.op.Unsqueeze(statistics, g.constant([1], INT64))
    return _scored(g, g.op.Concat(row_of(g, tap, last_index), beside, axis=2))


def _scored(g: GraphAuthor, row: ir.Value) -> GraphAuthor:
    """The head on a row (B,1,n)."""
    score = g.op.Add(g.op.MatMul(row, g.weight("gate.head.weight")), g.weight("gate.head.bias"))
    squeezed = g.op.Squeeze(score, g.constant([1], INT64))
    g.output(squeezed, Declared("gate_logit", FLOAT, ("batch", 1), "gate_logit"))
    return g


def _transposed(arrays: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    (array,) = arrays
    return array.T
