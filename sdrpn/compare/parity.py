"""How far a bundle's graphs and answers are from PyTorch in float32, as figures with gates. Knows no inference library.

While `graphs.py` and `answers.py` stop at the first failure, this measures everything: the largest and the mean
difference and the cosine of each output of each run; the largest value that fp16 would have to hold, for each matrix
product and each attention's scores; RoI map, crops and tokens of whole answers. A decoder graph returns keys and values
of all its layers, so an error is visible in the first layer after its cause.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sdrpn.bundle.bundle import Variant
from sdrpn.bundle.engine_manifest import ParityGate
from sdrpn.bundle.signatures import expected_signatures
from sdrpn.bundle.tolerances import FP16_PEAK, MASKED_SCORE_PEAK, more_is_better, tolerances_of
from sdrpn.compare.answers import AnswerQuestion, TrialQuestion, compare_answers
from sdrpn.compare.graphs import Array, Check, Kind, RunGraph, relative_difference
from sdrpn.compare.trials import Trial, graph_trials
from sdrpn.compare.vision_noise import TowerNoise
from sdrpn.errors import SdrpnError
from sdrpn.model.base import SdRpnModel

__all__ = ["answer_parity", "gates", "graph_parity", "peak_checks", "recorded_peaks"]

# Keys, values and the RPN's scores: fp16 outputs of a graph that are not outputs of a layer's matrix.
_HALF_OUTPUTS = ("cache", "new_rows", "scores", "new_scores", "sink_logits", "new_sink_logits", "seen", "new_seen")
_SCORES = " scores"


def graph_parity(
    model: SdRpnModel, variant: Variant, run: RunGraph, *, max_context: int, tower: TowerNoise | None = None
) -> Iterator[Check]:
    """Run every graph on inputs from PyTorch, and measure each output.

    Args:
        model: float32, from the bundle's checkpoint
        run: runs a graph by name; an SdrpnError is a failed check
        max_context: the bundle's limit, in tokens
        tower: measures the noise of the vision tower by itself; None: that is not measured
    """
    signatures = expected_signatures(
        model.spec, variant.dialect, variant.precision, for_cpu=variant.for_cpu, kv_cache=variant.kv_cache
    )
    for name, signature in signatures.items():
        for trial in graph_trials(model, name, signature, variant, max_context=max_context):
            try:
                results = trial.decoded(run(name, trial.feeds))
            except SdrpnError as error:
                yield Check(variant.name, name, "values", trial.label, f"did not run: {error}", "arrays", ok=False)
                break
            noise = tower.check(variant, trial, results) if tower is not None and name == "vision" else None
            if noise is not None:
                yield noise
            for output, expected in trial.expected.items():
                yield from _measured(variant, name, trial, output, results.get(output), expected)


def answer_parity(
    model: SdRpnModel, questions: Sequence[TrialQuestion], answer: AnswerQuestion, *, variant: str, precision: str
) -> Iterator[Check]:
    """Ask all questions, and give one figure per kind over all of them. Questions that could not be asked are noted.

    Ties (see `answers.py`) count as agreement; the note says how many there were.
    """
    limits = tolerances_of(precision)
    checks = list(compare_answers(model, questions, answer, variant=variant, precision=precision, thorough=True))
    asked = [check for check in checks if check.found != "not asked"]
    yield from _worst_maps(asked)
    overlaps = [check for check in asked if check.kind == "box IoU" and not check.note]
    if overlaps:
        mean = float(np.mean([check.found for check in overlaps if isinstance(check.found, float)]))
        text = f"mean of {len(overlaps)} questions"
        yield Check(variant, "answer", "box IoU", text, mean, limit=limits.box_iou, ok=mean >= limits.box_iou)
    for kind, source in (("same crops", "boxes"), ("token agreement", "tokens")):
        found = [check for check in asked if check.kind == source]
        if found:
            yield _share(variant, kind, found, limits.answers)  # type: ignore[arg-type]
    for check in checks:
        if check.found == "not asked":
            yield check


def _worst_maps(checks: Sequence[Check]) -> Iterator[Check]:
    """The worst of both figures of RoI maps. The correlation of a random RPN's logits is reported without a gate."""
    kinds: tuple[Kind, ...] = ("roi cosine", "roi correlation")
    for kind in kinds:
        maps = [check for check in checks if check.kind == kind]
        if maps:
            worst = min(maps, key=lambda check: check.found if isinstance(check.found, float) else -2.0)
            if worst.limit is None and isinstance(worst.found, float):
                worst = dataclasses.replace(worst, note=f"at worst {worst.found:.4f}, with {worst.expected}")
            yield worst


@contextmanager
def recorded_peaks(model: SdRpnModel) -> Iterator[dict[str, float]]:
    """Record, within the block, the largest |x| of the input and output of every matrix product, by its name.

    Attention scores are included, as "NAME scores". In the graphs these values are fp16; the residual stream, the tap
    and the norms are float32.
    """
    peaks: dict[str, float] = {}

    def keep(name: str, tensor: Tensor) -> None:
        peak = float(tensor.abs().max()) if tensor.numel() else 0.0
        peaks[name] = max(peaks.get(name, 0.0), peak if np.isfinite(peak) else float("inf"))

    def hook(name: str) -> object:
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            keep(f"{name} in", inputs[0])
            keep(f"{name} out", output)

        return seen

    scores = _AttentionScores(keep)
    products = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))
    ]
    attentions = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == "attention"]
    handles = [product.register_forward_hook(hook(name)) for name, product in products]  # type: ignore[arg-type]
    handles += [module.register_forward_pre_hook(scores.entered(name)) for name, module in attentions]
    try:
        with torch.inference_mode(), scores:
            yield peaks
    finally:
        for handle in handles:
            handle.remove()


def peak_checks(variant: Variant, peaks: Mapping[str, float]) -> Iterator[Check]:
    """Check that fp16 can hold the recorded values; no checks for float32 and bf16, whose range is sufficient."""
    if variant.computes_in.has_range_of_float32:
        return
    for name, peak in peaks.items():
        masked = variant.dialect == "primitive" and name.endswith(_SCORES) and not name.startswith("vision.")
        yield _peak(variant, name.partition(".")[0], name, peak, MASKED_SCORE_PEAK if masked else FP16_PEAK)


def gates(checks: Iterable[Check]) -> tuple[ParityGate, ...]:
    """The worst check of each graph and kind; a failed one is worse than any that passed."""
    groups: dict[tuple[str, Kind], list[Check]] = {}
    for check in checks:
        if check.limit is not None or not check.ok:
            groups.setdefault((check.graph, check.kind), []).append(check)
    return tuple(_gate(group) for group in groups.values())


def _gate(group: list[Check]) -> ParityGate:
    def badness(check: Check) -> tuple[bool, bool, float]:
        number = check.found if isinstance(check.found, float) else 0.0
        return not check.ok, not isinstance(check.found, float), -number if more_is_better(check.kind) else number

    worst = max(group, key=badness)
    limit = worst.limit if worst.limit is not None else 0.0
    return ParityGate(
        worst.graph, worst.kind, worst.tensor, worst.found, limit, len(group), all(check.ok for check in group)
    )


class _AttentionScores(TorchFunctionMode):
    """Records the scores of every attention, head by head, since all at once are large."""

    def __init__(self, keep: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._keep, self._name = keep, ""

    def entered(self, name: str) -> object:
        """A hook that notes the name of the module whose attention runs next."""

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._name = name

        return note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            query, key = args[:2]  # (B,H,S,d), (B,H_kv,N,d)
            group = query.shape[1] // key.shape[1]
            for head in range(query.shape[1]):
                product = query[:, head] @ key[:, head // group].transpose(1, 2)
                self._keep(f"{self._name}{_SCORES}", product * query.shape[-1] ** -0.5)
        return func(*args, **(kwargs or {}))


def _peak(variant: Variant, graph: str, name: str, peak: float, limit: float) -> Check:
    found: str | float = peak if np.isfinite(peak) else "not a finite number"
    return Check(variant.name, graph, "peak", name, found, limit=limit, ok=peak <= limit)


def _measured(
    variant: Variant, graph: str, trial: Trial, output: str, found: Array | None, expected: Array
) -> Iterator[Check]:
    """Measure one output of one run; for a whole cache only the rows that this run wrote."""
    limits, label = tolerances_of(variant.numerics), f"{output}, {trial.label}"
    if (
        found is None
        or found.ndim != expected.ndim
        or any(a < b for a, b in zip(found.shape, expected.shape, strict=True))
    ):
        text = "missing" if found is None else str(found.shape)
        yield Check(variant.name, graph, "values", label, text, str(expected.shape), ok=False)
        return
    found = found[tuple(slice(extent) for extent in expected.shape)]
    found, expected = trial.written(output, found), trial.written(output, expected)
    measures: tuple[tuple[Kind, float, float], ...] = (
        ("values", relative_difference(found, expected), limits.values),
        ("mean", _mean_difference(found, expected), limits.mean),
        ("cosine", _cosine(found, expected), limits.cosine),
    )
    for kind, value, limit in measures[: 1 if expected.size == 1 else None]:  # one number has neither mean nor angle
        ok = value >= limit if more_is_better(kind) else value <= limit
        told: str | float = value if np.isfinite(value) else "not a finite number"
        yield Check(variant.name, graph, kind, label, told, limit=limit, ok=ok)
    if (
        not variant.computes_in.has_range_of_float32
        and trial.signature.outputs[output].role in _HALF_OUTPUTS
        and expected.size
    ):
        yield _peak(variant, graph, label, float(np.abs(expected.astype(np.float64)).max()), FP16_PEAK)


def _share(variant: str, kind: Kind, found: Sequence[Check], limit: float) -> Check:
    share = sum(check.ok for check in found) / len(found)
    ties = sum(bool(check.note) and check.ok for check in found)
    note = f"{ties} of {len(found)} at a tie" if ties else ""
    label = next((check.tensor for check in found if not check.ok), f"{len(found)} questions")
    return Check(variant, "answer", kind, label, share, limit=limit, ok=share >= limit, note=note)


def _mean_difference(found: Array, expected: Array) -> float:
    """As `relative_difference`, but the mean over all entries."""
    if expected.size == 0:
        return 0.0
    found64, expected64 = found.astype(np.float64), expected.astype(np.float64)
    scale = np.maximum(1.0, np.abs(expected64).max(axis=-1, keepdims=True))
    return float((np.abs(found64 - expected64) / scale).mean())


def _cosine(found: Array, expected: Array) -> float:
    """The cosine of both arrays as vectors; two zero vectors are equal."""
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float(np.array_equal(a, b))
