"""Numbers that overflow in one answer: it fails, and the next one is as if nothing had been."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import RunFailed
from sdrpn.runtime import Session
from sdrpn.runtime.backends.runner import Array
from tests.runtime.asking import OTHER, ask, no_box
from tests.runtime.gpu import fake_gpu, onnxruntime_compute


class Overflowing:
    """ONNX Runtime, but one run of a graph leaves infinite rows in its caches, and results that show it."""

    def __init__(self, bundle_path: Path, variant: str) -> None:
        self._compute = onnxruntime_compute(open_bundle(bundle_path), variant)
        self.graph: str | None = None  # which overflows
        self.runs = 1  # in which of its next runs

    def __call__(self, graph: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        self._compute(graph, feeds, results)
        self.runs -= graph == self.graph
        if graph != self.graph or self.runs:
            return
        self.graph, self.runs = None, 1
        for name, array in results.items():
            if "cache" in name:
                array[:, :, -3:] = np.inf
            elif array.dtype.kind == "f":
                array[...] = np.nan


@pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32"])
@pytest.mark.parametrize("graph", ["vision", "trunk", "rpn", "tail"])
def test_the_next_question_is_answered(tiny_bundle: Path, tmp_path: Path, variant: str, graph: str) -> None:
    compute = Overflowing(tiny_bundle, variant)
    gpu = fake_gpu(tiny_bundle, tmp_path, variant=variant, compute=compute)
    with Session.open(tiny_bundle, backend="onnxruntime", variant=variant, threads=1) as plain:
        expected = [ask(plain).token_ids, ask(plain, OTHER, decide=no_box).token_ids]
    with gpu.session() as session:
        assert ask(session).token_ids == expected[0]
        compute.graph = graph
        if graph == "vision":
            session.forget_image()
        with pytest.raises(RunFailed, match="NaN or infinite; expected finite numbers"):
            ask(session, OTHER)
        assert ask(session).token_ids == expected[0]
        assert ask(session, OTHER, decide=no_box).token_ids == expected[1]
    assert gpu.cuda.violations == []


@pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32"])
def test_while_an_answer_is_made(tiny_bundle: Path, tmp_path: Path, variant: str) -> None:
    compute = Overflowing(tiny_bundle, variant)
    gpu = fake_gpu(tiny_bundle, tmp_path, variant=variant, compute=compute)
    with gpu.session() as session:
        expected = ask(session).token_ids
        compute.graph, compute.runs = "tail", 4  # the prefill in one run, and three steps
        with pytest.raises(RunFailed, match="NaN or infinite"):
            ask(session, OTHER, decide=no_box)
        assert ask(session).token_ids == expected


def test_on_a_cpu(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, backend="onnxruntime", variant="fused-fp32", threads=1) as session:
        expected = ask(session).token_ids
        for caches in session._decoder.slots.caches.values():
            for buffer in caches.buffers.values():
                buffer.read()[:, :, 30:] = np.inf  # the second look's rows, and all after them
        with pytest.raises(RunFailed, match="NaN or infinite"):
            ask(session, OTHER)
        assert ask(session).token_ids == expected
