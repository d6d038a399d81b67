"""Write boxes of a picture in GPU memory directly to the vision graph's input, with the CUDA kernels of
`sdrpn._native_cuda`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdrpn.host.native_modules import native_module
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Device
from sdrpn.runtime.backends.runner import Buffer
from sdrpn.runtime.pictures.gpu_jpeg import GpuPixels

__all__ = ["fill_on_gpu"]


def fill_on_gpu(
    pixels: GpuPixels,
    boxes: Sequence[Box],
    resample: str,
    colour: tuple[int, int, int] | None,
    vision: SquareVision,
    buffer: Buffer,
) -> bool:
    """Enqueue each box, resized and normalised, to one entry of `buffer` (N, 3, R, R); False where it cannot.

    The picture must stay alive until the buffer's stream has completed the work.

    Args:
        boxes: checked by the caller
        resample: "bilinear" or "bicubic"
        colour: the colour outside the picture; None: all boxes are inside
    """
    native = native_module("_native_cuda")
    if native is None or not isinstance(buffer, DeviceBuffer):
        return False
    size_hw, result_hw = pixels.shape[:2], buffer.shape[2:]
    request = {"filter": resample, "colour": colour}
    corners = np.array(boxes, np.int64)
    workspace_bytes = native.workspace_bytes(size_hw, result_hw, corners, **request)

    def enqueue(device: Device, out: int) -> None:
        workspace = device.memory.take(workspace_bytes)  # released at once: its next use is enqueued after this
        native.prepare(
            DeviceBuffer.wrapping(device, pixels.tensor).pointer,
            size_hw,
            3 * size_hw[1],
            corners,
            out,
            result_hw,
            half=buffer.dtype == np.float16,
            workspace=workspace.pointer,
            workspace_size=workspace.size_bytes,
            stream=device.stream.address,
            mean=vision.image_mean,
            std=vision.image_std,
            **request,
        )

    buffer.compute(enqueue)
    return True
