"""Whole sessions of the shipped model on a real GPU's CUDA, without TensorRT: the answers are those of ONNX Runtime."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.bundle.shipped import bundle_path
from sdrpn.runtime import Answer, RoiPolicy, Session
from sdrpn.runtime.pictures.picture import open_picture
from sdrpn.tags import shipped_scene
from tests.runtime.host_nodes import session_on_cuda

pytestmark = pytest.mark.gpu

SCENE = shipped_scene()
QUESTIONS = (SCENE.question, "i see a red tag . what is its code ?", SCENE.question)
ALWAYS = RoiPolicy(threshold=0.001, gate_threshold=-1.0)  # looks twice
VARIANTS = ("fused-int8", "primitive-int8-cpu")


def outcome(answer: object) -> tuple[tuple[int, ...], Any]:
    assert isinstance(answer, Answer)
    return tuple(answer.token_ids), answer.boxes_xyxy_px


def outcomes(session: Session) -> list[Any]:
    one_by_one = [session.answer(SCENE.picture, question, roi=ALWAYS, max_new_tokens=16) for question in QUESTIONS]
    at_once = session.answers([(SCENE.picture, each) for each in QUESTIONS[:2]], roi=ALWAYS, max_new_tokens=12)
    return [outcome(answer) for answer in (*one_by_one, *at_once)]


@pytest.fixture(scope="module", params=VARIANTS)
def expected(request: pytest.FixtureRequest) -> tuple[str, list[Any]]:
    variant: str = request.param
    with Session.open(bundle_path("demo"), backend="onnxruntime", variant=variant, threads=1, max_batch=2) as session:
        return variant, outcomes(session)


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["captured", "enqueued"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_the_answers_are_those_of_onnxruntime(
    expected: tuple[str, list[Any]], flavour: str, cuda_graph: bool, tmp_path: Path
) -> None:
    variant, wanted = expected
    with session_on_cuda(
        bundle_path("demo"), tmp_path / "b", variant=variant, flavour=flavour, cuda_graph=cuda_graph, max_batch=2
    ) as (session, nodes):
        found = outcomes(session)
    assert nodes.violations == []
    assert found == wanted


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with session_on_cuda(
        bundle_path("demo"), tmp_path / "b", variant=VARIANTS[0], flavour="tensorrt", cuda_graph=True
    ) as (session, _):
        yield session


def test_a_frame_of_torch(session: Session) -> None:
    torch: Any = pytest.importorskip("torch")
    image = Image.open(SCENE.picture).convert("RGB")
    frame = torch.from_numpy(np.array(image)).cuda()
    require_same_answers(session, frame, image)


def test_a_file_decoded_and_resized_on_the_gpu(session: Session) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    pytest.importorskip("sdrpn._native_cuda", exc_type=ImportError)
    buffer = io.BytesIO()
    Image.open(SCENE.picture).convert("RGB").save(buffer, "JPEG", quality=95)
    decoded = open_picture(buffer.getvalue(), jpeg="gpu").as_image()
    require_same_answers(session, open_picture(buffer.getvalue(), jpeg="gpu"), Image.fromarray(np.asarray(decoded)))


def require_same_answers(session: Session, picture: Any, other: Any) -> None:
    answers = []
    for each in (picture, other):
        session.forget_image()
        answers.append(session.answer(each, SCENE.question, roi=ALWAYS, max_new_tokens=16))
    assert outcome(answers[0]) == outcome(answers[1])
    assert answers[0].boxes_xyxy_px
