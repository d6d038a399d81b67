"""Frames of other libraries as pictures: arrays in either order of channels, floats, tensors on a CPU or a GPU.

What comes out is an (H, W, 3) uint8 array in RGB in host memory, which the rest of the runtime takes. Tensors are read
through `__cuda_array_interface__` and DLPack; none of the libraries that make them is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadImage, BadInput
from sdrpn.images.image import check_array
from sdrpn.runtime.backends.cuda import load_cuda

__all__ = ["Channels", "Frame", "GpuArray", "Tensor", "rgb_from_frame"]

Channels: TypeAlias = Literal["rgb", "bgr"]
Array: TypeAlias = npt.NDArray[Any]
_CPU = 1  # DLDeviceType of DLPack
_EXPECTED = "expected (H, W, 3), uint8 or floats in 0..1"


@runtime_checkable
class Tensor(Protocol):
    """A tensor of another library, such as PyTorch, that hands its memory on."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """The memory, as a capsule."""

    def __dlpack_device__(self) -> tuple[Any, int]:
        """The kind and the number of the device."""


@runtime_checkable
class GpuArray(Protocol):
    """An array in GPU memory, such as one of CuPy, or a tensor of PyTorch there."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        """Where it is, its shape and its type: version 2 or 3 of Numba's protocol."""


Frame: TypeAlias = "Array | Tensor | GpuArray"


def rgb_from_frame(source: object, channels: Channels = "rgb") -> Array | None:
    """An array or a tensor as (H, W, 3) uint8 in RGB; None for what is neither: a path, bytes, a PIL image.

    A uint8 array in RGB is returned as it is. Floats are in 0..1 and are rounded to the nearest of 256 steps.

    Args: channels: the order in which the frame has them
    Raises: BadInput for other channels; BadImage for another shape or type, and for floats that are not in 0..1
    """
    if channels not in get_args(Channels):
        raise BadInput(f"channels is {channels!r}; expected {' or '.join(map(repr, get_args(Channels)))}")
    array = _host_array(source)
    if array is None:
        return None
    _require_layout(array)
    if array.dtype.kind == "f":
        array = _bytes_from_floats(array)
    check_array(array)
    return array if channels == "rgb" else np.ascontiguousarray(array[..., ::-1])


def _host_array(source: object) -> Array | None:
    if isinstance(source, np.ndarray):
        return source
    interface = _interface_of(source)
    if interface is not None:
        return _from_gpu(interface)
    return _from_dlpack(source) if isinstance(source, Tensor) else None


def _require_layout(array: Array) -> None:
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise BadImage(f"a frame has the shape {array.shape}, channels first; {_EXPECTED}: move them last")
    if array.ndim != 3 or array.shape[2] != 3:
        raise BadImage(f"a frame has the shape {array.shape}; {_EXPECTED}{_shape_advice(array)}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise BadImage(f"a frame has the dtype {array.dtype}; {_EXPECTED}: convert it")


def _shape_advice(array: Array) -> str:
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        return ": repeat grey three times"
    return ": leave the alpha channel out" if array.ndim == 3 and array.shape[2] == 4 else ""


def _bytes_from_floats(array: Array) -> npt.NDArray[np.uint8]:
    lowest, highest = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if math.isnan(lowest) or math.isnan(highest):
        raise BadImage("a frame of floats has NaN in it; expected numbers in 0..1")
    if lowest < 0 or highest > 1:
        raise BadImage(
            f"a frame of floats has values from {lowest:g} to {highest:g}; expected 0..1: scale it, or pass uint8"
        )
    steps: npt.NDArray[np.uint8] = np.rint(array.astype(np.float32, copy=False) * np.float32(255)).astype(np.uint8)
    return steps


def _interface_of(source: object) -> Mapping[str, Any] | None:
    try:
        return getattr(source, "__cuda_array_interface__", None)
    except Exception as error:  # a library refuses in its own way, such as for a tensor that needs gradients
        raise BadImage(f"a frame on a GPU cannot be read ({_line(error)}); pass a plain array or tensor") from error


def _from_gpu(interface: Mapping[str, Any]) -> Array:
    """A copy in host memory, after everything that the GPU was given before is done."""
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    array = np.empty(shape, dtype)
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != array.strides:
        raise BadImage(f"a frame on a GPU has strides {tuple(strides)}; expected one that is contiguous: copy it first")
    if array.size == 0:
        return array
    cuda = load_cuda("a frame in GPU memory")
    cuda.synchronize_all()  # its producer may still write it, on any stream
    stream = cuda.create_stream()
    try:
        cuda.copy(array.ctypes.data, int(interface["data"][0]), array.nbytes, stream)
        cuda.synchronize(stream)
    finally:
        cuda.destroy_stream(stream)
    return array


def _from_dlpack(source: Tensor) -> Array:
    kind, number = source.__dlpack_device__()
    if int(kind) != _CPU:
        raise BadImage(
            f"a frame is on device {number} of DLPack's kind {int(kind)}; expected host memory, or a GPU array with "
            "__cuda_array_interface__: copy it to the CPU first"
        )
    try:
        return np.from_dlpack(source)
    except Exception as error:  # a library refuses in its own way, and NumPy has no bfloat16
        raise BadImage(f"a tensor cannot be read as an array ({_line(error)}); pass uint8 or float32") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
