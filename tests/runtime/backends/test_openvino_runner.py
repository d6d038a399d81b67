"""OpenVINO's runs: with more threads than cores, with Ctrl-C, and in a fork of the process that loaded the graphs."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host.native_modules import native_module
from sdrpn.host.threads import usable_cores
from sdrpn.runtime import Session
from sdrpn.runtime.backends.openvino_info import STEPS_MODULE
from tests.pictures import photo

openvino_graph = pytest.importorskip("sdrpn.runtime.backends.openvino_graph")

BEFORE, AFTER = (1, 5, 9), (7, 11, 12, 30)
MOST_S = 20


@pytest.fixture(scope="module")
def int4_bundle(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runner") / "bundle"
    export_bundle(text_checkpoint, path, ExportOptions("int4"))
    return path


@pytest.fixture(scope="module")
def parent(int4_bundle: Path) -> Iterator[Session]:
    """It has answered, so that all its threads run."""
    with Session.open(int4_bundle, backend="openvino", threads=1) as opened:
        opened.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=2)
        yield opened


@pytest.mark.skipif(native_module(STEPS_MODULE) is None, reason="native decode steps were not compiled")
def test_more_threads_than_cores_answer_the_same(int4_bundle: Path) -> None:
    found = []
    for threads in (1, usable_cores() + 1):
        with Session.open(int4_bundle, backend="openvino", threads=threads, decode_copy=True) as session:
            answer = session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=4, trace=True)
            assert answer.trace is not None
            found.append(answer.trace.step_logits)
    one, more = found
    assert np.array_equal(one, more)


@pytest.mark.skipif(native_module(STEPS_MODULE) is None, reason="native decode steps were not compiled")
def test_a_copy_that_cannot_be_is_told(text_bundle: Path) -> None:
    """The matrices are in fp32, and their numbers are not those of float16."""
    with Session.open(text_bundle, backend="openvino", variant="fused-fp32", threads=1, decode_copy=True) as session:
        note = session.backend_note or ""
    assert [f"decode_copy has no effect on the {graph} graph: some of its" in note for graph in ("trunk", "tail")] == [
        True,
        True,
    ]


def test_ctrl_c_while_the_library_reads_a_graph(int4_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls us back there, and takes what is raised for an error of the graph."""
    update, interrupted = openvino_graph._update, list[str]()

    def interrupt(node: object) -> object:
        if not interrupted:
            interrupted.append("once")
            signal.raise_signal(signal.SIGINT)
        return update(node)

    monkeypatch.setattr(openvino_graph, "_update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Session.open(int4_bundle, backend="openvino", threads=1)
    assert interrupted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestFork:
    def test_it_is_told_instead_of_waiting_forever(self, parent: Session) -> None:
        told = in_fork(lambda: answered(parent))
        expected = f"the graphs were loaded by process {os.getpid()}, and OpenVINO's threads stay there; open the sess"
        assert told.startswith(f"RunFailed: {expected}")

    def test_a_session_of_its_own_answers(self, parent: Session, int4_bundle: Path) -> None:
        def opened() -> str:
            with Session.open(int4_bundle, backend="openvino", threads=1) as own:
                return answered(own)

        assert in_fork(opened) == answered(parent)


def answered(session: Session) -> str:
    try:
        return str(session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=2).token_ids)
    except Exception as error:  # nothing of a fork is to reach pytest
        return f"{type(error).__name__}: {error}"


def in_fork(work: object) -> str:
    """The text that `work` returns in a fork; fails where that takes too long."""
    assert callable(work)
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with suppress(BaseException):
            os.write(writing, work().encode())
        os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], MOST_S)
        assert ready, f"the fork said nothing for {MOST_S} s"
        return os.read(reading, 1 << 16).decode()
    finally:
        os.close(reading)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
