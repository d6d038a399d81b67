"""`sdrpn export`: what it prints, and that a refusal is one line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdrpn.bundle import MANIFEST_NAME, open_bundle
from sdrpn.checkpoint import Checkpoint, write_random_checkpoint
from sdrpn.export.graph import GraphAuthor
from sdrpn.spec import ModelSpec
from tests.cli.command import Command, refusal


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def verify(bundle: Path) -> None:
    opened = open_bundle(bundle)
    opened.verify(opened.manifest.files)


class TestOutput:
    def test_what_was_written(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        outcome = sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle")
        assert (outcome.code, outcome.err) == (0, "")
        first, *others = outcome.out.splitlines()
        assert first.startswith(f"{tmp_path / 'bundle'}: fused-fp32, ")
        assert first.endswith(" in 4 graphs")
        assert others == [
            "no tokenizer in this checkpoint: the bundle answers by token ids only, not through `sdrpn ask`"
        ]
        verify(tmp_path / "bundle")

    def test_json(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        options = ("--precision", "fp16", "--dialect", "primitive", "--max-context", 128, "--json")
        found = sdrpn("export", tiny_checkpoint, "--out", bundle, *options).json()
        manifest = open_bundle(bundle).manifest
        files = manifest.variants["primitive-fp16"].files
        assert found == {
            "bundle": str(bundle),
            "variant": "primitive-fp16",
            "variants": ["primitive-fp16"],
            "size_bytes": sum((bundle / name).stat().st_size for name in files),
            "max_context": 128,
            "rpn": True,
            "tokenizer": False,
            "source": {"checkpoint": "checkpoint", "layout": "sdrpn", "sha256": manifest.source["sha256"]},
        }

    def test_adding_a_variant(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        arguments = ("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--json")
        sdrpn(*arguments)
        found = sdrpn(*arguments, "--precision", "fp16").json()
        assert found["variants"] == ["fused-fp16", "fused-fp32"]
        verify(tmp_path / "bundle")

    def test_a_plain_llava_is_said_to_be_one(self, sdrpn: Command, tiny_spec: ModelSpec, tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "plain", dataclasses.replace(tiny_spec, rpn=None), layout="llava")
        outcome = sdrpn("export", tmp_path / "plain", "--out", tmp_path / "bundle")
        assert outcome.code == 0
        assert "no RPN in this checkpoint: the bundle answers as plain LLaVA (--no-roi); see --rpn\n" in outcome.out
        assert " in 3 graphs\n" in outcome.out

    def test_a_relative_out(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert sdrpn("export", tiny_checkpoint, "--out", "a/b").code == 0
        verify(tmp_path / "a" / "b")


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path: Path) -> Iterator[None]:
        """Whatever a test makes in advance lies in `tmp_path/given`."""
        (tmp_path / "given").mkdir()
        yield
        assert [path.name for path in tmp_path.iterdir()] == ["given"]

    def test_a_folder_that_is_not_there(self, sdrpn: Command, tmp_path: Path) -> None:
        message = refusal(sdrpn("export", tmp_path / "nowhere", "--out", tmp_path / "bundle"))
        assert (
            message
            == f"{tmp_path / 'nowhere'} is not a folder; expected a checkpoint's folder, with config.json and weights"
        )

    def test_a_broken_config(self, sdrpn: Command, tmp_path: Path) -> None:
        (tmp_path / "given" / "config.json").write_text("{")
        message = refusal(sdrpn("export", tmp_path / "given", "--out", tmp_path / "bundle"))
        assert str(tmp_path / "given" / "config.json") in message

    def test_truncated_weights(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "given" / "checkpoint")
        os.truncate(checkpoint / "model.safetensors", 5000)
        message = refusal(sdrpn("export", checkpoint, "--out", tmp_path / "bundle"))
        assert str(checkpoint / "model.safetensors") in message

    def test_a_vision_tower_that_is_not_there(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        arguments = ("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--vision-tower", tmp_path / "tower")
        assert str(tmp_path / "tower") in refusal(sdrpn(*arguments))

    def test_an_rpn_that_is_not_there(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        arguments = ("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--rpn", tmp_path / "rpn.safetensors")
        assert str(tmp_path / "rpn") in refusal(sdrpn(*arguments))

    def test_out_holds_something_else(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "given" / "thesis.tex").write_text("do not lose me")
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "given"))
        assert (
            message == f"{tmp_path / 'given'} is not empty and no bundle (it has no manifest.json); name another --out"
        )
        assert listing(tmp_path / "given") == ["thesis.tex"]

    def test_out_is_a_file(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "given" / "file").write_text("x")
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "given" / "file"))
        assert message.endswith("/file is a file; expected a new or an empty folder, or a bundle: name another --out")

    @pytest.mark.parametrize("wanted", [16, 257])
    def test_a_context_out_of_range(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, wanted: int) -> None:
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--max-context", wanted))
        assert message.startswith(f"--max-context is {wanted}; expected 17 ")

    @pytest.mark.parametrize("wanted", ["0", "-5", "many", "1.5", ""])
    def test_a_context_that_is_no_number(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, wanted: str
    ) -> None:
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", f"--max-context={wanted}"))
        assert message.startswith("argument --max-context: ")

    @pytest.mark.parametrize("option", ["--precision=fp8", "--dialect=sparse", "--colour=blue"])
    def test_an_unknown_choice(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, option: str) -> None:
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", option))
        assert message.endswith("(see sdrpn export --help)") or option in message

    def test_no_out(self, sdrpn: Command, tiny_checkpoint: Path) -> None:
        assert "the following arguments are required: --out" in refusal(sdrpn("export", tiny_checkpoint))

    def test_another_checkpoints_bundle(
        self, sdrpn: Command, tiny_bundle: Path, tiny_spec: ModelSpec, tmp_path: Path
    ) -> None:
        bundle = shutil.copytree(tiny_bundle, tmp_path / "given" / "bundle")
        write_random_checkpoint(tmp_path / "given" / "other", tiny_spec, seed=1)
        before = listing(bundle), (bundle / MANIFEST_NAME).read_bytes()
        message = refusal(sdrpn("export", tmp_path / "given" / "other", "--out", bundle))
        assert message.startswith(f"{bundle} holds another export: its checkpoint digest differs (")
        assert (listing(bundle), (bundle / MANIFEST_NAME).read_bytes()) == before


class TestFailures:
    def test_a_value_that_fp16_cannot_hold(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Checkpoint.read
        monkeypatch.setattr(Checkpoint, "read", lambda self, name: original(self, name) * 1e6)
        outcome = sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--precision", "fp16")
        assert "fp16 ends at 65504; export with --precision fp32" in refusal(outcome, code=1)
        assert not list(tmp_path.iterdir())

    def test_ctrl_c(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(self: GraphAuthor, path: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(GraphAuthor, "save", interrupt)
        outcome = sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle")
        assert (outcome.code, outcome.out, outcome.err) == (130, "", "sdrpn: interrupted\n")
        assert not list(tmp_path.iterdir())


SLOW_TO_SAVE = """
import sys, time
from sdrpn.cli.main import main
from sdrpn.export.graph import GraphAuthor

def save(self, path):
    print("saving", flush=True)
    time.sleep(60)

GraphAuthor.save = save
sys.exit(main(["export", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle(tiny_checkpoint: Path, tmp_path: Path, number: int, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_SAVE, tiny_checkpoint, tmp_path / "bundle"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"saving\n"
        assert list(tmp_path.iterdir()), "a hidden temporary folder"
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert b"Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())
