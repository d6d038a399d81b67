"""The graph in the form for a parser: a copy with a fixed cache length. Knows no TensorRT.

python -m sdrpn.engines.graph_file trunk.onnx 2048 trunk.2048.onnx     # for other tools: see --print-trtexec

With several lengths the axis stays dynamic, with one profile per length. Only graphs that read their caches support
several; TensorRT's in-place update needs a fixed length.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.host.atomic import replacing_file
from sdrpn.host.libraries import importing_extra

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["ParserGraph", "graph_with_context"]


@dataclass(frozen=True)
class ParserGraph:
    """An ONNX model in memory; its weights stay in their files."""

    content: bytes
    small_weights: dict[str, int]  # the number of matrices in INT4, FP8 or FP4


def graph_with_context(path: Path, *contexts: int) -> ParserGraph:
    """The ONNX file with S_max as a number, if only one is given; weights are found relative to the file.

    TensorRT's parser refuses a symbolic cache length, and setting the shape after parsing is too late.
    """
    with importing_extra("tensorrt-rtx", "sdrpn build"):
        import onnx

    model = onnx.load(path, load_external_data=False)
    if len(contexts) == 1:
        _write_cache_length(model, contexts[0])
    # Deterministic, so that its digest identifies the graph.
    content: bytes = model.SerializeToString(deterministic=True)
    return ParserGraph(content, _small_weights(model))


def _write_cache_length(model: ModelProto, rows: int) -> None:
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "cache_length":
                dim.dim_value = rows


def _small_weights(model: ModelProto) -> dict[str, int]:
    """Quantised matrices by the type of their codes: inputs of DequantizeLinear whose result is not used as scales."""
    from onnx import TensorProto

    names = {TensorProto.INT4: "INT4", TensorProto.FLOAT8E4M3FN: "FP8", TensorProto.FLOAT4E2M1: "FP4"}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer if tensor.dims}
    unpacking = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    scales = {node.input[1] for node in unpacking}
    codes = {node.input[0] for node in unpacking if node.output[0] not in scales}
    return Counter(names[types[name]] for name in codes if types.get(name) in names)


def main(arguments: Sequence[str]) -> int:
    """Write the copy to a file. It must be beside the graph, because the weights are found relative to it."""
    source, contexts, copy = Path(arguments[0]), map(int, arguments[1].split(",")), Path(arguments[2])
    with replacing_file(copy) as temporary:
        temporary.write_bytes(graph_with_context(source, *contexts).content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
