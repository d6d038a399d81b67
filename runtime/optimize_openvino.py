"""Graphs saved in OpenVINO's own form for one machine: read without conversion, weights mapped from their file.

What a graph has in fp16 is saved in fp32, in which a CPU computes: the library would otherwise keep the converted
numbers in memory of its own, beside those that its kernels pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset15 as ops

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.arrays import run_on_arrays, trial_feeds
from sdrpn.runtime.backends.failures import first_line, not_saved
from sdrpn.runtime.backends.openvino import OpenVinoBackend
from sdrpn.runtime.backends.openvino_graph import new_core, read_onnx
from sdrpn.runtime.backends.openvino_runner import LIBRARY

__all__ = ["save_openvino_graph"]


def save_openvino_graph(graph: GraphInfo, content: bytes, path: Path, out: Path, threads: int | None = None) -> int:
    """Write `out`, which ends in .xml, and its weights beside it; check that they compute the same as before.

    Returns: bytes of the weights as kernels read them, with scales in fp32

    Args:
        content: the graph in ONNX
        path: its name, in the folder that its weights' paths are relative to
    Raises: BadBundle if OpenVINO refuses the graph, RunFailed if it cannot be written, or computes something else
    """
    backend, feeds = OpenVinoBackend("openvino", threads), trial_feeds(graph.inputs)
    runner = backend.load_content(graph, content, path)
    before = {name: array.copy() for name, array in run_on_arrays(backend, runner, feeds).items()}
    runner.close()
    model = read_onnx(new_core(), content, path.parent)
    _widen(model)
    _divide(model)
    widened_bytes = _half_bytes(model)
    try:
        openvino.save_model(model, out, compress_to_fp16=False)
    except Exception as error:  # OpenVINO raises RuntimeError and its subclasses
        raise not_saved(LIBRARY, graph.name, out, first_line(error)) from error
    runner = backend.load(graph, out)
    after = run_on_arrays(backend, runner, feeds)
    runner.close()
    for name, array in before.items():
        if not np.array_equal(array, after[name]):
            raise RunFailed(
                f"{name} of the {graph.name} graph changed when it was saved; is the disk full or damaged? "
                "Free some space and try again"
            )
    return out.with_suffix(".bin").stat().st_size + widened_bytes


def _half_bytes(model: openvino.Model) -> int:
    """Bytes of what stays in fp16: scales, which kernels widen to fp32."""
    constants = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    return sum(node.get_byte_size() for node in constants if node.get_element_type() == openvino.Type.f16)


def _widen(model: openvino.Model) -> None:
    """Constants in fp16 that are converted to fp32 become fp32, but for scales."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert" or node.get_element_type() != openvino.Type.f32:
            continue
        constant = node.input_value(0).get_node()
        if constant.get_type_name() == "Constant" and constant.get_element_type() == openvino.Type.f16:
            if _is_scale(node):
                continue
            node.output(0).replace(ops.constant(constant.get_data().astype(np.float32)).output(0))


def _divide(model: openvino.Model) -> None:
    """Constants that are split become the parts, which the library would otherwise make again at every start."""
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Split", "VariadicSplit"):
            continue
        whole, axis = (node.input_value(index).get_node() for index in (0, 1))
        if whole.get_type_name() != "Constant":
            continue
        lengths = [output.get_shape()[int(axis.get_data())] for output in node.outputs()]
        parts = np.split(whole.get_data(), np.cumsum(lengths)[:-1], axis=int(axis.get_data()))
        for output, part in zip(node.outputs(), parts, strict=True):
            output.replace(ops.constant(np.ascontiguousarray(part)).output(0))


def _is_scale(node: Any) -> bool:
    """Whether it belongs to quantised weights, whose form the kernels' compiler looks for."""
    return any(target.get_node().get_type_name() == "Multiply" for target in node.output(0).get_target_inputs())
