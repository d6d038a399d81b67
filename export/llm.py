"""The two decoder graphs of the LLM: trunk (layers below the tap) and tail (layers above, to the logits)."""

from __future__ import annotations

import onnx_ir as ir

from sdrpn.bundle.cache_codes import RowCodes
from sdrpn.export.decoder import FLOAT, INT64, DecoderAuthor, cast, layer_weights
from sdrpn.export.dialects import Dialect
from sdrpn.export.graph import Declared, GraphAuthor
from sdrpn.export.weights import Weight, WeightTable, matmul, norm
from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec

__all__ = [
    "head_weights",
    "tail_graph",
    "tail_weights",
    "trunk_graph",
    "trunk_weights",
]


def trunk_weights(spec: ModelSpec) -> list[Weight]:
    """Layers 0..K-1."""
    return [w for i in range(spec.tap_layer) for w in layer_weights(spec.llm, f"llm.layers.{i}")]


def tail_weights(spec: ModelSpec) -> list[Weight]:
    """Layers K..L-1 and the final norm; the head is a separate group."""
    llm = spec.llm
    layers = [w for i in range(spec.tap_layer, llm.layers) for w in layer_weights(llm, f"llm.layers.{i}")]
    final = norm("llm.norm.weight", "llm.norm.weight", (llm.width,))
    return [*layers, final]


def head_weights(spec: ModelSpec) -> list[Weight]:
    """From the last hidden state to logits."""
    return [matmul("llm.head.weight", ["llm.head.weight"], spec.llm.width, spec.llm.vocabulary)]


def trunk_graph(
    spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable, codes: RowCodes | None = None
) -> GraphAuthor:
    """inputs_embeds (B,S,D) -> tap (B,S,D): the raw residual stream after layer K-1; `codes`: of the caches.

    Further inputs deepstack.j (B,S,D), where the vision tower has such features, are added after layer j.
    """
    g = GraphAuthor("trunk", dialect.opset, table)
    dims = ("batch", "sequence", spec.llm.width)
    hidden = g.input(Declared("inputs_embeds", FLOAT, dims, "hidden"))
    features = [
        g.input(Declared(f"deepstack.{number}", FLOAT, dims, "deepstack"))
        for number in range(family_of(spec).deepstack(spec.vision))
    ]
    author = DecoderAuthor.open(g, dialect, spec.llm, dtype, codes)
    for index in range(spec.tap_layer):
        hidden = author.layer(hidden, f"llm.layers.{index}", index)
        if index < len(features):
            hidden = g.op.Add(hidden, features[index])
    g.output(hidden, Declared("tap", FLOAT, ("batch", "sequence", spec.llm.width), "tap"))
    return g


def tail_graph(
    spec: ModelSpec, dialect: Dialect, dtype: ir.DataType, table: WeightTable, codes: RowCodes | None = None
) -> GraphAuthor:
    """tap (B,S,D) -> logits (B,V) fp32 of the row at last_index; `codes`: of the caches."""
    g = GraphAuthor("tail", dialect.opset, table)
    hidden = g.input(Declared("tap", FLOAT, ("batch", "sequence", spec.llm.width), "tap"))
    author = DecoderAuthor.open(g, dialect, spec.llm, dtype, codes)
    last_index = g.input(Declared("last_index", INT64, ("batch",), "last_index"))
    layers = range(spec.tap_layer, spec.llm.layers)
    for index in layers:
        # After the last layer's keys and values, only the query row is needed.
        only_row = last_index if index == layers[-1] else None
        hidden = author.layer(hidden, f"llm.layers.{index}", index, only_row)
    logits = author.project(author.norm(hidden, "llm.norm.weight"), "llm.head.weight")  # (B,1,V)
    squeezed = g.op.Squeeze(cast(g, logits, FLOAT), g.constant([1], INT64))
    g.output(squeezed, Declared("logits", FLOAT, ("batch", spec.llm.vocabulary), "logits"))
    return g
