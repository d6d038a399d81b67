"""Options of models whose pictures have a budget and that may have a gate: what they do, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import Command, refusal
from tests.families.qwen.bundles import qwen_bundle


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q-Zoom on Qwen3-VL, with a gate."""
    return qwen_bundle("q-zoom-3", tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD-RPN on Qwen2.5-VL."""
    return qwen_bundle("sd-rpn", tmp_path_factory.mktemp("ungated"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(path)
    return path


def asked(sdrpn: Command, bundle: Path, picture: Path, *options: object) -> dict[str, object]:
    outcome = sdrpn("ask", bundle, picture, "what is this?", "--json", "--max-new-tokens", 2, *options)
    assert outcome.code == 0, outcome.err
    found: dict[str, object] = json.loads(outcome.out)
    return found


def image_tokens(answer: dict[str, object]) -> int:
    tokens = answer["tokens"]
    assert isinstance(tokens, dict)
    return int(tokens["image"])


def test_the_budget_decides_how_many_tokens_a_picture_has(sdrpn: Command, gated: Path, picture: Path) -> None:
    assert image_tokens(asked(sdrpn, gated, picture, "--image-tokens", "4:24")) == 20  # 4 rows of 5
    assert image_tokens(asked(sdrpn, gated, picture, "--image-tokens", "80:100")) == 88  # 8 rows of 11
    # 400 x 300 px are 9 x 12.5 cells of 32 px; half to even, in either way.
    assert image_tokens(asked(sdrpn, gated, picture)) == 108
    official = asked(sdrpn, gated, picture, "--resize", "official")
    assert image_tokens(official) == 10 * 12  # first to 392 x 308 px, whose rows round up


def test_a_preset_has_its_image_tokens(sdrpn: Command, gated: Path, picture: Path) -> None:
    """At least 256 for documents, 128 for reading."""
    assert image_tokens(asked(sdrpn, gated, picture, "--preset", "document", "--no-roi")) == 14 * 19
    assert image_tokens(asked(sdrpn, gated, picture, "--preset", "reading", "--no-roi")) == 10 * 14
    assert image_tokens(asked(sdrpn, gated, picture, "--preset", "document", "--image-tokens", "4:24")) == 20


def test_the_gate_ends_with_the_first_look(sdrpn: Command, gated: Path, picture: Path) -> None:
    small = "--image-tokens", "4:24", "--threshold", "0.001"
    again = asked(sdrpn, gated, picture, *small, "--gate-threshold", "-1")
    assert again["boxes_xyxy_px"]
    outcome = sdrpn("ask", gated, picture, "what?", "--json", "--max-new-tokens", 2, *small, "--gate-threshold", "1.5")
    once = json.loads(outcome.out)
    assert once["boxes_xyxy_px"] == []
    assert once["note"] == "nothing inserted: no score of the gate reaches 1.5"


def test_looks_have_the_same_options(sdrpn: Command, gated: Path, picture: Path) -> None:
    options = "--jsonl", "--image-tokens", "4:24", "--threshold", "0.001"
    line = json.loads(sdrpn("look", gated, picture, "what is this?", *options).out)
    assert line["looks"][0]["boxes"]
    shorter = sdrpn("look", gated, picture, "what is this?", "--preset", "search", "--jsonl")
    assert "image_tokens are 512 to 4096; this bundle has 2048 positions" in refusal(shorter)
    steady = refusal(sdrpn("look", gated, picture, "what is this?", "--track"))
    assert "this one has a single box: leave it out (--track)" in steady


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "search"), "image_tokens are 1024 to 4096; this bundle has 2048 positions for the whole prompt"),
        (("--image-tokens", "4:2100"), "image_tokens are 4 to 2100; this bundle has 2048 positions"),
        (("--gate-threshold", "0.1"), "this model has no gate; leave it out (--gate-threshold)"),
        (("--upscale", "mask"), "upscale is 'mask'; this model looks at one box around all cells above"),
        (("--threshold", "-0.4"), "threshold is -0.4; expected a number between 0 and 1 for this model's map"),
        (("--image-tokens", "3:20"), "'3:20' is not LEAST:MOST, two numbers from 4 on in ascending order"),
        (("--image-tokens", "30:20"), "'30:20' is not LEAST:MOST"),
        (("--image-tokens", "a:b"), "'a:b' is not LEAST:MOST"),
        (("--preset", "poem"), "argument --preset: 'poem' is unknown; expected one of"),
    ],
)
def test_what_a_model_cannot_use(
    sdrpn: Command, ungated: Path, picture: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in refusal(sdrpn("ask", ungated, picture, "what is this?", *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "scene"), "the preset 'scene' is for Qwen2.5-VL and Qwen3-VL"),
        (("--image-tokens", "16:20"), "this model turns every picture into 144 tokens: leave them out"),
    ],
)
def test_the_shipped_model_has_no_budget(sdrpn: Command, picture: Path, options: tuple[str, ...], message: str) -> None:
    assert message in refusal(sdrpn("ask", "demo", picture, "what is this?", *options))


@pytest.mark.parametrize(
    ("wh", "message"),
    [
        ((27, 300), "the picture is 27 x 300 px; expected at least 28 px on each side: enlarge it"),
        ((6000, 29), "the picture is 6000 x 29 px; expected a longer side of at most 200 times the shorter: cut it"),
    ],
)
def test_pictures_too_small_or_too_long(
    sdrpn: Command, ungated: Path, tmp_path: Path, wh: tuple[int, int], message: str
) -> None:
    path = tmp_path / "odd.png"
    Image.new("RGB", wh).save(path)
    assert message in refusal(sdrpn("ask", ungated, path, "what is this?"))


def test_bench_measures_the_cases_of_the_model(sdrpn: Command, gated: Path, ungated: Path) -> None:
    options = "--runs", 1, "--new-tokens", 1, "--image-tokens", "4:24", "--json"
    outcome = sdrpn("bench", gated, *options)
    assert outcome.code == 0, outcome.err
    cases = {row["case"]: row for row in json.loads(outcome.out)["cases"]}
    assert list(cases) == ["plain", "gate-skips", "no-box", "one-box", "second-question"]
    assert cases["gate-skips"]["stages"]["gate"]["p50"] > 0
    assert cases["gate-skips"]["stages"]["rpn"]["p50"] == 0
    assert cases["one-box"]["stages"]["crop vision"]["p50"] > 0
    assert cases["plain"]["stages"]["gate"]["p50"] == 0
    message = refusal(sdrpn("bench", ungated, "--cases", "gate-skips", "--runs", 10))
    assert "this bundle's model has no case gate-skips; expected some of plain, no-box, one-box" in message


def test_an_evaluation_with_a_budget(sdrpn: Command, gated: Path, tmp_path: Path) -> None:
    options = "--task", "tags", "--samples", 2, "--methods", "plain,sdrpn,oracle-crop", "--out", tmp_path / "out"
    outcome = sdrpn("eval", gated, *options, "--image-tokens", "16:40", "--gate-threshold", "-1", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert set(found["methods"]) == {"plain", "sdrpn", "oracle-crop"}
    assert found["settings"]["model"]["image_tokens"] == [16, 40]
