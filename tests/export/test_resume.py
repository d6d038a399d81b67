"""An export that is broken off and resumed: finished files are taken, and the result is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.checkpoint import Checkpoint, write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec

OPTIONS = ExportOptions("int4")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every tensor that is read from a checkpoint."""
    names = list[str]()
    original = Checkpoint.read

    def read(self: Checkpoint, name: str) -> Any:
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "read", read)
    return names


def breaking_off_at(name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Interrupt when a tensor is read; the returned function undoes it."""
    original = Checkpoint.read

    def read(self: Checkpoint, wanted: str) -> Any:
        if wanted == name:
            raise KeyboardInterrupt
        return original(self, wanted)

    monkeypatch.setattr(Checkpoint, "read", read)
    return lambda: monkeypatch.setattr(Checkpoint, "read", original)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_it_goes_on_where_it_was_broken_off(
    tiny_checkpoint: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = breaking_off_at("llm.layers.2.attention.q.weight", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", OPTIONS, resume=True)
    mend()
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.unfinished"]
    first = set(reads)
    reads.clear()
    told = list[tuple[int, int]]()
    export_bundle(
        tiny_checkpoint, tmp_path / "bundle", OPTIONS, resume=True, progress=lambda *state: told.append(state)
    )
    assert "llm.layers.0.attention.q.weight" in first
    assert "llm.layers.0.attention.q.weight" not in reads
    assert "llm.layers.2.attention.q.weight" in reads
    assert told[-1][0] == told[-1][1]
    export_bundle(tiny_checkpoint, tmp_path / "whole", OPTIONS)
    assert contents(tmp_path / "bundle") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "whole"]


def test_files_of_another_checkpoint_are_not_taken(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = breaking_off_at("llm.head.weight", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", OPTIONS, resume=True)
    mend()
    write_random_checkpoint(tmp_path / "other", tiny_spec, seed=9)
    export_bundle(tmp_path / "other", tmp_path / "bundle", OPTIONS, resume=True)
    export_bundle(tmp_path / "other", tmp_path / "whole", OPTIONS)
    assert contents(tmp_path / "bundle") == contents(tmp_path / "whole")
    assert not (tmp_path / ".bundle.unfinished").exists()


def test_a_link_in_its_place_is_removed(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leads to is nobody's leftover, and stays."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "kept").touch()
    (tmp_path / ".bundle.unfinished").symlink_to("disk")
    undo = breaking_off_at("llm.head.weight", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", OPTIONS, resume=True)
    undo()
    assert not (tmp_path / ".bundle.unfinished").is_symlink()
    assert (tmp_path / ".bundle.unfinished" / "weights").is_dir()
    export_bundle(tiny_checkpoint, tmp_path / "bundle", OPTIONS, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "disk"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["kept"]


def test_a_file_of_another_size_is_written_again(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend = breaking_off_at("llm.head.weight", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", OPTIONS, resume=True)
    mend()
    (scales,) = (tmp_path / ".bundle.unfinished" / "weights").glob("llm.layers.0.*.scale.bin")
    scales.write_bytes(scales.read_bytes()[:-1])
    export_bundle(tiny_checkpoint, tmp_path / "bundle", OPTIONS, resume=True)
    bundle = open_bundle(tmp_path / "bundle")
    bundle.verify(bundle.manifest.files)
    export_bundle(tiny_checkpoint, tmp_path / "whole", OPTIONS)
    assert contents(tmp_path / "bundle") == contents(tmp_path / "whole")


def test_without_it_nothing_is_left(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_off_at("llm.head.weight", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", OPTIONS)
    assert not list(tmp_path.iterdir())
