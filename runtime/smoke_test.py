"""Run engines once, on seeded numbers, before they count: finite, and what ONNX Runtime computes of the same graphs.

Tells an engine that computes nonsense on this GPU from one that works. How far engines lie from the checkpoint is
measured by `sdrpn verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sdrpn.bundle import GraphInfo, TensorInfo
from sdrpn.engine_manifest import ParityGate
from sdrpn.runtime.arrays import run_on_arrays
from sdrpn.runtime.engine_set import EngineSet
from sdrpn.runtime.runner import Array, Backend, Runner
from sdrpn.tolerances import tolerances_of

__all__ = ["FINITE", "SMOKE", "smoke_test"]

FINITE, SMOKE = "finite", "smoke test"  # kinds of gates
_SEED = 0


@dataclass(frozen=True)
class _Run:
    """Rows start..start+rows-1 at once, behind caches that hold what lies before."""

    label: str
    start: int
    rows: int


# One for each profile.
_RUNS = (_Run("prefill", 5, 8), _Run("one row", 13, 1))


def smoke_test(engines: EngineSet, backend: Backend, reference: Backend | None) -> Iterator[ParityGate]:
    """Two gates a graph: no entry that is not finite, and the largest difference as a share of max(1, largest value).

    Args:
        backend: runs the engines
        reference: runs the ONNX graphs; None: they are not compared, where memory is short or it lacks kernels
    Raises: what loading or running an engine raises
    """
    limit = tolerances_of(engines.variant.numerics).values
    for name, engine in engines.engines.items():
        graph = engines.variant.graphs[name]
        runner = backend.load(graph, engine.path)
        try:
            runs = list(_feeds(graph, runner.inputs, engines.max_context))
            found = [run_on_arrays(backend, runner, feeds) for _, feeds in runs]
        finally:
            runner.close()
        labels = [label for label, _ in runs]
        yield _finite(name, labels, found)
        if reference is not None:
            other = reference.load(graph, engines.bundle.file(graph.file))
            yield _close(name, labels, found, _expected(reference, other, [feeds for _, feeds in runs]), limit)


def _expected(backend: Backend, runner: Runner, runs: list[dict[str, Array]]) -> list[dict[str, Array]]:
    try:
        return [run_on_arrays(backend, runner, feeds) for feeds in runs]
    finally:
        runner.close()


def _feeds(
    graph: GraphInfo, inputs: Mapping[str, TensorInfo], max_context: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    """(label, inputs by name) of every run; those of a graph without rows are one picture."""
    rng = np.random.default_rng(_SEED)
    for run in _RUNS if any("sequence" in tensor.dims for tensor in inputs.values()) else (_Run("one picture", 0, 1),):
        extents = {"batch": 1, "images": 1, "sequence": run.rows, "cache_length": max_context}
        yield run.label, {tensor.name: _feed(inputs[tensor.name], run, extents, rng) for tensor in graph.inputs}


def _feed(tensor: TensorInfo, run: _Run, extents: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = tuple(extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims)
    if tensor.name == "position_ids":
        return np.arange(run.start, run.start + run.rows, dtype=np.int64)[None]
    if tensor.name == "write_index":
        return np.full(shape, run.start, np.int64)
    if tensor.name == "last_index":
        return np.full(shape, run.rows - 1, np.int64)
    values: Array = rng.standard_normal(shape, np.float32)
    if tensor.storage in ("int8", "uint8"):  # codes, whose bits are small numbers in fp8, too
        values = rng.integers(0, 100, shape)
    if "_scale_cache" in tensor.name:
        values = np.abs(values) / 128
    if "cache" in tensor.name:
        values[:, :, run.start :] = 0
    if tensor.dtype == "bfloat16":  # the upper two bytes of a float32
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(tensor.storage)


def _numbers(array: Array) -> Array:
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


def _finite(graph: str, labels: list[str], found: list[dict[str, Array]]) -> ParityGate:
    checks = [
        (f"{name}, {label}", float(np.count_nonzero(~np.isfinite(_numbers(array)))))
        for label, results in zip(labels, found, strict=True)
        for name, array in results.items()
    ]
    place, worst = max(checks, key=lambda check: check[1])
    return ParityGate(graph, FINITE, place, worst, 0.0, len(checks), worst == 0)


def _close(
    graph: str, labels: list[str], found: list[dict[str, Array]], expected: list[dict[str, Array]], limit: float
) -> ParityGate:
    checks = [
        (f"{name}, {label}", _difference(results[name], wanted))
        for label, results, others in zip(labels, found, expected, strict=True)
        for name, wanted in others.items()
    ]
    place, worst = max(checks, key=lambda check: check[1])
    return ParityGate(graph, SMOKE, place, worst, limit, len(checks), worst <= limit)


def _difference(found: Array, expected: Array) -> float:
    """The largest, as a share of max(1, largest value); something out of all range where there is no finite one."""
    found, expected = _ordered(found), _ordered(expected)
    difference = np.abs(found.astype(np.float64) - expected)
    scale = max(1.0, float(np.abs(expected, dtype=np.float64).max(initial=0)))
    worst = float(difference.max(initial=0)) / scale
    return worst if np.isfinite(worst) else float(np.finfo(np.float64).max)


def _ordered(array: Array) -> Array:
    """Codes in fp8, whose bits are a sign and a magnitude, as integers in the order of their numbers; others unchanged.

    A rounding to the other side then moves an integer by one.
    """
    if array.dtype != np.uint8:
        return array
    magnitude = (array & 0x7F).astype(np.int16)
    return np.where(array & 0x80, -magnitude, magnitude)
