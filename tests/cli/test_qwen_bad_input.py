"""What cannot be done with models of these families ends with one line and exit code 2; what can, is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint, write_rpn
from tests.cli.command import Command, refusal
from tests.families.qwen.bundles import qwen_bundle
from tests.families.qwen.models import KINDS


@pytest.fixture(scope="module")
def zoom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q-Zoom on Qwen2.5-VL with a gate: the checkpoint, and its bundle beside it."""
    folder = tmp_path_factory.mktemp("zoom")
    qwen_bundle("q-zoom-gate", folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the other family."""
    folder = tmp_path_factory.mktemp("other") / "checkpoint"
    write_random_checkpoint(folder, KINDS["q-zoom-3"], with_tokenizer=True)
    return folder


def copied(checkpoint: Path, to: Path, **entries: object) -> Path:
    """A checkpoint with other entries in its config.json."""
    shutil.copytree(checkpoint, to)
    path = to / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **entries}), encoding="utf-8")
    return to


def test_one_bundle_has_one_family(sdrpn: Command, zoom: Path, other: Path) -> None:
    before = (zoom / "bundle" / "manifest.json").read_bytes()
    message = refusal(sdrpn("export", other, "--out", zoom / "bundle", "--precision", "fp32"))
    assert "another" in message
    assert (zoom / "bundle" / "manifest.json").read_bytes() == before


def test_a_gate_needs_an_rpn(sdrpn: Command, zoom: Path, tmp_path: Path) -> None:
    gated = copied(zoom / "checkpoint", tmp_path / "gated")
    (path,) = gated.glob("*.safetensors")
    kept = {name: values for name, values in load_file(path).items() if "twig" not in name}
    assert any("high_res" in name for name in kept)
    save_file(kept, path)
    message = refusal(sdrpn("export", gated, "--out", tmp_path / "bundle"))
    assert "a gate" in message
    assert not (tmp_path / "bundle").exists()


def test_a_gate_has_the_rpn_s_layer(sdrpn: Command, zoom: Path, tmp_path: Path) -> None:
    elsewhere = copied(zoom / "checkpoint", tmp_path / "elsewhere", high_res_K=1)
    message = refusal(sdrpn("export", elsewhere, "--out", tmp_path / "bundle"))
    assert "high_res_K is 1, which is not supported; expected 3" in message


def test_an_rpn_of_another_depth_or_width(sdrpn: Command, zoom: Path, tmp_path: Path) -> None:
    """K and widths are those of rpn.json: one beyond the layers of the base, and one of another width, are refused."""
    write_random_checkpoint(tmp_path / "bare", KINDS["bare"], with_tokenizer=True)
    with open_checkpoint(zoom / "checkpoint") as source:
        (tmp_path / "rpn").mkdir()
        write_rpn(tmp_path / "rpn", source.spec, source.read)
    path = tmp_path / "rpn" / "rpn.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    (tap,) = [name for name in config if "tap" in name or name == "K"]
    path.write_text(json.dumps({**config, tap: 9}), encoding="utf-8")
    arguments = "export", tmp_path / "bare", "--rpn", tmp_path / "rpn" / "rpn.safetensors", "--out", tmp_path / "bundle"
    message = refusal(sdrpn(*arguments))
    assert "9" in message
    assert not (tmp_path / "bundle").exists()


def test_a_video_is_asked_about_frame_by_frame_or_not_at_all(sdrpn: Command, zoom: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + np.random.default_rng(0).bytes(3000))
    outcome = sdrpn("ask", zoom / "bundle", path, "what is this?")
    assert "clip.mp4" in refusal(outcome, outcome.code)
    assert outcome.code in (1, 2)  # a source that breaks off after it was opened is work that failed


def test_a_map_of_one_row_is_looked_at(sdrpn: Command, zoom: Path, tmp_path: Path) -> None:
    """Where the official code crashes."""
    Image.new("RGB", (4000, 30), (200, 30, 30)).save(tmp_path / "long.png")
    outcome = sdrpn(
        "ask", zoom / "bundle", tmp_path / "long.png", "what?", "--json", "--max-new-tokens", 1,
        "--threshold", "0.01", "--gate-threshold", "-1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    assert answer["tokens"]["image"] == 143
    assert all(0 <= x1 < x2 <= 4000 and (y1, y2) == (0, 30) for x1, y1, x2, y2 in answer["boxes_xyxy_px"])
