"""The graph as a parser takes it: a copy in memory with the cache length written in. Knows no TensorRT."""

from __future__ import annotations

from pathlib import Path

from sdrpn.libraries import importing_extra

__all__ = ["graph_with_context"]


def graph_with_context(path: Path, max_context: int) -> bytes:
    """The ONNX file with S_max as a number; weights stay in their files, which are found from where the graph lies.

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
    return content
