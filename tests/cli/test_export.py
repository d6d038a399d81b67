"""`sdrpn export`: what it prints, and that a refusal is one line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle
from sdrpn.checkpoint import Checkpoint, write_random_checkpoint
from sdrpn.export.graph import GraphAuthor
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec
from tests.cli.command import Command, refusal
from tests.damage import copied, cut, edit_json
from tests.limits import line_of
from tests.runtime.test_gates import write_gated

OFFICIAL = {
    "threshold": 0.15,
    "upscale": "mask",
    "max_ratio": None,
    "min_cells": 2,
    "max_share": 0.390625,
    "gate_threshold": None,
}


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def verify(bundle: Path) -> None:
    opened = open_bundle(bundle)
    opened.verify(opened.manifest.files)


def cut_a_shard(checkpoint: Path) -> None:
    """The weights in two files with an index, of which the second one is short."""
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, checkpoint / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint / "model.safetensors").unlink()
    cut(checkpoint / "model-2.safetensors")


Damage = Callable[[Path], object]
DAMAGE: dict[str, tuple[Damage, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "config cut off": (lambda folder: cut(folder / "config.json"), r"config\.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"copy of checkpoint"),
    "cut weights": (lambda folder: cut(folder / "model.safetensors"), r"model\.safetensors"),
    "cut header": (lambda folder: cut(folder / "model.safetensors", 0.001), r"model\.safetensors"),
    "cut shard": (cut_a_shard, r"model-2\.safetensors"),
    "another width": (
        lambda folder: edit_json(folder / "config.json", lambda config: config.update(intermediate_size=100)),
        r"has the shape \[\d+, \d+\]; expected \[\d+, \d+\]",
    ),
    "no vision tower": (lambda folder: shutil.rmtree(folder / "clip"), r"clip.*--vision-tower"),
    "cut vision tower": (lambda folder: cut(folder / "clip" / "model.safetensors"), r"clip/model\.safetensors"),
    "unreadable tokenizer": (
        lambda folder: cut(folder / "tokenizer.json"),
        r"tokenizer\.json is not a tokenizer that can be read",
    ),
}


class TestOutput:
    def test_what_was_written(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        outcome = sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle")
        assert (outcome.code, outcome.err) == (0, f"sdrpn: bundle: {tmp_path / 'bundle'}\n")
        first, pictures, *others = outcome.out.splitlines()
        assert first.startswith(f"{tmp_path / 'bundle'}: fused-fp32, ")
        assert first.endswith(" in 4 graphs")
        assert pictures.startswith("pictures: padded to squares (fit: pad)")
        assert others == [
            "looks again at cells above 0.15, of the official evaluation",
            "no tokenizer in this checkpoint: the bundle answers by token ids only, not through `sdrpn ask`",
        ]
        verify(tmp_path / "bundle")

    def test_json(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        options = ("--precision", "fp16", "--dialect", "primitive", "--max-context", 128, "--json")
        found = sdrpn("export", tiny_checkpoint, "--out", bundle, *options).json()
        manifest = open_bundle(bundle).manifest
        files = manifest.variants["primitive-fp16"].files
        assert [note.split(":")[0] for note in found.pop("notes")] == ["pictures"]
        assert found == {
            "format_version": 1,
            "bundle": str(bundle),
            "variant": "primitive-fp16",
            "variants": ["primitive-fp16"],
            "size_bytes": sum((bundle / name).stat().st_size for name in files),
            "max_context": 128,
            "rpn": True,
            "policy": {**OFFICIAL, "origin": "official"},
            "gate_threshold": None,
            "tokenizer": False,
            "prompt": "vicuna_v1",
            "source": {"checkpoint": "checkpoint", "layout": "sdrpn", "sha256": manifest.source["sha256"]},
        }

    def test_a_gate_and_its_threshold(self, sdrpn: Command, tmp_path: Path) -> None:
        rpn = write_gated(tmp_path, "layers", ModelPolicy(RoiPolicy(0.2, gate_threshold=0.31), "labels"))
        arguments = ("export", tmp_path / "base", "--rpn", rpn, "--out")
        said = sdrpn(*arguments, tmp_path / "bundle").out.splitlines()
        assert "gate: 2 layers; a score below 0.31 ends with the first look" in said
        assert sdrpn(*arguments, tmp_path / "other", "--json").json()["gate_threshold"] == 0.31

    def test_a_threshold_of_its_own(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        arguments = ("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--json")
        assert sdrpn(*arguments, "--threshold", 0.4).json()["policy"] == {
            **OFFICIAL,
            "threshold": 0.4,
            "origin": "given",
        }
        assert sdrpn(*arguments, "--precision", "fp16").json()["policy"]["threshold"] == 0.4  # of the whole bundle
        shown = sdrpn("inspect", tmp_path / "bundle").out
        assert "at cells above 0.4, given to the export" in " ".join(shown.split())

    def test_adding_a_variant(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        arguments = ("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--json")
        sdrpn(*arguments)
        found = sdrpn(*arguments, "--precision", "fp16").json()
        assert found["variants"] == ["fused-fp16", "fused-fp32"]
        verify(tmp_path / "bundle")

    def test_caches_in_8_bits_are_a_variant_on_the_same_weights(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        arguments = ("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--json")
        sdrpn(*arguments)
        before = set(open_bundle(tmp_path / "bundle").manifest.files)
        found = sdrpn(*arguments, "--kv-cache", "int8").json()
        assert (found["variant"], found["variants"]) == ("fused-fp32-kv-int8", ["fused-fp32", "fused-fp32-kv-int8"])
        added = set(open_bundle(tmp_path / "bundle").manifest.files) - before
        assert {name.split(".")[-1] for name in added} == {"onnx"}
        verify(tmp_path / "bundle")

    def test_a_plain_llava_is_said_to_be_one(self, sdrpn: Command, tiny_spec: ModelSpec, tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "plain", dataclasses.replace(tiny_spec, rpn=None), layout="llava")
        outcome = sdrpn("export", tmp_path / "plain", "--out", tmp_path / "bundle")
        assert outcome.code == 0
        assert "no RPN in this checkpoint: the bundle answers as the plain model (--no-roi); see --rpn\n" in outcome.out
        assert " in 3 graphs\n" in outcome.out

    def test_a_relative_out(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a").mkdir()
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

    @pytest.mark.parametrize("what", DAMAGE)
    def test_a_damaged_checkpoint(self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path, what: str) -> None:
        checkpoint = copied(text_checkpoint, tmp_path / "given")
        damage, message = DAMAGE[what]
        damage(checkpoint)
        assert re.search(message, refusal(sdrpn("export", checkpoint, "--out", tmp_path / "bundle")))

    def test_another_models_vision_tower(
        self, sdrpn: Command, tiny_checkpoint: Path, tiny_spec: ModelSpec, tmp_path: Path
    ) -> None:
        vision = dataclasses.replace(clip_of(tiny_spec), width=48)
        write_random_checkpoint(tmp_path / "given" / "other", dataclasses.replace(tiny_spec, vision=vision))
        tower = tmp_path / "given" / "other" / "clip"
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--vision-tower", tower))
        assert re.search(
            r"clip is the wrong vision tower: its width is 48, .* name the right one \(--vision-tower\)$",
            message,
        )

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
            message
            == f"{tmp_path / 'given'} is not empty and not a bundle (it has no manifest.json); name another (--out)"
        )
        assert listing(tmp_path / "given") == ["thesis.tex"]

    def test_out_is_a_file(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "given" / "file").write_text("x")
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "given" / "file"))
        assert message.endswith("/file is a file; expected a new or an empty folder, or a bundle: name another (--out)")

    @pytest.mark.parametrize("wanted", [16, 257])
    def test_a_context_out_of_range(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, wanted: int) -> None:
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--max-context", wanted))
        assert message.startswith(f"max_context is {wanted}; expected 17 ")

    @pytest.mark.parametrize("wanted", ["0", "-5", "many", "1.5", ""])
    def test_a_context_that_is_no_number(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, wanted: str
    ) -> None:
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", f"--max-context={wanted}"))
        assert message.startswith("argument --max-context: ")

    @pytest.mark.parametrize("option", ["--precision=fp7", "--dialect=sparse", "--colour=blue", "--kv-cache=int4"])
    def test_an_unknown_choice(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, option: str) -> None:
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", option))
        assert message.endswith("(see sdrpn export --help)") or option in message

    def test_caches_that_nothing_writes_into(self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
        outcome = sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--kv-cache", "fp8")
        assert "caches in fp8 are not supported by the dialect fused" in refusal(outcome)
        assert not (tmp_path / "bundle").exists()

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


class SmallDisk:
    """Files opened for writing take so many bytes in all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        original = Path.open

        def open_counting(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            stream = original(path, mode, *args, **options)
            return CountingStream(stream, self) if mode == "xb" else stream

        monkeypatch.setattr(Path, "open", open_counting)


class CountingStream:
    """A file on a small disk."""

    def __init__(self, stream: Any, disk: SmallDisk) -> None:
        self.stream, self.disk, self.seek = stream, disk, stream.seek

    def __enter__(self) -> CountingStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    def write(self, content: Any) -> None:
        self.disk.free_bytes -= memoryview(content).nbytes
        if self.disk.free_bytes < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.stream.write(content)


class TestFullDisk:
    """The tiny model's weights are about a megabyte."""

    @pytest.mark.parametrize("free_kilobytes", [0, 300, 900])
    def test_it_fills_up(
        self,
        sdrpn: Command,
        tiny_checkpoint: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        free_kilobytes: int,
    ) -> None:
        SmallDisk(monkeypatch, 1000 * free_kilobytes)
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle"), code=1)
        assert message.startswith(f"the disk is full: writing {tmp_path / 'bundle'} stopped after ")
        assert message.endswith("; nothing was left behind")
        assert not list(tmp_path.iterdir())

    def test_it_fills_up_while_a_variant_is_added(
        self, sdrpn: Command, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = copied(tiny_bundle, tmp_path)
        before = listing(tmp_path), (bundle / MANIFEST_NAME).read_bytes()
        SmallDisk(monkeypatch, 300_000)
        refusal(sdrpn("export", tiny_checkpoint, "--out", bundle, "--precision", "fp16"), code=1)
        assert (listing(tmp_path), (bundle / MANIFEST_NAME).read_bytes()) == before
        verify(bundle)

    def test_it_is_seen_before_anything_is_written(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        message = refusal(sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle"), code=1)
        assert re.search(
            r"bundle needs .* and its disk has .* free: .* are missing; .*; fp16 needs half of it", message
        )
        assert not list(tmp_path.iterdir())


class TestBaseInstall:
    """Without the libraries of [export]."""

    @pytest.mark.parametrize("library", ["onnxscript", "onnx_ir", "ml_dtypes"])
    def test_what_is_missing_is_named(self, tiny_checkpoint: Path, tmp_path: Path, library: str) -> None:
        done = run_without([library], "export", tiny_checkpoint, "--out", tmp_path / "bundle")
        expected = f"sdrpn export needs {library}, which is not installed; install it: pip install 'sdrpn[export]'"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sdrpn: error: {expected}\n")
        assert not list(tmp_path.iterdir())

    def test_ask_needs_none_of_them(self, text_bundle: Path, picture: Path) -> None:
        libraries = ["onnxscript", "onnx_ir", "onnx", "ml_dtypes", "torch", "transformers", "safetensors"]
        done = run_without(libraries, "ask", text_bundle, picture, "What?", "--max-new-tokens", 2)
        assert done.returncode == 0, done.stderr  # which may say that a region of so small a grid is too large
        assert done.stdout


def run_without(libraries: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own that cannot import these."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({libraries}))\n"
        f"from sdrpn.cli.main import main; sys.exit(main({[str(argument) for argument in arguments]}))"
    )
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


class TestFailures:
    def test_a_value_that_fp16_cannot_hold(
        self, sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Checkpoint.read
        monkeypatch.setattr(Checkpoint, "read", lambda self, name: original(self, name) * 1e6)
        outcome = sdrpn("export", tiny_checkpoint, "--out", tmp_path / "bundle", "--precision", "fp16")
        assert "fp16 ends at 65504; export in bf16 or fp32 (--precision)" in refusal(outcome, code=1)
        assert not list(tmp_path.iterdir())

    def test_ctrl_c_while_a_variant_is_added(
        self, sdrpn: Command, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(self: GraphAuthor, path: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(GraphAuthor, "save", interrupt)
        bundle = copied(tiny_bundle, tmp_path)
        before = listing(tmp_path), (bundle / MANIFEST_NAME).read_bytes()
        assert sdrpn("export", tiny_checkpoint, "--out", bundle, "--precision", "fp16").code == 130
        assert (listing(tmp_path), (bundle / MANIFEST_NAME).read_bytes()) == before
        verify(bundle)

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
        assert line_of(process, process.stdout) == b"saving\n"
        assert list(tmp_path.iterdir()), "a hidden temporary folder"
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert b"Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())
