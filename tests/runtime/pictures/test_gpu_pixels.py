"""A picture on the GPU, from decoding to the answer: with stand-ins for the GPU, nvImageCodec and the kernels."""

from __future__ import annotations

import ctypes
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.errors import BadInput
from sdrpn.method.roi import Crop, RoiDecision
from sdrpn.runtime import Answer, Session
from sdrpn.runtime.pictures import gpu_pixels
from sdrpn.runtime.pictures import picture as picture_module
from sdrpn.runtime.pictures.gpu_jpeg import GpuPixels
from sdrpn.runtime.pictures.picture import Picture, open_picture
from tests.runtime.fake_cuda import FakeCudart
from tests.runtime.gpu import FakeGpu, fake_gpu

native: Any = pytest.importorskip("sdrpn._native", exc_type=ImportError)

WORKSPACE_BYTES = 1000


def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def one_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (Crop((10, 5, 60, 50)),), None, logits)


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size_bytes).from_address(address), dtype).reshape(shape)


class Kernels:
    """`sdrpn._native_cuda` on the fake device: the CPU's loops, when somebody waits."""

    def __init__(self, cuda: FakeCudart) -> None:
        self.cuda = cuda

    def workspace_bytes(self, picture_hw: Any, result_hw: Any, boxes: Any, *, filter: str, colour: Any) -> int:
        return WORKSPACE_BYTES

    def prepare(
        self,
        picture: int,
        picture_hw: tuple[int, int],
        row_stride: int,
        boxes: npt.NDArray[np.int64],
        out: int,
        result_hw: tuple[int, int],
        *,
        half: bool,
        workspace: int,
        workspace_size: int,
        stream: int,
        **request: Any,
    ) -> None:
        assert row_stride == 3 * picture_hw[1]
        source = array_at(picture, (*picture_hw, 3), np.uint8)
        result = array_at(out, (len(boxes), 3, *result_hw), np.float16 if half else np.float32)
        assert workspace_size >= WORKSPACE_BYTES
        self.cuda.launch(
            stream,
            "prepare",
            lambda: native.prepare(source, boxes, result, **request),
            ((picture, source.nbytes),),
            ((out, result.nbytes), (workspace, workspace_size)),
        )


@dataclass
class Decoded:
    """What nvImageCodec gives."""

    address: int
    shape: tuple[int, int, int]
    downloads: int = 0

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "|u1", "data": (self.address, False), "strides": None, "stream": 1}

    def cpu(self) -> npt.NDArray[np.uint8]:
        self.downloads += 1
        return array_at(self.address, self.shape, np.uint8).copy()


@pytest.fixture
def gpu(tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    return fake_gpu(tiny_bundle, tmp_path)


@pytest.fixture
def decoded(gpu: FakeGpu) -> Decoded:
    _, address = gpu.cuda.cudaMalloc(pixels().nbytes)
    array_at(address, pixels().shape, np.uint8)[...] = pixels()
    return Decoded(address, (90, 130, 3))


@pytest.fixture
def on_gpu(decoded: Decoded, monkeypatch: pytest.MonkeyPatch) -> Picture:
    """A JPEG file, of which nvImageCodec is said to have made these pixels."""
    monkeypatch.setattr(picture_module, "decode_on_gpu", lambda data: GpuPixels(decoded))
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "JPEG")
    return open_picture(buffer.getvalue(), jpeg="gpu")


@pytest.fixture
def kernels(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pixels, "native_module", lambda name: Kernels(gpu.cuda))


def ask(session: Session, picture: Any) -> Answer:
    before, question = (1, 5, 6, 7), (8, 9, 10, 11, 12)
    return session.answer_ids(picture, before, question, roi=None, decide=one_box, max_new_tokens=4, trace=True)


@pytest.mark.usefixtures("kernels")
def test_both_looks_stay_on_the_gpu(gpu: FakeGpu, decoded: Decoded, on_gpu: Picture) -> None:
    ran: list[str] = []
    with gpu.session() as session:
        expected = ask(session, pixels())
        session.forget_image()
        prepare, gpu.cuda.launch = gpu.cuda.launch, recording(gpu.cuda.launch, ran)  # type: ignore[method-assign]
        found = ask(session, on_gpu)
        gpu.cuda.launch = prepare  # type: ignore[method-assign]
    assert ran.count("prepare") == 2
    assert decoded.downloads == 0
    assert found.token_ids == expected.token_ids
    assert found.trace is not None
    assert expected.trace is not None
    np.testing.assert_array_equal(found.trace.step_logits, expected.trace.step_logits)
    assert gpu.cuda.violations == []


def recording(launch: Any, names: list[str]) -> Any:
    def call(stream: int, name: str, *arguments: Any) -> None:
        names.append(name)
        launch(stream, name, *arguments)

    return call


def test_without_the_kernels_it_comes_to_the_host_once(gpu: FakeGpu, decoded: Decoded, on_gpu: Picture) -> None:
    with gpu.session() as session:
        expected = ask(session, pixels())
        session.forget_image()
        found = ask(session, on_gpu)
    assert decoded.downloads == 1
    assert found.token_ids == expected.token_ids


@pytest.mark.usefixtures("kernels")
def test_a_library_on_the_cpu_reads_it_from_the_host(tiny_bundle: Path, decoded: Decoded, on_gpu: Picture) -> None:
    with Session.open(tiny_bundle, backend="onnxruntime", threads=1) as session:
        expected = ask(session, pixels())
        session.forget_image()
        assert ask(session, on_gpu).token_ids == expected.token_ids
    assert decoded.downloads == 1


@pytest.mark.usefixtures("kernels")
def test_crops_outside_the_picture(gpu: FakeGpu, on_gpu: Picture) -> None:
    buffer = gpu.backend().allocate((1, 3, 56, 56), "float32")
    with pytest.raises(BadInput, match="is empty or extends beyond the image; expected x1 < x2 <= 130"):
        on_gpu.fill_crops([(0, 0, 131, 5)], None, buffer)  # type: ignore[arg-type]


def test_it_is_known_again_by_its_file(on_gpu: Picture) -> None:
    assert on_gpu.size == (130, 90)
    assert on_gpu.digest().startswith("gpu ")
