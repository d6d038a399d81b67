"""The graph as a parser takes it: a copy with the cache length written in. Knows no TensorRT.

python -m sdrpn.engines.graph_file trunk.onnx 2048 trunk.2048.onnx     # for other tools: see --print-trtexec
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdrpn.atomic import replacing_file
from sdrpn.libraries import importing_extra

__all__ = ["ParserGraph", "graph_with_context"]


@dataclass(frozen=True)
class ParserGraph:
    """An ONNX model in memory; its weights stay in their files."""

    content: bytes
    int4_weights: int  # matrices in 4 bits


def graph_with_context(path: Path, max_context: int) -> ParserGraph:
    """The ONNX file with S_max as a number; weights are found from where the file lies.

    TensorRT's parser refuses a symbolic cache length, and setting the shape after parsing is too late.
    """
    with importing_extra("tensorrt-rtx", "sdrpn build"):
        import onnx

    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "cache_length":
                dim.dim_value = max_context
    # Deterministic, so that its digest stands for the graph.
    content: bytes = model.SerializeToString(deterministic=True)
    int4 = sum(tensor.data_type == onnx.TensorProto.INT4 for tensor in model.graph.initializer)
    return ParserGraph(content, int4)


def main(arguments: Sequence[str]) -> int:
    """Write the copy to a file. It must lie beside the graph, from where the weights are found."""
    source, max_context, copy = Path(arguments[0]), int(arguments[1]), Path(arguments[2])
    with replacing_file(copy) as temporary:
        temporary.write_bytes(graph_with_context(source, max_context).content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
