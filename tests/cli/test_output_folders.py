"""Folders that verbs write: a typo in a name makes none, and what was written is named on stderr."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Command, refusal

VERBS = [
    ("export", "{checkpoint}", "--out"),
    ("label", "{checkpoint}", "--data", "qa.jsonl", "--images", ".", "--heads", "official-7b", "--out"),
    ("heads", "{checkpoint}", "--data", "qa.jsonl", "--images", ".", "--out"),
    ("relabel", "labels", "--out"),
    ("train", "{checkpoint}", "--labels", "labels", "--out"),
    ("train", "{checkpoint}", "--labels", "labels", "--out", "rpn", "--taps-dir"),
    ("build", "demo", "--target", "rtx-4090", "--out"),
    ("build", "demo", "--target", "rtx-4090", "--timing-cache"),
    ("eval", "demo", "--task", "tags", "--out"),
    ("quantize", "{checkpoint}", "--data", "qa.jsonl", "--images", ".", "--report"),
]


@pytest.mark.parametrize("command", VERBS, ids=lambda command: f"{command[0]} {command[-1]}")
def test_a_folder_that_does_not_exist_is_not_made(
    sdrpn: Command, text_checkpoint: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "results").mkdir()
    arguments = [part.replace("{checkpoint}", str(text_checkpoint)) for part in command]
    line = refusal(sdrpn(*arguments, tmp_path / "reslts" / "new"))
    assert re.search(
        rf"{command[-1]} \S+new is in a folder that does not exist; did you mean results\?; make it ", line
    )
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_an_export_names_its_bundle(sdrpn: Command, text_checkpoint: Path, tmp_path: Path) -> None:
    done = sdrpn("export", text_checkpoint, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert f"sdrpn: bundle: {tmp_path / 'bundle'}\n" in done.err
    assert "sdrpn: bundle" not in done.out
    again = sdrpn("export", text_checkpoint, "--out", tmp_path / "bundle", "--precision", "fp16", "--json")
    assert "sdrpn: bundle" not in again.err


LOADED = """
import sys
from sdrpn.cli.main import main
code = main(sys.argv[1:])
heavy = [name for name in ("torch", "onnx", "onnx_ir", "sympy", "accelerate") if name in sys.modules]
sys.exit(f"loaded: {heavy}" if heavy else code)
"""


@pytest.mark.parametrize(
    "command",
    [
        ("export", "{bad}", "--out", "new"),
        ("verify", "--exact", "demo", "--checkpoint", "{bad}"),
        ("verify", "demo", "--checkpoint", "{bad}"),
        ("label", "{bad}", "--data", "{qa}", "--images", ".", "--heads", "official-7b", "--out", "new"),
        ("heads", "{bad}", "--data", "{qa}", "--images", "."),
        ("eval", "{bad}", "--task", "tags"),
        ("relabel", "{bad}", "--out", "new"),
        ("train", "{bad}", "--labels", "{bad}", "--out", "new"),
    ],
    ids=lambda command: command[0],
)
def test_what_is_refused_does_not_wait_for_libraries(tmp_path: Path, command: tuple[str, ...]) -> None:
    """PyTorch and onnx take seconds to load: a checkpoint or labels are looked at first."""
    bad, questions = tmp_path / "bad", tmp_path / "qa.jsonl"
    bad.mkdir()
    (bad / "config.json").write_text('{"model_type": "bert"}')
    questions.write_text('{"image": "a.png", "question": "What?"}\n')
    arguments = [part.replace("{bad}", str(bad)).replace("{qa}", str(questions)) for part in command]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert re.search(r"bert|labels\.json", done.stderr)
