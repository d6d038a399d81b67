"""One graph on arrays: outputs as large as the inputs ask for, caches updated in place or given back as rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.bundle import GraphInfo, TensorInfo
from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.arrays import run_on_arrays
from sdrpn.runtime.backends.fake import Compute, FakeBackend
from sdrpn.runtime.backends.runner import Array

HIDDEN = TensorInfo("hidden", "float32", ("batch", "sequence", 2))
CACHE = TensorInfo("key_cache.0", "float16", ("batch", 1, "cache_length", 2), "cache")
DOUBLED = TensorInfo("doubled", "float32", ("batch", "sequence", 2))
IN_PLACE = TensorInfo("key_cache.0_out", "float16", CACHE.dims, "cache", "key_cache.0")
ROWS = TensorInfo("key_cache.0_rows", "float16", ("batch", 1, "sequence", 2), "new_rows", "key_cache.0")

FEEDS: dict[str, Array] = {"hidden": np.ones((1, 3, 2), np.float32), "key_cache.0": np.zeros((1, 1, 5, 2), np.float16)}


def run(outputs: tuple[TensorInfo, ...], compute: Compute) -> tuple[dict[str, Array], FakeBackend]:
    backend = FakeBackend({"g": compute})
    graph = GraphInfo("g", "g.onnx", (HIDDEN, CACHE), outputs, ())
    return run_on_arrays(backend, backend.load(graph, Path("g.onnx")), FEEDS), backend


def test_outputs_are_as_large_as_the_inputs_ask_for() -> None:
    results, _ = run((DOUBLED, ROWS), lambda feeds: {"doubled": 2 * feeds["hidden"]})
    assert {name: (array.shape, array.dtype.name) for name, array in results.items()} == {
        "doubled": ((1, 3, 2), "float32"),
        "key_cache.0_rows": ((1, 1, 3, 2), "float16"),
    }
    assert (results["doubled"] == 2).all()


def test_a_cache_is_bound_to_both_sides_and_the_callers_array_kept() -> None:
    results, backend = run((DOUBLED, IN_PLACE), lambda feeds: {"key_cache.0_out": feeds["key_cache.0"] + 1})
    (call,) = backend.calls
    assert call.addresses["key_cache.0"] == call.addresses["key_cache.0_out"]
    assert (results["key_cache.0_out"] == 1).all()
    assert (FEEDS["key_cache.0"] == 0).all()


def test_an_axis_that_no_input_has() -> None:
    odd = TensorInfo("doubled", "float32", ("batch", "rows", 2))
    with pytest.raises(RunFailed, match=r"doubled has the axis 'rows', which no input has; expected one of \['batch'"):
        run((odd, ROWS), lambda feeds: {})


def test_a_missing_input() -> None:
    backend = FakeBackend({"g": lambda feeds: {}})
    runner = backend.load(GraphInfo("g", "g.onnx", (HIDDEN, CACHE), (DOUBLED, IN_PLACE), ()), Path("g.onnx"))
    with pytest.raises(RunFailed, match=r"inputs missing: \['key_cache.0'\], unknown: none"):
        run_on_arrays(backend, runner, {"hidden": FEEDS["hidden"]})
