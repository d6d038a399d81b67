"""ONNX Runtime as a backend: what it refuses, and that a decode step copies nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from sdrpn.bundle.bundle import Bundle, GraphInfo, open_bundle
from sdrpn.errors import BadBundle, BadInput, MissingDependency
from sdrpn.runtime import Session
from sdrpn.runtime.backends import open_backend
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeRunner
from sdrpn.runtime.backends.runner import Buffer
from tests.pictures import photo

QUESTION = "What does the sign say?"


class TestOpening:
    def test_an_unknown_backend(self) -> None:
        with pytest.raises(
            BadInput, match=r"backend 'tensorflow' is unknown; expected one of auto, onnxruntime, openvino, "
        ):
            open_backend("tensorflow")

    def test_a_provider_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch, text_bundle: Path) -> None:
        backend, provider = "onnxruntime-cuda", "CUDA"
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        expected = (
            rf"backend {backend} needs ONNX Runtime's {provider}ExecutionProvider, which is not available in this "
            rf"build; install it: pip uninstall onnxruntime && pip install 'sdrpn\[cuda\]'"
        )
        with pytest.raises(MissingDependency, match=expected):
            Session.open(text_bundle, backend=backend)

    def test_a_library_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        expected = r"backend onnxruntime needs ONNX Runtime, which cannot be imported \(.*\); install it again: pip"
        with pytest.raises(MissingDependency, match=expected):
            open_backend("onnxruntime")

    def test_an_empty_folder_in_its_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is left when one of the two wheels that own the folder was removed."""
        monkeypatch.setitem(sys.modules, "onnxruntime", type(sys)("onnxruntime"))
        with pytest.raises(
            MissingDependency, match=r"has no attribute 'InferenceSession'\); install it again: pip ins"
        ):
            open_backend("onnxruntime-cuda")


class TestLoading:
    def test_a_graph_that_fails_says_which(self, text_bundle: Path) -> None:
        bundle = open_bundle(text_bundle)
        runner, backend = loaded(bundle, "tail"), open_backend("onnxruntime", 1)
        extents = {"batch": 1, "sequence": 3, "cache_length": 64}
        feeds = {n: backend.allocate(shape(t.dims, extents), t.dtype) for n, t in runner.inputs.items()}
        results = {n: backend.allocate(shape(t.dims, extents), t.dtype) for n, t in runner.outputs.items()}
        feeds["write_index"].write(np.array([100], np.int64))  # past the caches
        with pytest.raises(BadBundle, match="the tail graph failed in ONNX Runtime: ") as caught:
            runner.run(feeds, results)
        assert "\n" not in str(caught.value)


def shape(dims: tuple[int | str, ...], extents: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(extents[dim] if isinstance(dim, str) else dim for dim in dims)


def loaded(bundle: Bundle, graph: str) -> Any:
    info: GraphInfo = bundle.variant().graphs[graph]
    return open_backend("onnxruntime", 1).load(info, bundle.file(info.file))


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, int]]]:
    """(graph, addresses by name) of everything that is bound."""
    record: list[tuple[str, dict[str, int]]] = []
    original = OnnxRuntimeRunner.bind

    def bind(self: OnnxRuntimeRunner, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> Callable[[], None]:
        tensors = {**self.inputs, **self.outputs}
        places = {name: self._place(tensors[name], array)[-1] for name, array in (*feeds.items(), *results.items())}
        record.append((self.name, places))
        return original(self, feeds, results)

    monkeypatch.setattr(OnnxRuntimeRunner, "bind", bind)
    return record


@pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32"])
class TestDecodePath:
    def test_a_step_is_bound_once_and_nothing_is_copied_between_the_graphs(
        self, text_bundle: Path, variant: str, bound: list[tuple[str, dict[str, int]]]
    ) -> None:
        with Session.open(text_bundle, variant=variant, threads=1) as session:
            session.answer(photo(), QUESTION, roi=None, max_new_tokens=12)
            caches = {
                name: buffer.pointer  # type: ignore[attr-defined]
                for graph in ("trunk", "tail")
                for name, buffer in session._decoder.slots.caches[graph].buffers.items()
            }
        assert [graph for graph, _ in bound] == ["vision", "trunk", "tail", "trunk", "tail"]
        (_, trunk), (_, tail) = bound[-2:]
        assert trunk["tap"] == tail["tap"]
        assert trunk["row_index"] == tail["row_index"]
        for places in (trunk, tail):
            for name in (name for name in places if name in caches):
                # Where the prefill wrote them, and where they still are eleven steps later.
                assert places[name] == caches[name]
                if variant == "fused-fp32":
                    assert places[f"{name}_out"] == places[name]
        prefilled = {name: place for _, places in bound[1:3] for name, place in places.items() if name in caches}
        assert prefilled == caches

    def test_caches_hold_a_row_for_every_position(self, text_bundle: Path, variant: str) -> None:
        new_tokens = 12
        with Session.open(text_bundle, variant=variant, threads=1) as session:
            answer = session.answer(photo(), QUESTION, roi=None, max_new_tokens=new_tokens)
            computed = answer.tokens.prompt + new_tokens - 1  # the last token is not computed further
            for graph in ("trunk", "tail"):
                for name, buffer in session._decoder.slots.caches[graph].buffers.items():
                    used = np.abs(buffer.read()[0]).sum(axis=(0, 2)) > 0
                    assert used.tolist() == [True] * computed + [False] * (len(used) - computed), (graph, name)


# What ONNX Runtime says when a cache is copied instead of being updated in place.
COPIED = "in-place optimization not activated"
VERBOSE_ANSWER = """
import sys
import numpy as np
import onnxruntime
onnxruntime.set_default_logger_severity(0)
from sdrpn.runtime import Session
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.kv_cache import CacheSet

if sys.argv[2] == "separate":
    CacheSet.as_outputs = lambda self: {
        f"{name}_out": HostBuffer(np.zeros(buffer.shape, buffer.dtype)) for name, buffer in self.buffers.items()
    }
with Session.open(sys.argv[1], variant="fused-fp32") as session:
    for question in ("What?", "Where is it?"):
        session.answer(np.full((9, 12, 3), 200, np.uint8), question, max_new_tokens=3)
"""


def log_of(bundle: Path, outputs: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", VERBOSE_ANSWER, bundle, outputs], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stderr


def test_caches_are_updated_in_place(text_bundle: Path) -> None:
    log = log_of(text_bundle, "shared")
    assert "[V:onnxruntime" in log, "the log is not verbose: nothing would be seen"
    assert COPIED not in log
    # The same check on buffers that are not shared: it can fail.
    assert COPIED in log_of(text_bundle, "separate")
