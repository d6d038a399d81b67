"""A bundle copied to where it may be written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.copy import copy_bundle, is_copy
from sdrpn.errors import BadBundle, BadInput
from tests.damage import copied


def test_a_copy_has_what_is_listed_and_nothing_else(text_bundle: Path, tmp_path: Path) -> None:
    source = copied(text_bundle, tmp_path)
    (source / "engines").mkdir()
    out = copy_bundle(open_bundle(source), tmp_path / "new" / "copy")
    bundle = open_bundle(out)
    bundle.verify(bundle.manifest.files)
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert there == {*bundle.manifest.files, "manifest.json"}
    assert is_copy(open_bundle(source), out)


def test_a_copy_is_kept(text_bundle: Path, tmp_path: Path) -> None:
    bundle, out = open_bundle(text_bundle), tmp_path / "copy"
    copy_bundle(bundle, out)
    (out / "engines").mkdir()
    assert copy_bundle(bundle, out) == out
    assert (out / "engines").is_dir()


def test_anything_else_is_left_alone(text_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    other = copy_bundle(open_bundle(tiny_bundle), tmp_path / "other")
    with pytest.raises(BadInput, match="exists and is not empty; remove it or name another folder"):
        copy_bundle(open_bundle(text_bundle), other)
    assert is_copy(open_bundle(tiny_bundle), other)


def test_a_broken_bundle_leaves_nothing(text_bundle: Path, tmp_path: Path) -> None:
    source = copied(text_bundle, tmp_path)
    bundle = open_bundle(source)
    bundle.file("tokenizer.json").unlink()
    with pytest.raises(BadBundle, match=r"tokenizer\.json is missing"):
        copy_bundle(bundle, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name]
