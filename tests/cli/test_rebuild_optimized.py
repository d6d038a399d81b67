"""Saved graphs that no longer fit: made again by one process when a bundle opens, or removed by `sdrpn optimize`."""

from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.optimized import OPTIMIZED_NAME, saved_before
from sdrpn.errors import BadBundle, BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.runtime import Session
from sdrpn.workflows import graph_optimization
from sdrpn.workflows import saved_again as saved_again_module
from sdrpn.workflows.graph_optimization import optimize_bundle
from sdrpn.workflows.opened_session import SessionRequest, opened_session
from sdrpn.workflows.saved_again import saved_again
from tests.cli.command import Command, refusal
from tests.damage import edit_json
from tests.pictures import photo

VARIANT = "fused-fp32"
AGAIN = SessionRequest(backend="onnxruntime", variant=VARIANT, threads=1, rebuild_optimized=True)
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(scope="module")
def saved(text_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with graphs for this machine, its tower in 8 bits."""
    path = tmp_path_factory.mktemp("again") / "bundle"
    shutil.copytree(text_bundle, path)
    optimize_bundle(path, variant=VARIANT, threads=1, int8=("vision",))
    return path


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """One to write to."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


@pytest.fixture
def stale(bundle: Path) -> Path:
    """The same with graphs for another version of the library."""
    of_another_version(bundle)
    return bundle


def folders(bundle: Path) -> list[str]:
    return sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in bundle.glob("optimized/*/*/*.json"))


def of_another_version(bundle: Path) -> Path:
    (folder,) = bundle.glob(f"optimized/{VARIANT}/*")
    moved = folder.with_name(f"ort-1.0.0-{folder.name.rpartition('-')[2]}")
    folder.rename(moved)
    edit_json(moved / OPTIMIZED_NAME, lambda value: value.update(version="1.0.0"))
    return moved


def opened(bundle: Path, notes: Callable[[str], None] = lambda text: None) -> Session:
    return opened_session(open_bundle(bundle), AGAIN, note=notes)


def loads_saved(session: Session) -> bool:
    path: str = session._decoder._runners["tail"]._session._model_path  # type: ignore[attr-defined]
    return "optimized" in Path(path).parts


def test_of_another_version(stale: Path) -> None:
    """As they were made before; those of the other version stay, since a process may run them."""
    notes: list[str] = []
    with opened(stale, notes.append) as session:
        assert session.backend_note is None
        assert loads_saved(session)
    assert notes == [f"making graphs of {VARIANT} for ONNX Runtime again; this may take minutes"]
    assert len(folders(stale)) == 2
    bundle = open_bundle(stale)
    before = saved_before(bundle, bundle.variant(VARIANT), "onnxruntime")
    assert before is not None
    assert (before.version != "1.0.0", before.int8_parts, before.attention) == (True, ("vision",), "group-query")
    with opened(stale, notes.append) as session:
        assert loads_saved(session)
    assert len(notes) == 1


def test_of_another_export(text_checkpoint: Path, tmp_path: Path) -> None:
    options = {"variant": "fused-int4-cpu", "threads": 1}
    export_bundle(text_checkpoint, tmp_path, ExportOptions("int4"))
    optimize_bundle(tmp_path, **options)  # type: ignore[arg-type]
    export_bundle(text_checkpoint, tmp_path, ExportOptions("int4", method="hqq"))
    request = SessionRequest(backend="onnxruntime", rebuild_optimized=True, **options)  # type: ignore[arg-type]
    with opened_session(open_bundle(tmp_path), request) as session:
        assert session.backend_note is None
    with Session.open(tmp_path, backend="onnxruntime", **options) as session:  # type: ignore[arg-type]
        assert session.backend_note is None
        assert loads_saved(session)
    assert len(folders(tmp_path)) == 1


def test_where_it_cannot_be_done_the_bundles_own_graphs_answer(stale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9 - 1000, 1000))
    with opened(stale) as session:
        assert not loads_saved(session)
        note = str(session.backend_note)
    assert note.startswith("the optimized graphs are for ort-1.0.0-")
    assert f"sdrpn optimize {stale} --variant {VARIANT} --int8 vision (or run without them" in note
    assert "; they could not be made again: " in note
    assert "its disk has 1.0 kB free" in note


def test_blocks_are_made_from_the_checkpoint(stale: Path) -> None:
    (path,) = stale.glob(f"optimized/*/*/{OPTIMIZED_NAME}")
    edit_json(path, lambda value: value.update(block=128))
    with opened(stale) as session:
        note = str(session.backend_note)
    assert "--int8 vision --block 128 --checkpoint CHECKPOINT (or run" in note
    assert note.endswith("they could not be made again: their blocks of 128 are made from the checkpoint")


def test_one_process_makes_them_and_others_wait(stale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is of the open folder: it holds between threads as between processes."""
    bundle, begun, results = open_bundle(stale), [], []
    original = graph_optimization.save_graphs

    def save_graphs(*args: Any) -> Any:
        begun.append(1)
        return original(*args)

    monkeypatch.setattr(saved_again_module, "save_graphs", save_graphs)

    def work() -> None:
        results.append(saved_again(bundle, bundle.variant(VARIANT), "onnxruntime", threads=1))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert results == [None, None]
    assert begun == [1]


def test_sdrpn_optimize_removes_what_is_stale(sdrpn: Command, stale: Path) -> None:
    (old,) = stale.glob(f"optimized/{VARIANT}/*")
    elsewhere = Path(shutil.copytree(old, old.with_name("ort-1.0.0-0123456789ab")))
    gone_export = Path(shutil.copytree(old, old.with_name("ort-1.1.0-0123456789ab")))
    edit_json(gone_export / OPTIMIZED_NAME, lambda value: value.update(source_sha256="0" * 64))
    gone_variant = Path(shutil.copytree(old, old.parents[1] / "fused-gone" / old.name))
    link = old.with_name("ort-1.2.0-" + old.name.rpartition("-")[2])
    link.symlink_to(elsewhere)
    report = sdrpn("optimize", stale, "--variant", VARIANT, "--threads", 1, "--json").json()
    assert sorted(report["removed"]) == sorted(map(str, (old, gone_export, gone_variant)))
    assert folders(stale) == sorted(
        f"{VARIANT}/{name}" for name in (Path(report["folder"]).name, elsewhere.name, link.name)
    )
    assert sdrpn("optimize", stale, "--variant", VARIANT, "--threads", 1, "--json").json()["removed"] == []


def test_a_folder_that_is_a_link_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    (folder,) = bundle.glob(f"optimized/{VARIANT}/*")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    kept = sorted(path.name for path in folder.iterdir())
    with pytest.raises(BadBundle, match="is a link that leaves"):
        optimize_bundle(bundle, variant=VARIANT, threads=1)
    assert sorted(path.name for path in folder.iterdir()) == kept


def test_the_option(sdrpn: Command, stale: Path, tmp_path: Path) -> None:
    picture = tmp_path / "photo.png"
    Image.fromarray(photo()).save(picture)
    ask = ("ask", stale, picture, "What?", "--backend", "onnxruntime", "--variant", VARIANT, "--threads", 1)
    outcome = sdrpn(*ask, "--max-new-tokens", 1, "--rebuild-optimized")
    assert outcome.err.count("making graphs of") == 1
    assert "not for ort-" not in outcome.err
    told = refusal(sdrpn(*ask, "--rebuild-optimized", "--no-optimized"))
    assert "leave one of the options out (--rebuild-optimized, --no-optimized)" in told
    with pytest.raises(BadInput, match="leave one of the options out"):
        SessionRequest(rebuild_optimized=True, accurate=True)
