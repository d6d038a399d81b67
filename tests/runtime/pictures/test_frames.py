"""Frames of other libraries: orders of channels, floats, tensors on a CPU, and on a GPU that is not there."""

from __future__ import annotations

import ctypes
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadImage, BadInput
from sdrpn.runtime.pictures import frames
from sdrpn.runtime.pictures.frames import rgb_from_frame
from sdrpn.runtime.pictures.picture import open_picture

FRAME = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def converted(source: object, channels: Any = "rgb") -> np.ndarray:
    found = rgb_from_frame(source, channels)
    assert found is not None
    return found


class TestArrays:
    def test_bytes_in_rgb_are_taken_as_they_are(self) -> None:
        assert rgb_from_frame(FRAME) is FRAME

    def test_bgr_is_turned(self) -> None:
        np.testing.assert_array_equal(converted(FRAME[..., ::-1].copy(), "bgr"), FRAME)
        assert open_picture(FRAME[..., ::-1].copy(), channels="bgr").digest() == open_picture(FRAME).digest()

    def test_other_channels_are_refused(self) -> None:
        with pytest.raises(BadInput, match="channels is 'gbr'; expected 'rgb' or 'bgr'"):
            rgb_from_frame(FRAME, "gbr")  # type: ignore[arg-type]

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats_are_rounded_to_the_same_bytes(self, dtype: type) -> None:
        """Half precision, too, lies nearer to its byte than to the next."""
        np.testing.assert_array_equal(converted((FRAME / 255).astype(dtype)), FRAME)

    @pytest.mark.parametrize(
        ("frame", "message"),
        [
            (np.full((2, 2, 3), np.nan), "a frame of floats has NaN in it; expected numbers in 0..1"),
            (np.full((2, 2, 3), 1.5), r"values from 1\.5 to 1\.5; expected 0\.\.1: scale it, or pass uint8"),
            (np.full((2, 2, 3), -0.5), r"values from -0\.5 to -0\.5"),
            (np.full((2, 2, 3), np.inf), "values from inf to inf"),
            (np.zeros((2, 2)), r"a frame has the shape \(2, 2\); expected \(H, W, 3\), uint8 or floats in 0\.\.1"),
            (np.zeros((3, 480, 640), np.uint8), r"shape \(3, 480, 640\), channels first; .*: move them last"),
            (np.zeros((2, 2, 4), np.uint8), r"shape \(2, 2, 4\); .*floats in 0\.\.1: leave the alpha channel out"),
            (np.zeros((2, 2), np.uint8), r"shape \(2, 2\); .*floats in 0\.\.1: repeat grey three times"),
            (
                np.zeros((2, 2, 3), np.int64),
                r"dtype int64; expected \(H, W, 3\), uint8 or floats in 0\.\.1: convert it",
            ),
        ],
    )
    def test_what_is_no_picture(self, frame: np.ndarray, message: str) -> None:
        with pytest.raises(BadImage, match=message):
            rgb_from_frame(frame)

    @pytest.mark.parametrize("source", ["street.jpg", b"bytes", None, 3])
    def test_what_is_no_frame_is_left_to_others(self, source: object) -> None:
        assert rgb_from_frame(source) is None

    def test_channels_of_files_are_their_own(self) -> None:
        file = io.BytesIO()
        Image.fromarray(FRAME).save(file, format="PNG")
        data = file.getvalue()
        assert open_picture(data, channels="bgr").digest() == open_picture(data).digest()


class CpuTensor:
    """Hands its memory on as PyTorch's do."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self._device, 0)


class TestTensors:
    def test_memory_of_the_host(self) -> None:
        np.testing.assert_array_equal(converted(CpuTensor(FRAME)), FRAME)
        np.testing.assert_array_equal(converted(CpuTensor(FRAME[..., ::-1].copy()), "bgr"), FRAME)

    def test_another_device_without_an_interface(self) -> None:
        with pytest.raises(BadImage, match=r"device 0 of DLPack's kind 10; expected host memory, .* to the CPU first"):
            rgb_from_frame(CpuTensor(FRAME, device=10))

    def test_of_pytorch(self) -> None:
        torch = pytest.importorskip("torch")
        np.testing.assert_array_equal(converted(torch.from_numpy(FRAME)), FRAME)
        np.testing.assert_array_equal(converted(torch.from_numpy(FRAME / 255).float()), FRAME)
        with pytest.raises(BadImage, match=r"channels first; .*: move them last"):
            rgb_from_frame(torch.zeros(3, 20, 30))
        with pytest.raises(BadImage, match=r"a tensor cannot be read as an array .*; pass uint8 or float32"):
            rgb_from_frame(torch.zeros(20, 30, 3, requires_grad=True))


class FakeCuda:
    """Its device memory is the host's; a copy counts only after the wait for all that was enqueued before."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def synchronize_all(self) -> None:
        self.calls.append("wait for all")

    def create_stream(self) -> str:
        return "stream"

    def copy(self, target: int, source: int, size_bytes: int, stream: str) -> None:
        assert self.calls == ["wait for all"]
        self.calls.append("copy")
        ctypes.memmove(target, source, size_bytes)

    def synchronize(self, stream: str) -> None:
        self.calls.append("wait")

    def destroy_stream(self, stream: str) -> None:
        self.calls.append("destroy")


class GpuTensor:
    """As CuPy's arrays, and PyTorch's tensors on a GPU."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self._array, self._strides = array, strides

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self._array.shape,
            "typestr": self._array.dtype.str,
            "data": (self._array.ctypes.data, False),
            "strides": self._strides,
            "version": 3,
        }


class TestGpuArrays:
    @pytest.fixture
    def cuda(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        fake = FakeCuda()
        monkeypatch.setattr(frames, "load_cuda", lambda purpose: fake)
        return fake

    @pytest.mark.parametrize("strides", [None, FRAME.strides])
    def test_they_are_copied_once_everything_before_is_done(self, cuda: FakeCuda, strides: Any) -> None:
        np.testing.assert_array_equal(converted(GpuTensor(FRAME, strides)), FRAME)
        assert cuda.calls == ["wait for all", "copy", "wait", "destroy"]

    def test_floats_in_bgr(self, cuda: FakeCuda) -> None:
        turned = np.ascontiguousarray((FRAME / 255)[..., ::-1], np.float32)
        np.testing.assert_array_equal(converted(GpuTensor(turned), "bgr"), FRAME)

    def test_views_are_refused(self, cuda: FakeCuda) -> None:
        with pytest.raises(BadImage, match=r"has strides \(1, 2, 3\); expected one that is contiguous: copy it first"):
            rgb_from_frame(GpuTensor(FRAME, (1, 2, 3)))
        assert cuda.calls == []

    def test_a_library_that_refuses(self) -> None:
        class Refuses:
            @property
            def __cuda_array_interface__(self) -> Any:
                raise RuntimeError("it requires grad\nand more")

        with pytest.raises(BadImage, match=r"cannot be read \(it requires grad\); pass a plain array or tensor"):
            rgb_from_frame(Refuses())
