"""Writing bundles: shared weights, added variants, refusals, and nothing left behind whatever goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.bundle.bundle import FORMAT_VERSION, MANIFEST_NAME, open_bundle
from sdrpn.checkpoint import Checkpoint, open_checkpoint, write_random_checkpoint
from sdrpn.errors import BadBundle, BadCheckpoint, BadInput, RunFailed, SdrpnError
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.graph import GraphAuthor
from sdrpn.host import atomic, listed_files
from sdrpn.method.spec import ModelSpec
from tests.export.graph_runner import GraphRunner

FUSED, FUSED_HALF = ExportOptions(), ExportOptions("fp16")
PRIMITIVE, PRIMITIVE_HALF = ExportOptions(dialect="primitive"), ExportOptions("fp16", "primitive")
GROUPS = ("trunk", "rpn", "tail", "vision")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """fused-fp32 and primitive-fp32 of the tiny model, to add to or to break."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def checkpoint_copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint, to change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def verify_all(bundle: Path) -> None:
    opened = open_bundle(bundle)
    opened.verify(opened.manifest.files)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def logits(bundle: Path, variant: str) -> Any:
    """What the variant answers; proof that its graphs find their weights."""
    runner = GraphRunner(bundle, variant)
    pixels = np.zeros((1, 3, 56, 56), np.float32)
    embeds = runner.call("vision", {"pixel_values": pixels})["image_embeds"]
    tap = runner.run("trunk", embeds, runner.caches("trunk", 32), 0)["tap"]
    return runner.run("tail", tap, runner.caches("tail", 32), 0)["logits"]


class TestOneVariant:
    def test_exactly_what_the_manifest_lists_is_there(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        manifest = export_bundle(tiny_checkpoint, tmp_path / "new" / "bundle")
        bundle = tmp_path / "new" / "bundle"
        assert files_of(bundle).keys() == {*manifest.files, MANIFEST_NAME}
        assert open_bundle(bundle).manifest == manifest
        verify_all(bundle)
        variant = manifest.variants["fused-fp32"]
        assert manifest.files.keys() == set(variant.files)
        assert list(manifest.variants) == ["fused-fp32"]
        assert (variant.opset, variant.embedding_dtype) == (24, "float32")

    def test_where_it_comes_from(self, tiny_checkpoint: Path, tiny_bundle: Path, tiny_spec: ModelSpec) -> None:
        manifest = open_bundle(tiny_bundle).manifest
        with open_checkpoint(tiny_checkpoint) as checkpoint:
            assert manifest.source == {"checkpoint": "checkpoint", "layout": "sdrpn", "sha256": checkpoint.digest()}
        assert manifest.tools.keys() >= {"sdrpn", "onnxscript", "onnx-ir"}
        # Without a template of its own the folder gets its family's usual one.
        prompt = dataclasses.replace(tiny_spec.prompt, template="vicuna_v1")
        assert manifest.spec == dataclasses.replace(tiny_spec, prompt=prompt)
        assert manifest.max_context == 256

    def test_no_path_of_the_machine_is_in_it(self, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
        assert str(tiny_checkpoint.parent) not in (tiny_bundle / MANIFEST_NAME).read_text()

    def test_the_same_export_gives_the_same_bytes(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            export_bundle(tiny_checkpoint, tmp_path / name, PRIMITIVE_HALF)
        assert files_of(tmp_path / "one") == files_of(tmp_path / "two")

    def test_the_embedding_table_is_the_checkpoints(self, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
        table = np.fromfile(tiny_bundle / "weights" / "embed.fp32.bin", np.float32).reshape(96, 64)
        with open_checkpoint(tiny_checkpoint) as checkpoint:
            np.testing.assert_array_equal(table, checkpoint.read("llm.embed.weight"))

    def test_an_empty_folder_is_filled(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        export_bundle(tiny_checkpoint, tmp_path / "empty")
        verify_all(tmp_path / "empty")

    def test_progress_ends_at_the_total(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        told = list[tuple[int, int]]()
        manifest = export_bundle(
            tiny_checkpoint, tmp_path / "b", progress=lambda done, total: told.append((done, total))
        )
        weights = sum(info.size_bytes for name, info in manifest.files.items() if name.endswith(".bin"))
        assert {total for _, total in told} == {2 * weights}  # written, then hashed
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1][0] == 2 * weights

    def test_no_rpn(self, tiny_spec: ModelSpec, tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "plain", dataclasses.replace(tiny_spec, rpn=None), layout="llava")
        manifest = export_bundle(tmp_path / "plain", tmp_path / "bundle")
        assert manifest.spec.rpn is None
        assert manifest.variants["fused-fp32"].graphs.keys() == {"vision", "trunk", "tail"}
        assert not [name for name in manifest.files if "rpn" in name]
        verify_all(tmp_path / "bundle")
        assert np.isfinite(logits(tmp_path / "bundle", "fused-fp32")).all()

    def test_shared_key_heads(self, tiny_spec: ModelSpec, tmp_path: Path) -> None:
        spec = dataclasses.replace(tiny_spec, llm=dataclasses.replace(tiny_spec.llm, kv_heads=2))
        write_random_checkpoint(tmp_path / "gqa", spec)
        manifest = export_bundle(tmp_path / "gqa", tmp_path / "bundle", PRIMITIVE)
        caches = [t for t in manifest.variants["primitive-fp32"].graphs["trunk"].inputs if "cache" in t.name]
        assert {cache.dims for cache in caches} == {("batch", 2, "cache_length", 16)}

    def test_a_bfloat16_checkpoint(self, tiny_spec: ModelSpec, tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "bf16", tiny_spec, dtype="bfloat16")
        export_bundle(tmp_path / "bf16", tmp_path / "bundle")
        table = np.fromfile(tmp_path / "bundle" / "weights" / "embed.fp32.bin", np.uint32)
        assert not (table & 0xFFFF).any()  # bfloat16 is the upper half of a float32
        assert np.isfinite(logits(tmp_path / "bundle", "fused-fp32")).all()

    def test_a_shorter_context(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        manifest = export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions(max_context=100))
        assert manifest.max_context == 100

    def test_fp16_overflow_leaves_nothing(self, checkpoint_copy: Path, tmp_path: Path) -> None:
        change_tensor(checkpoint_copy, "model.layers.1.mlp.down_proj.weight", 70000.0)
        message = r"llm\.layers\.1\.mlp\.down\.weight holds 7e\+04, fp16 ends at 65504; export in bf16 or fp32"
        with pytest.raises(RunFailed, match=message):
            export_bundle(checkpoint_copy, tmp_path / "bundle", FUSED_HALF)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
        export_bundle(checkpoint_copy, tmp_path / "bundle", FUSED)


def change_tensor(checkpoint: Path, name: str, value: float) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name][0, 0] = value
    save_file(tensors, checkpoint / "model.safetensors")


class TestSeveralVariants:
    def test_equal_bytes_are_stored_once(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        sizes = {}
        for options in (FUSED, PRIMITIVE, FUSED_HALF, PRIMITIVE_HALF):
            export_bundle(tiny_checkpoint, tmp_path / "all", options)
            export_bundle(tiny_checkpoint, tmp_path / options.variant, options)
            sizes[options.variant] = sum(map(len, files_of(tmp_path / options.variant).values()))
        opened = open_bundle(tmp_path / "all")
        weights = {
            name: {file for file in variant.files if file.endswith(".bin")}
            for name, variant in opened.manifest.variants.items()
        }
        assert weights["fused-fp32"] == weights["primitive-fp32"]
        assert weights["fused-fp16"] == weights["primitive-fp16"]
        norms = {f"weights/{group}.norm.fp32.bin" for group in GROUPS}
        assert weights["fused-fp32"] & weights["fused-fp16"] == norms
        assert sum(map(len, files_of(tmp_path / "all").values())) < 0.6 * sum(sizes.values())
        verify_all(tmp_path / "all")
        for options in (FUSED, PRIMITIVE, FUSED_HALF, PRIMITIVE_HALF):
            alone, together = files_of(tmp_path / options.variant), files_of(tmp_path / "all")
            assert all(together[name] == content for name, content in alone.items() if name != MANIFEST_NAME)

    def test_weights_that_are_there_are_neither_read_nor_copied(
        self, tiny_checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (copy / "weights" / "trunk.fp32.bin").stat().st_ino
        monkeypatch.setattr(Checkpoint, "read", lambda self, name: pytest.fail(f"{name} was read"))
        export_bundle(tiny_checkpoint, copy, PRIMITIVE)
        assert (copy / "weights" / "trunk.fp32.bin").stat().st_ino == before  # a hard link

    def test_a_file_system_without_hard_links(
        self, tiny_checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        export_bundle(tiny_checkpoint, copy, FUSED_HALF)
        verify_all(copy)

    def test_adding_a_variant_keeps_the_others(self, tiny_checkpoint: Path, copy: Path) -> None:
        before, answers = files_of(copy), logits(copy, "primitive-fp32")
        manifest = export_bundle(tiny_checkpoint, copy, FUSED_HALF)
        after = files_of(copy)
        assert manifest.variants.keys() == {"fused-fp32", "primitive-fp32", "fused-fp16"}
        assert {name: after[name] for name in before if name != MANIFEST_NAME} == {
            name: content for name, content in before.items() if name != MANIFEST_NAME
        }
        verify_all(copy)
        np.testing.assert_array_equal(logits(copy, "primitive-fp32"), answers)

    def test_other_stages_files_are_kept(self, tiny_checkpoint: Path, copy: Path) -> None:
        (copy / "engines" / "desktop").mkdir(parents=True)
        (copy / "engines" / "desktop" / "trunk.engine").write_bytes(b"plan")
        export_bundle(tiny_checkpoint, copy, FUSED_HALF)
        assert (copy / "engines" / "desktop" / "trunk.engine").read_bytes() == b"plan"

    def test_a_link_to_a_folder_of_another_stage_is_kept(self, tiny_checkpoint: Path, copy: Path) -> None:
        """Such as engines on another disk; by a name that is relative to the bundle as well."""
        elsewhere = copy.parent / "large disk" / "desktop"
        elsewhere.mkdir(parents=True)
        (elsewhere / "trunk.engine").write_bytes(b"plan")
        (copy / "engines").symlink_to(elsewhere.parent)
        (copy / "optimized").symlink_to(Path("..", "large disk"))
        export_bundle(tiny_checkpoint, copy, FUSED_HALF)
        for name in ("engines", "optimized"):
            assert (copy / name / "desktop" / "trunk.engine").read_bytes() == b"plan"
        assert [path.name for path in elsewhere.iterdir()] == ["trunk.engine"]

    def test_the_same_variant_again(self, tiny_checkpoint: Path, copy: Path) -> None:
        before = files_of(copy)
        export_bundle(tiny_checkpoint, copy, FUSED)
        assert files_of(copy) == before

    def test_what_is_linked_to_elsewhere_is_not_written_through(self, tiny_checkpoint: Path, copy: Path) -> None:
        """A reader may still hold the files of the bundle that is being replaced."""
        alias = copy.parent / "hard link"
        os.link(copy / "trunk.fused-fp32.onnx", alias)
        content = alias.read_bytes()
        export_bundle(tiny_checkpoint, copy, FUSED)
        assert alias.read_bytes() == content
        assert not alias.samefile(copy / "trunk.fused-fp32.onnx")

    def test_a_damaged_bundle_is_not_added_to(self, tiny_checkpoint: Path, copy: Path) -> None:
        (copy / "weights" / "tail.fp32.bin").unlink()
        message = r"tail\.fp32\.bin is missing; export the bundle again: remove .*bundle first, or name another folder"
        with pytest.raises(BadBundle, match=message):
            export_bundle(tiny_checkpoint, copy, FUSED_HALF)

    def test_a_bundle_of_another_version_is_not_added_to(self, tiny_checkpoint: Path, copy: Path) -> None:
        text = (copy / MANIFEST_NAME).read_text()
        (copy / MANIFEST_NAME).write_text(text.replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 7'))
        with pytest.raises(BadBundle, match=r"format version 7, .*: remove .*bundle first, or name another folder"):
            export_bundle(tiny_checkpoint, copy, FUSED_HALF)

    def test_weights_are_not_shared_unless_they_are_sound(
        self, tiny_checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also the large ones, which are not looked at otherwise."""
        monkeypatch.setattr(listed_files, "SMALL_FILE_BYTES", 0)
        weights = bytearray((copy / "weights" / "tail.fp32.bin").read_bytes())
        weights[0] ^= 1
        (copy / "weights" / "tail.fp32.bin").write_bytes(weights)
        with pytest.raises(BadBundle, match=r"tail\.fp32\.bin was changed: .*: remove .*bundle first, or name another"):
            export_bundle(tiny_checkpoint, copy, PRIMITIVE)
        export_bundle(tiny_checkpoint, copy, PRIMITIVE_HALF)  # shares no file with it

    def test_progress_counts_the_weights_that_are_reused(self, tiny_checkpoint: Path, copy: Path) -> None:
        told = list[tuple[int, int]]()
        export_bundle(tiny_checkpoint, copy, FUSED_HALF, progress=lambda done, total: told.append((done, total)))
        assert told[-1][0] == told[-1][1]


class TestRefusals:
    """Before anything is written."""

    def refused(self, checkpoint: Path, out: Path, options: ExportOptions, message: str) -> None:
        before = files_of(out) if out.is_dir() else None
        beside = sorted(path.name for path in out.parent.iterdir())
        with pytest.raises(BadInput, match=message) as error:
            export_bundle(checkpoint, out, options)
        assert "\n" not in str(error.value)
        assert (files_of(out) if out.is_dir() else None) == before
        assert sorted(path.name for path in out.parent.iterdir()) == beside

    def test_another_checkpoint(self, tiny_spec: ModelSpec, copy: Path, tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "other", tiny_spec, seed=1)
        message = (
            r"holds another export: its checkpoint digest differs \(\w{12} there, \w{12} here\); name another folder"
        )
        self.refused(tmp_path / "other", copy, FUSED_HALF, message)

    def test_another_context(self, tiny_checkpoint: Path, copy: Path) -> None:
        message = r"holds another export: its max_context differs \(256 there, 100 here\); name another folder"
        self.refused(tiny_checkpoint, copy, ExportOptions("fp16", max_context=100), message)

    @pytest.mark.parametrize("wanted", [0, -1, 16, 257, 10**9])
    def test_a_context_out_of_range(self, tiny_checkpoint: Path, tmp_path: Path, wanted: int) -> None:
        message = rf"max_context is {wanted}; expected 17 \(one image and a token\) to 256 \(the checkpoint's limit\)"
        self.refused(tiny_checkpoint, tmp_path / "b", ExportOptions(max_context=wanted), message)

    @pytest.mark.parametrize("wanted", [17, 256])
    def test_a_context_just_in_range(self, tiny_checkpoint: Path, tmp_path: Path, wanted: int) -> None:
        assert export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions(max_context=wanted)).max_context == wanted

    def test_an_unknown_precision_or_dialect(self) -> None:
        with pytest.raises(BadInput, match="precision is 'int3'; expected 'fp32' or 'fp16'"):
            ExportOptions("int3")  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="dialect is 'klingon'; expected 'fused' or 'primitive'"):
            ExportOptions(dialect="klingon")  # type: ignore[arg-type]

    def test_a_folder_with_something_else(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
        message = r"photos is not empty and not a bundle \(it has no manifest\.json\); name another"
        self.refused(tiny_checkpoint, tmp_path / "photos", FUSED, message)

    def test_a_file(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        self.refused(tiny_checkpoint, tmp_path / "file", FUSED, "is a file; expected a new or an empty folder, or a")

    def test_the_target_is_looked_at_before_the_checkpoint_is_read(self, tmp_path: Path) -> None:
        """Hashing 14 GB first would waste a minute."""
        (tmp_path / "file").write_bytes(b"x")
        self.refused(tmp_path / "no checkpoint", tmp_path / "file", FUSED, "is a file")

    def test_a_folder_that_is_no_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadCheckpoint, match=r"has no config\.json"):
            export_bundle(tmp_path / "empty", tmp_path / "new" / "b")
        assert not (tmp_path / "new").exists()

    def test_too_little_space(self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        message = r"b needs [\d.]+ MB and its disk has 1 B free: .* are missing; .*; fp16 needs half of it"
        with pytest.raises(RunFailed, match=message):
            export_bundle(tiny_checkpoint, tmp_path / "b", FUSED)
        with pytest.raises(RunFailed, match=r"another disk; int4 needs about two fifths of it$"):
            export_bundle(tiny_checkpoint, tmp_path / "b", FUSED_HALF)
        assert not list(tmp_path.iterdir())


class TestTokenizer:
    def test_none(self, tiny_bundle: Path) -> None:
        assert open_bundle(tiny_bundle).manifest.tokenizer is None

    def test_it_is_copied_and_listed(self, tiny_bundle: Path, checkpoint_copy: Path, tmp_path: Path) -> None:
        write_word_tokenizer(checkpoint_copy / "tokenizer.json")
        manifest = export_bundle(checkpoint_copy, tmp_path / "b")
        assert manifest.tokenizer == "tokenizer.json"
        assert "tokenizer.json" in manifest.files
        copied = (tmp_path / "b" / "tokenizer.json").read_bytes()
        assert copied == (checkpoint_copy / "tokenizer.json").read_bytes()
        verify_all(tmp_path / "b")

    def test_one_that_came_later_is_added_with_the_next_variant(self, copy: Path, checkpoint_copy: Path) -> None:
        write_word_tokenizer(checkpoint_copy / "tokenizer.json")
        assert export_bundle(checkpoint_copy, copy, FUSED_HALF).tokenizer == "tokenizer.json"
        verify_all(copy)
        (checkpoint_copy / "tokenizer.json").unlink()
        assert export_bundle(checkpoint_copy, copy, FUSED_HALF).tokenizer is None
        assert not (copy / "tokenizer.json").exists()

    def test_a_broken_one_leaves_nothing(self, checkpoint_copy: Path, tmp_path: Path) -> None:
        (checkpoint_copy / "tokenizer.json").write_text("{")
        with pytest.raises(BadCheckpoint, match=r"tokenizer\.json is not a tokenizer that can be read"):
            export_bundle(checkpoint_copy, tmp_path / "b")
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def write_word_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1}, unk_token="<unk>")).save(str(path))


Break = Callable[[pytest.MonkeyPatch, BaseException], None]


def break_reading(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """In the middle of the weights."""
    original, calls = Checkpoint.read, iter(range(1000))

    def read(self: Checkpoint, name: str) -> Any:
        if next(calls) == 20:
            raise error
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "read", read)


def break_saving(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """In the middle of the graphs."""
    original, calls = GraphAuthor.save, iter(range(1000))

    def save(self: GraphAuthor, path: Path) -> None:
        original(self, path)
        if next(calls) == 2:
            raise error

    monkeypatch.setattr(GraphAuthor, "save", save)


def break_syncing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """When everything is written, but not yet on the disk: where a full disk may show up only now."""

    def sync(root: Path) -> None:
        raise error

    monkeypatch.setattr(atomic, "_sync_tree", sync)


def break_the_rename(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The very last step."""
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial") and not target.name.endswith(".partial") and (self / MANIFEST_NAME).exists():
            monkeypatch.setattr(Path, "rename", original)
            raise error
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("breaking", [break_reading, break_saving, break_syncing, break_the_rename])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
class TestInterrupted:
    def test_a_new_bundle_does_not_appear(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        breaking: Break,
        error: BaseException,
    ) -> None:
        breaking(monkeypatch, error)
        with raises_for(error):
            export_bundle(tiny_checkpoint, tmp_path / "bundle", FUSED)
        assert not list(tmp_path.iterdir())

    def test_a_bundle_that_was_there_is_as_it_was(
        self, tiny_checkpoint: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, breaking: Break, error: BaseException
    ) -> None:
        before = files_of(copy)
        breaking(monkeypatch, error)
        with raises_for(error):
            export_bundle(tiny_checkpoint, copy, FUSED_HALF)
        monkeypatch.undo()
        assert files_of(copy) == before
        assert [path.name for path in copy.parent.iterdir()] == ["bundle"]
        verify_all(copy)
        export_bundle(tiny_checkpoint, copy, FUSED_HALF)  # and takes the variant when tried again
        verify_all(copy)


def raises_for(error: BaseException) -> Any:
    if isinstance(error, OSError):
        return pytest.raises(RunFailed, match=r"the disk is full: writing .*bundle stopped after .*; nothing was left")
    return pytest.raises(type(error))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_is_really_full(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def open_full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if self.name == "tail.fp32.bin" and mode == "xb":
            return original(Path("/dev/full"), "wb", *args, **kwargs)
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(RunFailed, match=r"the disk is full: writing .*bundle stopped after"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", FUSED)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from sdrpn.export import bundle_writer
from sdrpn.export.graph import GraphAuthor
GraphAuthor.save = lambda self, path: os.kill(os.getpid(), signal.SIGKILL)
bundle_writer.export_bundle(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_export_leaves_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Nobody can clean up then; what is left is hidden, beside the target, and in nobody's way."""
    target = tmp_path / "bundle"
    done = subprocess.run([sys.executable, "-c", KILLED, tiny_checkpoint, target], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".bundle.")
    with pytest.raises(SdrpnError, match=r"has no manifest\.json"):
        open_bundle(left)
    export_bundle(tiny_checkpoint, target)
    verify_all(target)
