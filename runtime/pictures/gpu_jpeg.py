"""Decode a JPEG file on an NVIDIA GPU with nvImageCodec (extra `nvimgcodec`). Its pixels differ from Pillow's in the
last bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadImage, RunFailed
from sdrpn.host.libraries import importing_extra

__all__ = ["GpuPixels", "decode_on_gpu"]


class GpuPixels:
    """An upright picture in GPU memory, (H, W, 3) uint8."""

    def __init__(self, tensor: Any) -> None:
        """`tensor`: nvImageCodec's picture, which owns the memory."""
        self.tensor = tensor
        self.shape: tuple[int, int, int] = tuple(tensor.__cuda_array_interface__["shape"])

    @functools.cached_property
    def array(self) -> npt.NDArray[np.uint8]:
        """A copy in host memory."""
        return np.ascontiguousarray(np.asarray(self.tensor.cpu()))


def decode_on_gpu(data: bytes) -> GpuPixels:
    """Decode a file to an upright picture.

    Raises: MissingDependency; RunFailed without a usable GPU; BadImage where nvImageCodec cannot decode the file.
    """
    nvimgcodec = _library()
    decoded = _decoder().decode(
        nvimgcodec.CodeStream(data), params=nvimgcodec.DecodeParams(apply_exif_orientation=True)
    )
    if decoded is None:
        raise BadImage(
            "the image cannot be decoded by nvImageCodec; decode it in the mode exact", options=("jpeg exact",)
        )
    return GpuPixels(decoded)


def _library() -> Any:
    with importing_extra("nvimgcodec", "JPEG decoding on a GPU"):
        import nvidia.nvimgcodec as nvimgcodec
    return nvimgcodec


@functools.cache
def _decoder() -> Any:
    try:
        return _library().Decoder()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunFailed(
            f"JPEG decoding on a GPU needs an NVIDIA GPU and its driver ({reason}); use the mode exact",
            options=("jpeg exact",),
        ) from error
