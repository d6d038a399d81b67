"""`sdrpn export --method gptq`: calibrated on questions about pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.calibration import CalibrationPrompts
from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.labels.questions import DataQuestion
from tests.cli.command import Command, refusal
from tests.export.graph_runner import GraphRunner
from tests.pictures import photo

VARIANT = "fused-int4-cpu"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Some questions, and `images` beside them."""
    (tmp_path / "images").mkdir()
    Image.fromarray(photo()).save(tmp_path / "images" / "a.png")
    lines = [{"image": "a.png", "question": text, "answer": "EXIT"} for text in ("What is that?", "Where?", "Which?")]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def arguments(checkpoint: Path, out: Path, data: Path) -> tuple[object, ...]:
    options = ("--precision", "int4", "--method", "gptq", "--calibrate", data, "--images", data.parent / "images")
    return ("export", checkpoint, "--out", out, *options)


def test_taps_are_nearer_than_with_rounding(
    sdrpn: Command, text_checkpoint: Path, tmp_path: Path, data: Path, text_bundle: Path
) -> None:
    assert sdrpn(*arguments(text_checkpoint, tmp_path / "gptq", data)).code == 0
    export_bundle(text_checkpoint, tmp_path / "rtn", ExportOptions("int4"))
    exact = GraphRunner(text_bundle, "fused-fp32")
    with open_checkpoint(text_checkpoint) as checkpoint:
        question = DataQuestion("new", "a.png", "What is written there?")
        prompts = CalibrationPrompts((question,), data.parent / "images", tokenizer_of(checkpoint))
        embeds = prompts.rows(checkpoint)[0].embeds.numpy()[None]  # a question that it was not calibrated on
    runners = [exact, *(GraphRunner(tmp_path / name, VARIANT) for name in ("rtn", "gptq"))]
    expected, *found = (run.run("trunk", embeds, run.caches("trunk", embeds.shape[1]), 0)["tap"] for run in runners)
    rounded, fitted = (float(np.square(tap - expected).mean()) for tap in found)
    assert fitted < 0.9 * rounded, f"{fitted:.2e} against {rounded:.2e}"


def test_files_are_of_one_calibration(sdrpn: Command, text_checkpoint: Path, tmp_path: Path, data: Path) -> None:
    command = arguments(text_checkpoint, tmp_path / "bundle", data)
    assert sdrpn(*command).code == 0
    first = codes_of(tmp_path / "bundle")
    data.write_text(data.read_text("utf-8").replace("Which?", "Who?"), "utf-8")
    assert sdrpn(*command).code == 0
    second = codes_of(tmp_path / "bundle")
    assert len(first) == len(second) > 0
    assert not first & second
    assert sdrpn(*command).code == 0  # nothing is computed again
    assert codes_of(tmp_path / "bundle") == second
    recorded = open_bundle(tmp_path / "bundle").variant(VARIANT).quantization
    assert recorded is not None
    assert all(recorded["calibration"] in name for name in second)


def codes_of(bundle: Path) -> set[str]:
    return {path.name for path in (bundle / "weights").glob("*gptq*")}


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_inputs_of_products_are_rounded_after_a_calibration(
    sdrpn: Command, text_checkpoint: Path, tmp_path: Path, data: Path, precision: str
) -> None:
    command = ("export", text_checkpoint, "--out", tmp_path / "bundle", "--precision", precision)
    calibration = ("--calibrate", data, "--images", data.parent / "images")
    assert sdrpn(*command, *calibration).code == 0
    recorded = open_bundle(tmp_path / "bundle").variant(f"fused-{precision}").quantization
    assert recorded is not None
    assert (recorded["format"], recorded["inputs"], len(recorded["calibration"])) == (precision, precision, 12)


class TestRefusals:
    def test_a_picture_that_is_none(self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path, data: Path) -> None:
        (data.parent / "images" / "a.png").write_text("no picture")
        message = refusal(sdrpn(*arguments(text_checkpoint, tmp_path / "bundle", data)))
        assert "a.png is not a picture that can be read" in message
        assert not (tmp_path / "bundle").exists()

    def test_nvfp4_without_a_calibration(self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path) -> None:
        command = ("export", text_checkpoint, "--out", tmp_path / "bundle", "--precision", "nvfp4")
        assert "a calibration needs questions and their images" in refusal(sdrpn(*command))

    def test_no_question(self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path, data: Path) -> None:
        data.write_text("\n", "utf-8")
        message = refusal(sdrpn(*arguments(text_checkpoint, tmp_path / "bundle", data)))
        assert "holds no question" in message
        assert not (tmp_path / "bundle").exists()

    def test_a_picture_that_is_not_there(
        self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path, data: Path
    ) -> None:
        (data.parent / "images" / "a.png").unlink()
        assert "a.png does not exist" in refusal(sdrpn(*arguments(text_checkpoint, tmp_path / "bundle", data)))

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--precision", "int4", "--method", "gptq"), "a calibration needs questions and their images"),
            (
                ("--precision", "int4", "--calibrate", "qa.jsonl"),
                "--calibrate, --images, --device and --threads are for",
            ),
            (("--precision", "fp16", "--images", "."), "--calibrate, --images, --device and --threads are for"),
        ],
    )
    def test_what_does_not_go_together(
        self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path, options: tuple[str, ...], told: str
    ) -> None:
        assert told in refusal(sdrpn("export", text_checkpoint, "--out", tmp_path / "bundle", *options))

    def test_int8(self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path, data: Path) -> None:
        command = ["int8" if word == "int4" else word for word in arguments(text_checkpoint, tmp_path / "bundle", data)]
        assert refusal(sdrpn(*command)) == ("method gptq is for int4, where rounding matters; got int8: use rtn")
