"""What 4 bits may cost the trained small model, held on a few scenes that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # its fonts

from sdrpn.bundle.shipped import shipped_source
from sdrpn.compare.overlap import overlap
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Answer, Session
from sdrpn.tags.task import TagSample, tag_samples

SCENES = 12


@pytest.fixture(scope="module")
def scenes() -> list[TagSample]:
    return list(tag_samples("heldout", SCENES, seed=0))


def answers(folder: Path, options: ExportOptions, scenes: list[TagSample]) -> list[Answer]:
    """On ONNX Runtime, as `sdrpn ask` gives them."""
    checkpoint, rpn = shipped_source()
    export_bundle(checkpoint, folder, options, rpn=rpn)
    with Session.open(folder, threads=1) as session:
        return [session.answer(scene.image, scene.question, roi=RoiPolicy(0.3), max_new_tokens=8) for scene in scenes]


@pytest.fixture(scope="module")
def exact(scenes: list[TagSample], tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    return answers(tmp_path_factory.mktemp("trained") / "fp32", ExportOptions(), scenes)


@pytest.mark.parametrize(
    ("options", "least_cosine"),
    [(ExportOptions("int8", block=16), 0.9998), (ExportOptions("int4", block=16), 0.995)],
    ids=["int8", "int4"],
)
def test_maps_boxes_and_decisions(
    scenes: list[TagSample], exact: list[Answer], tmp_path: Path, options: ExportOptions, least_cosine: float
) -> None:
    found = answers(tmp_path / "bundle", options, scenes)
    pairs = list(zip(found, exact, strict=True))
    cosines = [cosine(answer, other) for answer, other in pairs]
    assert np.mean(cosines) >= least_cosine, cosines
    overlaps = [overlap(answer.boxes_xyxy_px, other.boxes_xyxy_px) for answer, other in pairs]
    assert np.mean(overlaps) >= 0.95, overlaps
    assert [bool(answer.boxes_xyxy_px) for answer in found] == [bool(other.boxes_xyxy_px) for other in exact]
    right = [
        sum(told.text == scene.answer for told, scene in zip(side, scenes, strict=True)) for side in (found, exact)
    ]
    assert right[0] >= right[1] - 1 >= SCENES // 2


def cosine(one: Answer, other: Answer) -> float:
    a, b = (np.asarray(answer.roi_map, np.float64).ravel() for answer in (one, other))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
