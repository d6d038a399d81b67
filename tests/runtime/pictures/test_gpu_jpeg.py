"""nvImageCodec behind `open_picture`: with a stand-in for the library, and with a GPU where there is one."""

from __future__ import annotations

import io
import sys
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadImage, MissingDependency, RunFailed
from sdrpn.runtime.pictures import gpu_jpeg
from sdrpn.runtime.pictures.picture import open_picture


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3)).save(buffer, "JPEG")
    return buffer.getvalue()


class StandIn(types.ModuleType):
    """What we use of nvImageCodec."""

    def __init__(self, result: Any = None, failure: Exception | None = None) -> None:
        super().__init__("nvimgcodec")
        self.result, self.failure = result, failure
        self.CodeStream = bytes
        self.DecodeParams = types.SimpleNamespace

    def Decoder(self) -> Any:  # noqa: N802
        if self.failure is not None:
            raise self.failure
        return types.SimpleNamespace(decode=lambda stream, params: self.result)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(stand_in: StandIn | None) -> None:
        package = types.ModuleType("nvidia")
        if stand_in is not None:
            package.nvimgcodec = stand_in  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "nvidia", package)
        monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", stand_in)
        gpu_jpeg._decoder.cache_clear()

    yield put
    gpu_jpeg._decoder.cache_clear()


def test_its_pixels_are_taken(install: Any) -> None:
    pixels = np.full((4, 8, 3), 7, np.uint8)
    install(StandIn(types.SimpleNamespace(cpu=lambda: pixels, __cuda_array_interface__={"shape": (4, 8, 3)})))
    picture = open_picture(jpeg(), jpeg="gpu")
    assert picture.size == (8, 4)
    np.testing.assert_array_equal(np.asarray(picture.as_image()), pixels)


def test_files_that_it_cannot_decode(install: Any) -> None:
    install(StandIn(None))
    with pytest.raises(BadImage, match="cannot be decoded by nvImageCodec"):
        open_picture(jpeg(), jpeg="gpu")


def test_no_gpu(install: Any) -> None:
    install(StandIn(failure=RuntimeError("CUDA Runtime\nfailure: '#35'")))
    with pytest.raises(RunFailed, match=r"needs an NVIDIA GPU and its driver \(CUDA Runtime failure"):
        open_picture(jpeg(), jpeg="gpu")


def test_not_installed(install: Any) -> None:
    install(None)
    with pytest.raises(MissingDependency, match=r"sdrpn\[nvimgcodec\]"):
        open_picture(jpeg(), jpeg="gpu")


@pytest.mark.gpu
def test_a_gpu_decodes_about_the_same() -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    found = gpu_jpeg.decode_on_gpu(buffer.getvalue()).array
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())), np.int16)
    assert np.abs(found - expected).mean() < 2
