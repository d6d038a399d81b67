"""Bundles whose files are links: as model caches keep them, and with weights on another disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.compare.simulation import _link
from sdrpn.errors import BadBundle
from sdrpn.host.links import AllowLinks
from sdrpn.runtime import Session
from sdrpn.runtime.optimize import save_graph

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def cached(folder: Path, cache: Path) -> Path:
    """A copy as a snapshot: every file is a link into blobs."""
    repository = cache / "models--me--model"
    return linked(folder, repository / "snapshots" / "abc", lambda digest: repository / "blobs" / digest)


def in_shared_store(folder: Path, cache: Path) -> Path:
    """A copy as a snapshot whose blobs are links into a store that the repositories of the cache share."""
    snapshot = cached(folder, cache)
    for blob in sorted((cache / "models--me--model" / "blobs").iterdir()):
        stored = cache / "blobs" / blob.name[:2] / blob.name
        stored.parent.mkdir(parents=True, exist_ok=True)
        blob.rename(stored)
        blob.symlink_to(os.path.relpath(stored, blob.parent))
    (cache / "blobs" / ".huggingface-shared-blobs").write_text("1")
    return snapshot


def weights_elsewhere(folder: Path, place: Path) -> Path:
    """A copy whose weights are links to another folder, one by one."""
    copy = Path(shutil.copytree(folder, place / "bundle"))
    (copy / "weights").rename(place / "disk")
    (copy / "weights").mkdir()
    for path in sorted((place / "disk").iterdir()):
        (copy / "weights" / path.name).symlink_to(path)
    return copy


def linked_folder_elsewhere(folder: Path, place: Path) -> Path:
    """A copy whose folder of weights is a link to another folder."""
    copy = Path(shutil.copytree(folder, place / "bundle"))
    (copy / "weights").rename(place / "disk")
    (copy / "weights").symlink_to("../disk")
    return copy


def linked(folder: Path, to: Path, place: Callable[[str], Path]) -> Path:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stored, link = place(hashlib.sha256(path.read_bytes()).hexdigest()), to / path.relative_to(folder)
            for parent in (stored.parent, link.parent):
                parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, stored)
            link.symlink_to(os.path.relpath(stored, link.parent))
    return to


def answer(folder: Path, allow_links: AllowLinks = ()) -> tuple[int, ...]:
    with Session.open(folder, threads=1, allow_links=allow_links) as session:
        return session.answer_ids(PICTURE, [1, 5], [6, 7], max_new_tokens=4).token_ids


@pytest.mark.parametrize("shape", [cached, in_shared_store])
def test_a_cache_is_read_as_the_folder_that_it_holds(
    tiny_bundle: Path, tmp_path: Path, shape: Callable[[Path, Path], Path]
) -> None:
    assert answer(shape(tiny_bundle, tmp_path)) == answer(tiny_bundle)


@pytest.mark.parametrize("shape", [weights_elsewhere, linked_folder_elsewhere])
@pytest.mark.parametrize("allowed", ["disk", "."])
def test_weights_on_another_disk_need_leave(
    tiny_bundle: Path, tmp_path: Path, shape: Callable[[Path, Path], Path], allowed: str
) -> None:
    folder = shape(tiny_bundle, tmp_path)
    with pytest.raises(BadBundle, match=rf"is a link that leaves .*allow links to {tmp_path / 'disk'}"):
        answer(folder)
    assert answer(folder, tmp_path / allowed) == answer(tiny_bundle)


@pytest.mark.parametrize("shape", [cached, in_shared_store])
def test_graphs_are_saved_for_a_machine_from_links(
    tiny_bundle: Path, tmp_path: Path, shape: Callable[[Path, Path], Path]
) -> None:
    bundle = open_bundle(shape(tiny_bundle, tmp_path))
    graph = bundle.variant("fused-fp32").graphs["trunk"]
    save_graph(graph, bundle.file(graph.file), bundle.path, tmp_path / "trunk.onnx", threads=1)
    assert (tmp_path / "trunk.onnx").is_file()


def test_a_hard_link_is_made_to_the_file_and_not_to_its_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    _link(tmp_path / "link", tmp_path / "a" / "copy")
    assert (tmp_path / "a" / "copy").read_bytes() == b"x"
