"""A widened checkpoint computes what its source does, and blocks of 128 divide it: their cost is measured with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")  # the fonts of the scenes

from sdrpn.bundle.shipped import shipped_source
from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.random import write_random_checkpoint
from sdrpn.checkpoint.rpn_file import write_rpn
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import RpnSpec
from sdrpn.runtime import Answer, Session
from sdrpn.tags.task import TagSample, tag_samples
from tests.scripts import script_module
from tests.tiny_models import tiny_spec
from tests.tolerances import LOOK_MAP_ABS, WIDENED_GATE_SCORE_ABS, WIDENED_LOGITS_ABS

FORMS: dict[str, dict[str, str | float]] = {
    "copies": {},
    "zeros": {"padding": "zeros"},
    "outlier": {"outlier": 8.0},
}
script = script_module("benchmarks/widen_checkpoint.py")


@pytest.fixture(scope="module")
def widened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped checkpoint and its RPN in each way."""
    folder = tmp_path_factory.mktemp("widened")
    for name, form in FORMS.items():
        script.widen(*shipped_source(), folder / name, **form)
    return {name: folder / name for name in FORMS}


@pytest.fixture(scope="module")
def scenes() -> list[TagSample]:
    return list(tag_samples("heldout", 3, seed=0))


@pytest.fixture(scope="module")
def expected(scenes: list[TagSample], tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    checkpoint, rpn = shipped_source()
    return answers(checkpoint, rpn, tmp_path_factory.mktemp("exported") / "source", scenes)


def answers(checkpoint: Path, rpn: Path | None, out: Path, scenes: Sequence[TagSample]) -> list[Answer]:
    """In float32, each question without and with the gate."""
    export_bundle(checkpoint, out, ExportOptions(), rpn=rpn)
    with Session.open(out, threads=1) as session:
        return [
            session.answer(scene.image, scene.question, roi=policy, max_new_tokens=8, trace=True)
            for scene in scenes
            for policy in (RoiPolicy(0.3), session.policy)
        ]


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_the_same(
    widened: dict[str, Path], expected: list[Answer], scenes: list[TagSample], tmp_path: Path, form: str
) -> None:
    found = answers(widened[form], None, tmp_path / "bundle", scenes)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert [answer.boxes_xyxy_px for answer in found] == [answer.boxes_xyxy_px for answer in expected]
    assert any(answer.boxes_xyxy_px for answer in expected)
    assert any(answer.gate_score is not None for answer in expected)
    for answer, other in zip(found, expected, strict=True):
        assert answer.trace is not None
        assert other.trace is not None
        np.testing.assert_allclose(answer.trace.first_logits, other.trace.first_logits, rtol=0, atol=WIDENED_LOGITS_ABS)
        if other.roi_map is not None:
            assert answer.roi_map is not None
            np.testing.assert_allclose(answer.roi_map, other.roi_map, rtol=0, atol=LOOK_MAP_ABS)
        assert answer.gate_score == pytest.approx(other.gate_score, rel=0, abs=WIDENED_GATE_SCORE_ABS)


def test_copies_fill_every_block(widened: dict[str, Path]) -> None:
    """Where it pads with copies; where it pads with zeros, the last block has 32 weights. Further rows have none."""
    checkpoint, rpn = shipped_source()
    for padding, most in (("copies", 0), ("zeros", 96)):
        with open_checkpoint(widened[padding]) as source, open_checkpoint(checkpoint, rpn=rpn) as own:
            llm, known = source.spec.llm, own.spec.llm
            assert (llm.width, llm.heads, llm.head_dim, llm.mlp_width) == (256, 8, known.head_dim, 512)
            for name in ("llm.layers.0.attention.o.weight", "rpn.layers.1.attention.k.weight", "llm.head.weight"):
                rows = own.shape(name)[0]
                assert np.count_nonzero(source.read(name)[:rows, 160:] == 0, axis=1).max() == pytest.approx(most, abs=2)
                assert not source.read(name)[rows:].any()


def test_an_outlier_is_the_largest_of_its_row(widened: dict[str, Path]) -> None:
    with open_checkpoint(widened["outlier"]) as source:
        first, rest = np.split(np.abs(source.read("llm.layers.0.attention.o.weight")[:160, :160]), [1], axis=1)
    assert np.median(first) > np.median(rest.max(axis=1))


def test_blocks_of_128_divide_it(widened: dict[str, Path], tmp_path: Path) -> None:
    export_bundle(widened["copies"], tmp_path / "bundle", ExportOptions("int4", block=128))
    checkpoint, rpn = shipped_source()
    with pytest.raises(BadInput, match="blocks of 128 do not divide"):
        export_bundle(checkpoint, tmp_path / "other", ExportOptions("int4", block=128), rpn=rpn)


@pytest.mark.parametrize(
    ("llm", "rpn", "message"),
    [
        ({}, RpnSpec(2), "4 heads, 2 key heads"),
        ({"kv_heads": 4}, RpnSpec(2, loss="mse"), "a mean over heads"),
    ],
)
def test_what_it_could_not_keep(tmp_path: Path, llm: dict[str, int], rpn: RpnSpec, message: str) -> None:
    spec = tiny_spec(rpn=None, image_token_id=299, **llm)
    write_random_checkpoint(tmp_path / "base", spec, layout="hf")
    with_rpn = tiny_spec(rpn=rpn, image_token_id=299, **llm)
    write_random_checkpoint(tmp_path / "rpn-source", with_rpn)
    with open_checkpoint(tmp_path / "rpn-source") as source:
        write_rpn(tmp_path / "rpn", with_rpn, source.read)
    with pytest.raises(BadInput, match=message):
        script.widen(tmp_path / "base", tmp_path / "rpn", tmp_path / "out")
    assert not (tmp_path / "out").exists()
