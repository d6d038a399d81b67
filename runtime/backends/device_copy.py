"""Copies within the memory of ONNX Runtime's device: its Python API has none, so a graph of one Identity makes them.

The graph takes bytes of any number, bound by their addresses. It is a few dozen bytes of ONNX, written here: the
runtime needs no library for it. Run on ONNX Runtime's CPU, which is a device like any other to it; not on a GPU.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime

__all__ = ["copy_bytes"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_UINT8 = 2  # TensorProto.DataType


def copy_bytes(device: str, device_id: int, target: int, source: int, size_bytes: int) -> None:
    """Copy between two addresses of the device that do not overlap; it is done on return."""
    if not size_bytes:
        return
    session = _session(device, device_id)
    binding = session.io_binding()
    binding.bind_input("x", device, device_id, np.uint8, (size_bytes,), source)
    binding.bind_output("y", device, device_id, np.uint8, (size_bytes,), target)
    session.run_with_iobinding(binding)


@functools.cache
def _session(device: str, device_id: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    provider = (_PROVIDERS[device], {"device_id": str(device_id)} if device == "cuda" else {})
    return onnxruntime.InferenceSession(_identity(), options, providers=[provider])


def _identity() -> bytes:
    """ModelProto: y = Identity(x), of bytes. The numbers are those of onnx.proto."""
    shape = _message((1, _message((2, b"n"))))  # one dimension, of any extent
    tensor = _message((1, _UINT8), (2, shape))  # TypeProto.Tensor
    values = [_message((1, name), (2, _message((1, tensor)))) for name in (b"x", b"y")]
    node = _message((1, b"x"), (2, b"y"), (4, b"Identity"))
    graph = _message((1, node), (2, b"copy"), (11, values[0]), (12, values[1]))
    return _message((1, 8), (7, graph), (8, _message((2, 13))))  # IR version, graph, opset


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    """Protobuf of small numbers and short texts: field number and kind, and the value or its length."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(bytes([number << 3, value]))
        else:
            parts.append(bytes([number << 3 | 2, len(value)]) + value)
    return b"".join(parts)
