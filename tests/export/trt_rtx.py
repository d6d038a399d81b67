"""Compile ONNX files with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import tensorrt_rtx_bindings as trt

__all__ = ["Built", "build"]


@dataclass(frozen=True)
class Built:
    """What came of a build."""

    plan_bytes: int  # 0: no engine
    errors: str  # what the parser or the builder complained of, one per line
    kernels: Counter[str]  # fused attention kernels, by name, that the builder chose
    messages: tuple[str, ...] = ()  # the whole log


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps everything: kernels are named only in verbose messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[Any, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.messages.append((severity, message))

    def errors(self) -> str:
        return "\n".join(text for severity, text in self.messages if severity <= trt.Logger.ERROR)


Extent = tuple[int, int, int]  # least, usual and most


def build(
    path: Path,
    *,
    cache_length: int = 1,
    rows: Extent = (1, 1, 1),
    extents: Mapping[str, Extent] | None = None,
    capability: str = "SM86",
) -> Built:
    """Compile one graph for one GPU generation, strongly typed, with one optimisation profile.

    The parser refuses a symbolic cache length, so a number is written into a copy of the graph beside it (external
    weights are found from there).

    Args:
        rows: least, usual and most entries of every dynamic dimension but the first, of which there is one
        extents: the same by the dimension's name, in place of `rows`
    """
    fixed = path.with_suffix(f".{cache_length}.onnx")
    onnx.save(_with_cache_length(path, cache_length), fixed)
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)  # strongly typed: TensorRT-RTX has no other way
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(fixed)):
        described = "\n".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        return Built(0, described or log.errors(), Counter())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if extents is None:
        config.add_optimization_profile(_profile(builder, network, rows))
    else:
        config.add_optimization_profile(_named_profile(builder, path, extents))
    plan = builder.build_serialized_network(network, config)
    kernels = Counter(re.findall(r"_ge[mv][mv]_mha_v\d", "\n".join(text for _, text in log.messages)))
    messages = tuple(text for _, text in log.messages)
    return Built(plan.nbytes if plan is not None else 0, log.errors(), kernels, messages)


def _with_cache_length(path: Path, cache_length: int) -> onnx.ModelProto:
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "cache_length":
                dim.dim_value = cache_length
    return model


def _profile(builder: Any, network: Any, rows: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        dims = list(tensor.shape)
        if any(dim < 0 for dim in dims):
            shapes = [[d if d >= 0 else (1 if axis == 0 else n) for axis, d in enumerate(dims)] for n in rows]
            profile.set_shape(tensor.name, *shapes)
    return profile


def _named_profile(builder: Any, path: Path, extents: Mapping[str, Extent]) -> Any:
    profile = builder.create_optimization_profile()
    for value in onnx.load(path, load_external_data=False).graph.input:
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        shapes = [[extents[dim][place] if isinstance(dim, str) else dim for dim in dims] for place in range(3)]
        profile.set_shape(value.name, *shapes)
    return profile
