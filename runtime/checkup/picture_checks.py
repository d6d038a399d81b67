"""Compare the compiled image path with Pillow and NumPy, on the CPU and on the GPU: equal values, or within a limit."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.bundle.tolerances import GPU_JPEG_MEAN_LEVELS
from sdrpn.errors import MissingDependency
from sdrpn.host.native_modules import native_module, why_no_native_module
from sdrpn.images.image import base_pixels, crop_pixels
from sdrpn.images.patches import Size, crop_patches, picture_patches
from sdrpn.method.geometry import Fit
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Device
from sdrpn.runtime.checkup.steps import CheckFailed, Finding, Skip, Step
from sdrpn.runtime.pictures.gpu_jpeg import GpuPixels, decode_on_gpu
from sdrpn.runtime.pictures.gpu_pixels import fill_on_gpu
from sdrpn.runtime.pictures.pixels import write_base, write_crops, write_patches

__all__ = ["PictureChecks"]

_BOXES = ((0, 0, 301, 203), (3, 5, 40, 9), (100, 20, 101, 21))


@dataclass(frozen=True)
class _Square:
    """A small model's square; what its pixels are divided by matters to no check but must not be 1."""

    image_size_px: int = 56
    fit: Fit = "pad"
    pad_colour: tuple[int, int, int] = (122, 116, 104)
    image_mean: tuple[float, float, float] = (0.48, 0.46, 0.41)
    image_std: tuple[float, float, float] = (0.27, 0.26, 0.28)


_VISION = _Square()


@dataclass(frozen=True)
class _Patched:
    """A small model that sees patches of a picture resized to 8 x 6 tokens: first wider, then to that size."""

    patch_size_px: int = 14
    merge: int = 2
    image_mean: tuple[float, float, float] = (0.48, 0.46, 0.41)
    image_std: tuple[float, float, float] = (0.27, 0.26, 0.28)

    def picture_sizes(self, image_wh: Size) -> tuple[Size, ...]:
        """Twice, as the official evaluation does it."""
        return (280, 196), *self.crop_sizes(image_wh)

    def crop_sizes(self, crop_wh: Size) -> tuple[Size, ...]:
        """Tall crops become tall: their columns are resized first."""
        return ((224, 168) if crop_wh[0] >= crop_wh[1] else (112, 56),)


_PATCHED = _Patched()
_PATCHED_BOXES = (*_BOXES, (50, 1, 120, 202))


class PictureChecks:
    """The checks of resizing, JPEG decoding, and the CUDA kernels."""

    def __init__(self, open_device: Callable[[], Device]) -> None:
        """`open_device` raises Skip where there is no GPU."""
        self._open_device = open_device

    def steps(self) -> list[Step]:
        """The steps, those on the CPU first."""
        return [
            Step("resize, compiled", self.resize),
            Step("patches, compiled", self.patches),
            Step("JPEG, compiled", self.jpeg),
            Step("resize, on the GPU", self.resize_on_gpu),
            Step("JPEG, on the GPU", self.jpeg_on_gpu),
        ]

    @cached_property
    def _pixels(self) -> npt.NDArray[np.uint8]:
        return np.random.default_rng(0).integers(0, 256, (203, 301, 3), dtype=np.uint8)

    def resize(self) -> Finding:
        """The native module's values equal Pillow's."""
        _require_native("_native", "the native image path", "Pillow is used")
        base = np.empty((1, 3, 56, 56), np.float32)
        write_base(self._pixels, _VISION, base)
        crops = np.empty((len(_BOXES), 3, 56, 56), np.float32)
        write_crops(self._pixels, _BOXES, _VISION, crops)
        image = Image.fromarray(self._pixels)
        expected = [base_pixels(image, _VISION), *(crop_pixels(image, box, _VISION) for box in _BOXES)]
        return _equal(np.concatenate([base, crops]), np.stack(expected), "Pillow's")

    def patches(self) -> Finding:
        """The same of pictures that are seen as patches."""
        _require_native("_native", "the native image path", "Pillow is used")
        image = Image.fromarray(self._pixels)
        whole = (0, 0, *image.size)
        looks = [(whole, _PATCHED.picture_sizes(image.size))]
        looks += [(box, _PATCHED.crop_sizes((box[2] - box[0], box[3] - box[1]))) for box in _PATCHED_BOXES]
        expected = [picture_patches(image, _PATCHED), *(crop_patches(image, box, _PATCHED) for box in _PATCHED_BOXES)]
        found = [np.empty_like(patches) for patches in expected]
        for (box, sizes), out in zip(looks, found, strict=True):
            write_patches(self._pixels, box, sizes, _PATCHED, out)
        return _equal(np.concatenate(found), np.concatenate(expected), "Pillow's")

    def jpeg(self) -> Finding:
        """The native decoder's pixels equal Pillow's."""
        native = _require_native("_native_jpeg", "the native JPEG decoder", "Pillow is used")
        data, expected = _jpeg_file()
        found = np.empty_like(expected)
        native.decode(data, found)
        return _equal(found, expected, "Pillow's")

    def resize_on_gpu(self) -> Finding:
        """The CUDA kernels' values equal the CPU's."""
        device = self._open_device()
        _require_native("_native_cuda", "the module of the CUDA kernels", "pictures are resized on the CPU")
        source = DeviceBuffer.zeros(device, self._pixels.shape, "uint8")
        source.write(self._pixels)
        expected = np.empty((len(_BOXES), 3, 56, 56), np.float32)
        write_crops(self._pixels, _BOXES, _VISION, expected)
        found = DeviceBuffer.zeros(device, expected.shape, "float32")
        if not fill_on_gpu(GpuPixels(source), _BOXES, "bilinear", None, _VISION, found):
            raise CheckFailed("the CUDA kernels did not accept a picture in GPU memory")
        return _equal(found.read(), expected, "the CPU's")

    def jpeg_on_gpu(self) -> Finding:
        """nvImageCodec's pixels are close to Pillow's."""
        self._open_device()
        data, expected = _jpeg_file()
        try:
            found = decode_on_gpu(data).array
        except MissingDependency as error:
            raise Skip(str(error)) from error
        if found.shape != expected.shape:
            raise CheckFailed(f"the picture is {found.shape}, expected {expected.shape}")
        difference = np.abs(found.astype(np.int16) - expected)
        figures = {"mean_levels": float(difference.mean()), "worst_levels": int(difference.max())}
        if figures["mean_levels"] > GPU_JPEG_MEAN_LEVELS:
            raise CheckFailed(f"pixels differ from Pillow's by {difference.mean():.2f} of 255 levels on average")
        return Finding(f"pixels differ from Pillow's by {difference.mean():.2f} of 255 levels on average", figures)


def _require_native(name: str, what: str, otherwise: str) -> Any:
    """A native module. Raises Skip where there is none, with the reason."""
    native = native_module(name)
    if native is None:
        raise Skip(f"{what} {why_no_native_module(name) or 'is missing'}: {otherwise} (docs/native.md)")
    return native


def _jpeg_file() -> tuple[bytes, npt.NDArray[np.uint8]]:
    """A smooth picture as a JPEG file, and the pixels that Pillow reads from it."""
    small = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((800, 600), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    with Image.open(stream) as image:
        return stream.getvalue(), np.array(image.convert("RGB"))


def _equal(found: npt.NDArray[Any], expected: npt.NDArray[Any], whose: str) -> Finding:
    if found.shape != expected.shape:
        raise CheckFailed(f"the values are of shape {found.shape}, {whose} of {expected.shape}")
    different = int((found != expected).sum())
    if different:
        raise CheckFailed(f"{different} of {expected.size} values are not {whose}")
    return Finding(f"{expected.size:,} values, all {whose}")
