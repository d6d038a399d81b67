"""Compare the graphs of a bundle with the same parts in PyTorch: names, axes, shapes and values, in that order.

Knows no inference library: the caller passes a function that runs one graph on arrays. The inputs of every run come
from PyTorch, so that each graph is judged on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdrpn.bundle.bundle import TensorInfo, Variant
from sdrpn.bundle.extents import known_extent
from sdrpn.bundle.signatures import GraphSignature, expected_signatures
from sdrpn.bundle.tolerances import ROTARY_RELATIVE, tolerances_of
from sdrpn.compare.trials import Trial, graph_trials
from sdrpn.errors import SdrpnError
from sdrpn.method.rope import RotaryFrequencies
from sdrpn.model.base import SdRpnModel
from sdrpn.model.layers import frequencies

__all__ = [
    "Check",
    "Kind",
    "RunGraph",
    "compare_embedding",
    "compare_graphs",
    "compare_rotary",
    "relative_difference",
    "until_failed",
]

Array = NDArray[Any]
Kind = Literal[
    "checkpoint", "names", "axes", "shapes", "values", "roi cosine", "roi correlation", "boxes", "tokens",
    # used by parity.py only:
    "mean", "cosine", "noise", "peak", "box IoU", "same crops", "token agreement",
]  # fmt: skip
RunGraph = Callable[[str, Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Check:
    """One comparison. Numbers are compared with `limit`, everything else with `expected`."""

    variant: str
    graph: str  # or "embedding", "answer", "bundle"
    kind: Kind
    tensor: str  # tensor and run, or question
    found: str | float
    expected: str | None = None
    limit: float | None = None
    ok: bool = True
    note: str = ""  # why an unequal value passes, or was not compared


def compare_graphs(
    model: SdRpnModel,
    variant: Variant,
    run: RunGraph,
    *,
    max_context: int,
    files: Mapping[str, GraphSignature] | None = None,
) -> Iterator[Check]:
    """Check every graph of `variant`; after the first kind that fails for a graph, its later kinds are skipped.

    Args:
        model: float32, from the bundle's checkpoint
        run: runs a graph by name, arrays by input name -> arrays by output name; an SdrpnError is a failed check
        max_context: the bundle's limit, in tokens
        files: inputs and outputs as declared in the graph files, checked as well as the manifest's
    """
    expected = expected_signatures(
        model.spec, variant.dialect, variant.precision, for_cpu=variant.for_cpu, kv_cache=variant.kv_cache
    )
    for graph in (name for name in variant.graphs if name not in expected):
        yield Check(variant.name, graph, "names", "graph", "a graph that the model does not have", "none", ok=False)
    for name, signature in expected.items():
        if name not in variant.graphs:
            yield Check(variant.name, name, "names", "graph", "missing", "one graph", ok=False)
            continue
        declared = variant.graphs[name]
        found = {"manifest": GraphSignature.of(declared.inputs, declared.outputs)}
        if files is not None:
            found["file"] = files[name]
        checker = _GraphChecker(model, variant, name, signature, max_context)
        yield from until_failed(checker.names(found), checker.axes(found), checker.runs(run))


def compare_embedding(model: SdRpnModel, variant: Variant, rows: Callable[[Sequence[int]], Array]) -> Iterator[Check]:
    """Check the whole token embedding table, which is not a graph; `rows` returns (len(ids), D) for ids."""
    limit, step, worst = tolerances_of(variant.numerics).values, 4096, 0.0
    for first in range(0, model.spec.llm.vocabulary, step):
        ids = range(first, min(first + step, model.spec.llm.vocabulary))
        worst = max(worst, relative_difference(rows(ids), model.embed.weight[ids.start : ids.stop].numpy()))
    yield _value_check(variant.name, "embedding", "table", worst, limit)


def compare_rotary(model: SdRpnModel, variant: Variant, rotary: RotaryFrequencies) -> Iterator[Check]:
    """Check the frequencies from which the host makes rotary tables, as a share of each number."""
    found, expected = (np.array([*each.inverse, each.amplitude]) for each in (rotary, frequencies(model.spec.llm)))
    yield _value_check(
        variant.name, "rotary", "frequencies", float(np.abs(found / expected - 1).max()), ROTARY_RELATIVE
    )


def until_failed(*stages: Iterable[Check]) -> Iterator[Check]:
    """All checks of each stage, up to and including the first stage with a failure."""
    for stage in stages:
        failed = False
        for check in stage:
            failed |= not check.ok
            yield check
        if failed:
            return


def relative_difference(found: Array, expected: Array) -> float:
    """The largest difference in any row (last axis), as a share of max(1, the row's largest expected value).

    Row by row, because a few tokens with massive activations would hide the errors of all others. Infinite if a value
    is not finite.
    """
    if expected.size == 0:
        return 0.0
    found64, expected64 = found.astype(np.float64), expected.astype(np.float64)
    scale = np.maximum(1.0, np.abs(expected64).max(axis=-1, keepdims=True))
    worst = float((np.abs(found64 - expected64) / scale).max())
    return worst if np.isfinite(worst) else float("inf")


def _value_check(variant: str, graph: str, tensor: str, difference: float, limit: float) -> Check:
    found = difference if np.isfinite(difference) else "not a finite number"
    return Check(variant, graph, "values", tensor, found, limit=limit, ok=difference <= limit)


# One graph -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GraphChecker:
    model: SdRpnModel
    variant: Variant
    graph: str
    expected: GraphSignature
    max_context: int

    def names(self, found: Mapping[str, GraphSignature]) -> Iterator[Check]:
        """One check for each of inputs and outputs, and each place that declares them."""
        for place, side, declared, wanted in self._sides(found):
            missing, unknown = sorted(wanted.keys() - declared.keys()), sorted(declared.keys() - wanted.keys())
            texts = (", ".join(unknown) or "nothing", ", ".join(missing) or "nothing else")
            if not missing and not unknown:
                texts = (f"all {len(wanted)}",) * 2
            yield self._check("names", f"{side} in the {place}", *texts, ok=not missing and not unknown)

    def axes(self, found: Mapping[str, GraphSignature]) -> Iterator[Check]:
        """Types, fixed extents and dynamic axes: one check for all correct tensors, one for each wrong tensor."""
        for place, side, declared, wanted in self._sides(found):
            wrong = [name for name in wanted if _form(declared[name]) != _form(wanted[name])]
            for name in wrong:
                texts = _text_from_tensor(declared[name]), _text_from_tensor(wanted[name])
                yield self._check("axes", f"{name} in the {place}", *texts, ok=False)
            if not wrong:
                yield self._check("axes", f"{side} in the {place}", *(f"all {len(wanted)}",) * 2, ok=True)

    def runs(self, run: RunGraph) -> Iterator[Check]:
        """Run the graph and check shapes, then values, up to the first run with wrong shapes."""
        trials = graph_trials(self.model, self.graph, self.expected, self.variant, max_context=self.max_context)
        for trial in trials:
            try:
                results = run(self.graph, trial.feeds)
            except SdrpnError as error:
                yield self._check("shapes", trial.label, f"did not run: {error}", "arrays", ok=False)
                return
            checks = list(self._shapes(trial, results))
            yield from checks
            if not all(check.ok for check in checks):
                return
            yield from self._values(trial, results)

    def _shapes(self, trial: Trial, results: Mapping[str, Array]) -> Iterator[Check]:
        extents = _extents(self.expected.inputs, trial.feeds)
        for name, tensor in self.expected.outputs.items():
            shape = tuple(known_extent(dim, extents) for dim in tensor.dims)
            found = results[name].shape if name in results else None
            yield self._check("shapes", f"{name}, {trial.label}", str(found), str(shape), ok=found == shape)

    def _values(self, trial: Trial, results: Mapping[str, Array]) -> Iterator[Check]:
        results = trial.decoded(results)
        limit = tolerances_of(self.variant.numerics).values
        for name, expected in trial.expected.items():
            found = results[name][tuple(slice(extent) for extent in expected.shape)]
            label = f"{name}, {trial.label}"
            yield _value_check(self.variant.name, self.graph, label, relative_difference(found, expected), limit)

    def _sides(
        self, found: Mapping[str, GraphSignature]
    ) -> Iterator[tuple[str, str, Mapping[str, TensorInfo], Mapping[str, TensorInfo]]]:
        for place, declared in found.items():
            yield place, "inputs", declared.inputs, self.expected.inputs
            yield place, "outputs", declared.outputs, self.expected.outputs

    def _check(self, kind: Kind, tensor: str, found: str, expected: str, *, ok: bool) -> Check:
        return Check(self.variant.name, self.graph, kind, tensor, found, expected, ok=ok)


def _form(tensor: TensorInfo) -> tuple[object, ...]:
    """The part of a tensor that a graph file declares: not its role."""
    return tensor.name, tensor.dtype, tensor.dims


def _text_from_tensor(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} ({', '.join(map(str, tensor.dims))})"


def _extents(inputs: Mapping[str, TensorInfo], feeds: Mapping[str, Array]) -> dict[str, int]:
    """The extents of the dynamic dimensions in these inputs."""
    pairs = (pair for name, tensor in inputs.items() for pair in zip(tensor.dims, feeds[name].shape, strict=True))
    return {dim: extent for dim, extent in pairs if isinstance(dim, str)}
