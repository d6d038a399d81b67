"""What TensorRT-RTX compiles on the GPU: once, kept between processes, and never other answers while it runs."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")


from sdrpn.bundle.engine_manifest import read_engine_manifest
from sdrpn.errors import BadInput, RunFailed
from sdrpn.runtime import EngineOptions
from sdrpn.runtime.backends.runtime_cache import RuntimeCache
from tests.runtime.asking import ask, conversation
from tests.runtime.gpu import FakeGpu, fake_gpu


@pytest.fixture
def rtx(tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    return fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")


def test_what_it_compiles_is_kept(rtx: FakeGpu, tmp_path: Path) -> None:
    options = EngineOptions(runtime_cache_dir=tmp_path / "caches")
    compiled = []
    for _ in range(2):
        with rtx.session(options) as session:
            ask(session)
        compiled.append(len(rtx.trt.compilations))
    assert compiled[0] == compiled[1] > 0
    digests = [read_engine_manifest(path).engine.sha256 for path in rtx.engine("trunk").parent.glob("*.engine.json")]
    files = sorted(path.name for path in (tmp_path / "caches").iterdir())
    assert files == sorted(f"{digest[:32]}.SM89.rtx-cache" for digest in digests)


def test_by_default_in_the_users_own_folder(rtx: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with rtx.bare_session() as session:
        ask(session)
    kept = tmp_path / "home" / ".cache" / "sdrpn" / "tensorrt-rtx"
    assert len(list(kept.iterdir())) == 4


def test_where_that_cannot_be_written_it_answers_all_the_same(
    rtx: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".cache").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with rtx.bare_session() as session:
        ask(session)
        assert session.backend_note is not None
        assert session.backend_note.startswith("kernels compiled by TensorRT-RTX are not stored for the next start: ")


def test_nothing_is_compiled_twice_in_one_process(rtx: FakeGpu, tmp_path: Path) -> None:
    """Contexts of an engine share what was compiled, whether it is kept or not."""
    with rtx.session(EngineOptions(keep_runtime_cache=False)) as session:
        conversation(session)
    assert len(rtx.trt.compilations) == len(set(rtx.trt.compilations))
    assert not rtx.caches.exists()
    with pytest.raises(BadInput, match=r"runtime_cache_dir is .*, but keep_runtime_cache is False"):
        EngineOptions(runtime_cache_dir=tmp_path, keep_runtime_cache=False)


def test_the_same_question_has_the_same_answer_to_the_last_bit(rtx: FakeGpu) -> None:
    """Nothing is compiled in the background, to be swapped in later; lengths of prompts compile nothing new."""
    found = []
    with rtx.session() as session:
        for _ in range(5):
            session.forget_image()
            found.append(ask(session))
        before = len(rtx.trt.compilations)
        for length in range(6, 12):
            session.forget_image()
            ask(session, tuple(range(8, 8 + length)))
        assert len(rtx.trt.compilations) == before
    assert rtx.trt.background_compilations == 0
    for path in found:
        assert path.trace is not None
        assert found[0].trace is not None
        np.testing.assert_array_equal(path.trace.step_logits, found[0].trace.step_logits)


@pytest.mark.parametrize("content", [b"", b"no cache", b'{"version": "1.0", "kernels": ["x"]}'])
def test_a_file_of_another_release_or_damaged_grows_anew(rtx: FakeGpu, tmp_path: Path, content: bytes) -> None:
    options = EngineOptions(runtime_cache_dir=tmp_path / "caches")
    with rtx.session(options) as session:
        ask(session)
    for path in (tmp_path / "caches").iterdir():
        path.write_bytes(content)
    with rtx.session(options) as session:
        ask(session)
    assert all(b"profile" in path.read_bytes() for path in (tmp_path / "caches").iterdir())


def test_a_cache_that_the_library_does_not_take(tiny_bundle: Path, tmp_path: Path) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
    gpu.trt.refusals.add("set_runtime_cache")
    with (
        pytest.raises(RunFailed, match=r"vision.engine: tensorrt-rtx refused IRuntimeConfig.set_runtime_cache"),
        gpu.session(EngineOptions(runtime_cache_dir=tmp_path / "caches")) as session,
    ):
        ask(session)


def test_a_place_for_it_that_cannot_be_written(tiny_bundle: Path, tmp_path: Path) -> None:
    """Said before anything is computed."""
    gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"rtx-cache cannot be written: .*/file is a file, expected a folder"):
        gpu.session(EngineOptions(runtime_cache_dir=tmp_path / "file"))


def test_a_disk_that_is_full_by_then(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was loaded goes all the same."""
    gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
    session = gpu.session(EngineOptions(runtime_cache_dir=tmp_path / "caches"))
    ask(session)

    def fail(cache: object) -> None:
        raise RunFailed("the disk is full")

    monkeypatch.setattr(RuntimeCache, "save", fail)
    with pytest.raises(RunFailed, match="the disk is full"):
        session.close()
    session.close()
    del session
    gc.collect()
    assert (gpu.cuda.live, gpu.cuda.violations) == ({}, [])
