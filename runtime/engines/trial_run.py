"""Run engines once, on seeded numbers, before they count: finite, and what ONNX Runtime computes of the same graphs.

Tells an engine that computes nonsense on this GPU from one that works, by itself and with several pictures or sequences
at once, where each has to come out as it does alone. How far engines lie from the checkpoint is measured by
`sdrpn verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from sdrpn.bundle.bundle import Bundle, GraphInfo, TensorInfo, Variant
from sdrpn.bundle.engine_manifest import EngineManifest, ParityGate
from sdrpn.bundle.tolerances import tolerances_of
from sdrpn.families.registry import family_of
from sdrpn.method.grids import cell_count
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.backends.arrays import run_on_arrays
from sdrpn.runtime.backends.row_feeds import trial_rows
from sdrpn.runtime.backends.runner import Array, Backend, Runner
from sdrpn.runtime.engines.engine_set import EngineSet

__all__ = ["FINITE", "SMOKE", "TWO_AT_ONCE", "smoke_test", "smoke_test_graphs"]

FINITE, SMOKE, TWO_AT_ONCE = "finite", "smoke test", "two at once"  # kinds of gates
_SEED = 0
_GRAPH_CONTEXT = 64  # rows of the caches in a trial of a graph
_PICTURE_WH = (224, 168)  # of a model that sees pictures of any shape

_Takes: TypeAlias = Callable[[Mapping[str, Array]], bool]  # whether a profile accepts these inputs


@dataclass(frozen=True)
class _Run:
    """A run of rows start..start+rows-1, with caches of the rows before; a second sequence starts at a later row."""

    label: str
    start: int
    rows: int
    cache_length: int = 0

    def of(self, index: int) -> _Run:
        """The same run for another sequence, at another position."""
        return replace(self, start=self.start + 3 * index)


def smoke_test(engines: EngineSet, backend: Backend, reference: Backend | None) -> Iterator[ParityGate]:
    """Two or three gates a graph: no entry that is not finite; the largest difference from ONNX Runtime as a share of
    max(1, largest value); and, if these hold and a profile takes two at once, the same between each of two, and of as
    many as the engine was built for, and itself alone.

    Args:
        backend: runs the engines
        reference: runs the ONNX graphs; None: no comparison, for lack of memory or kernels
    Raises: the errors of loading and running an engine
    """
    limit = tolerances_of(engines.variant.numerics).values
    for name, engine in engines.engines.items():
        graph = engines.variant.graphs[name]
        spec = engines.bundle.spec
        tried = _Loadable(backend, graph, engine.path, spec)
        other = _Loadable(reference, graph, engines.bundle.file(graph.file), spec) if reference is not None else None
        manifest = engines.manifests[name]
        yield from _gates(tried, other, engines.contexts, partial(_takes, manifest), limit, manifest.max_batch)


def smoke_test_graphs(bundle: Bundle, variant: Variant, twin: Variant | None, backend: Backend) -> Iterator[ParityGate]:
    """The same for the ONNX graphs of a variant, compared with another variant that should compute the same.

    Args:
        twin: the other variant; None: only two at once are compared with each alone
    """
    limit = tolerances_of(variant.numerics).values
    for name, graph in variant.graphs.items():
        tried = _Loadable(backend, graph, bundle.file(graph.file), bundle.spec)
        other = None
        if twin is not None:
            other = _Loadable(backend, twin.graphs[name], bundle.file(twin.graphs[name].file), bundle.spec)
        yield from _gates(tried, other, (_GRAPH_CONTEXT,), lambda feeds: True, limit)


@dataclass(frozen=True)
class _Loadable:
    """A graph, and a backend that runs it."""

    backend: Backend
    graph: GraphInfo
    path: Path
    spec: ModelSpec

    def found(self, runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for some inputs."""
        return run_on_arrays(self.backend, runner, feeds, {"tokens": cell_count(self.spec.vision.grid(_PICTURE_WH).hw)})

    def feeds(self, inputs: Mapping[str, TensorInfo], run: _Run, count: int) -> dict[str, Array]:
        """Inputs by name for `count` pictures or sequences. The first one does not depend on `count`."""
        each = [self._feeds_of_one(inputs, run, index) for index in range(count)]
        return {name: np.concatenate([feeds[name] for feeds in each]) for name in each[0]}

    @property
    def takes_several(self) -> bool:
        """Whether the first axis of every input counts pictures or sequences."""
        return all(tensor.dims[0] in ("images", "batch") for tensor in self.graph.inputs)

    def _feeds_of_one(self, inputs: Mapping[str, TensorInfo], run: _Run, index: int) -> dict[str, Array]:
        rng, family = np.random.default_rng(_SEED + index), family_of(self.spec)
        if self.graph.name == "vision" and family.square(self.spec.vision) is None:  # its indices have to be of a grid
            width, height = _PICTURE_WH
            picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            return dict(family.first_look(picture, self.spec.vision))
        extents = {"batch": 1, "images": 1, "sequence": run.rows, "cache_length": run.cache_length}
        own = run.of(index)
        rows = trial_rows(self.graph.inputs, own.start, own.start + own.rows)
        values = {name: _feed(tensor, own, extents, rng) for name, tensor in inputs.items() if name not in rows}
        names = [tensor.name for tensor in self.graph.inputs]
        return {name: rows[name] if name in rows else values[name] for name in names}

    @contextmanager
    def loaded(self) -> Iterator[Runner]:
        """The loaded graph, closed after the block."""
        runner = self.backend.load(self.graph, self.path)
        try:
            yield runner
        finally:
            runner.close()


def _gates(
    tried: _Loadable,
    other: _Loadable | None,
    contexts: Sequence[int],
    takes: _Takes,
    limit: float,
    most: int = 2,
) -> Iterator[ParityGate]:
    name = tried.graph.name
    runs = _runs(tried.graph, contexts)
    with tried.loaded() as runner:
        found = [tried.found(runner, tried.feeds(runner.inputs, run, 1)) for run in runs]
        pairs = [
            pair
            for run in runs
            for count in sorted({2, max(2, most)})
            if tried.takes_several
            for pair in _several(tried, runner, takes, run, count)
        ]
    labels = [run.label for run in runs]
    gates = [_finite(name, labels, found)]
    if other is not None:
        gates.append(_gate(name, SMOKE, _checks(labels, found, _expected(other, runs)), limit))
    yield from gates
    # A comparison of two with one means nothing if one is wrong.
    if pairs and all(gate.ok for gate in gates):
        yield _gate(name, TWO_AT_ONCE, pairs, limit)


def _runs(graph: GraphInfo, contexts: Sequence[int]) -> list[_Run]:
    """One run per profile."""
    if not any("sequence" in tensor.dims for tensor in graph.inputs):
        return [_Run("one picture", 0, 1)]
    return [
        _Run(f"{label} at {context}" if len(contexts) > 1 else label, start, rows, context)
        for context in contexts
        for label, start, rows in (("prefill", 5, 8), ("one row", 13, 1))
    ]


def _expected(other: _Loadable, runs: Sequence[_Run]) -> list[dict[str, Array]]:
    with other.loaded() as runner:
        return [other.found(runner, other.feeds(runner.inputs, run, 1)) for run in runs]


def _several(tried: _Loadable, runner: Runner, takes: _Takes, run: _Run, count: int) -> Iterator[tuple[str, float]]:
    """Where it takes so many at once: (tensor and run, difference of an entry from what it is by itself)."""
    all_feeds = tried.feeds(runner.inputs, run, count)
    if not takes(all_feeds):
        return
    together = tried.found(runner, all_feeds)
    for index in range(count):
        alone = tried.found(runner, {name: array[index : index + 1] for name, array in all_feeds.items()})
        for name, array in together.items():
            yield f"{name}, {run.label}, {index + 1} of {count}", _difference(array[index : index + 1], alone[name])


def _takes(manifest: EngineManifest, feeds: Mapping[str, Array]) -> bool:
    """Whether a profile of the engine accepts these shapes."""
    dynamic = [tensor for tensor in manifest.tensors if tensor.mode == "input" and tensor.profiles]
    return any(
        all(
            least <= extent <= most
            for tensor in dynamic
            for least, extent, most in zip(
                tensor.profiles[number][0], feeds[tensor.name].shape, tensor.profiles[number][-1], strict=True
            )
        )
        for number in range(len(manifest.profiles))
    )


def _feed(tensor: TensorInfo, run: _Run, extents: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = tuple(extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims)
    values: Array = rng.standard_normal(shape, np.float32)
    if tensor.storage in ("int8", "uint8"):  # codes, whose bits are also small numbers in fp8
        values = rng.integers(0, 100, shape)
    if tensor.role == "cache_scale":
        values = np.abs(values) / 128
    if tensor.is_cache:
        values[:, :, run.start :] = 0
    if tensor.dtype == "bfloat16":  # the upper two bytes of a float32
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(tensor.storage)


def _numbers(array: Array) -> Array:
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


def _finite(graph: str, labels: Sequence[str], found: Sequence[dict[str, Array]]) -> ParityGate:
    checks = [
        (f"{name}, {label}", float(np.count_nonzero(~np.isfinite(_numbers(array)))))
        for label, results in zip(labels, found, strict=True)
        for name, array in results.items()
    ]
    place, worst = max(checks, key=lambda check: check[1])
    return ParityGate(graph, FINITE, place, worst, 0.0, len(checks), worst == 0)


def _checks(
    labels: Sequence[str], found: Sequence[dict[str, Array]], expected: Sequence[dict[str, Array]]
) -> list[tuple[str, float]]:
    return [
        (f"{name}, {label}", _difference(results[name], wanted))
        for label, results, others in zip(labels, found, expected, strict=True)
        for name, wanted in others.items()
    ]


def _gate(graph: str, kind: str, checks: Sequence[tuple[str, float]], limit: float) -> ParityGate:
    place, worst = max(checks, key=lambda check: check[1])
    return ParityGate(graph, kind, place, worst, limit, len(checks), worst <= limit)


def _difference(found: Array, expected: Array) -> float:
    """The largest difference, as a share of max(1, largest value); a huge number if it is not finite."""
    found, expected = _ordered(found), _ordered(expected)
    difference = np.abs(found.astype(np.float64) - expected)
    scale = max(1.0, float(np.abs(expected, dtype=np.float64).max(initial=0)))
    worst = float(difference.max(initial=0)) / scale
    return worst if np.isfinite(worst) else float(np.finfo(np.float64).max)


def _ordered(array: Array) -> Array:
    """fp8 codes, whose bits are a sign and a magnitude, as integers in the order of their values; others unchanged.

    A rounding to the next value then changes an integer by one.
    """
    if array.dtype != np.uint8:
        return array
    magnitude = (array & 0x7F).astype(np.int16)
    return np.where(array & 0x80, -magnitude, magnitude)
