"""Check a bundle's graphs or engines on this device: numbers, answers, repetition, time, memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.engine_manifest import ParityGate
from sdrpn.bundle.tolerances import Tolerances, tolerances_of
from sdrpn.host.sizes import text_from_bytes
from sdrpn.method.spec import ModelSpec
from sdrpn.reports.device_report import Figure, Subject
from sdrpn.runtime.answer import Answer, Trace
from sdrpn.runtime.bench import BenchCase, bench_cases, bench_picture, bench_prompt
from sdrpn.runtime.checkup.steps import CheckFailed, Finding, Skip, Step
from sdrpn.runtime.session import Session

__all__ = ["BundleChecks", "BundleOnDevice", "compare_bits", "relative_difference", "require_within"]

_NEW_TOKENS = 16
_REPEATS = 5
_LEAK_BYTES = 64 << 20


class BundleOnDevice(Protocol):
    """A bundle and the backend that it is checked on."""

    @property
    def subject(self) -> Subject:
        """The bundle that is checked, and what runs it."""
        ...

    @property
    def numerics(self) -> str:
        """The variant's numerics, for `tolerances_of`."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        ...

    @property
    def note(self) -> str | None:
        """Why existing engines are not used, or None."""
        ...

    def open(self, *, cuda_graph: bool = True) -> Session:
        """A session on the backend."""
        ...

    def open_reference(self) -> Session | None:
        """A reference session in ONNX Runtime on the CPU; with other graphs, where the checked backend is the same.

        None where it has no kernels, or the bundle has no other graphs.
        """
        ...

    def gates(self) -> Iterator[ParityGate]:
        """Compare every graph with ONNX Runtime on the CPU. Raises Skip where there is nothing to compare."""
        ...

    def free_bytes(self) -> int | None:
        """Memory that the backend could still allocate."""
        ...


class BundleChecks:
    """The checks of one bundle, which open and close sessions."""

    def __init__(self, device: BundleOnDevice) -> None:
        self._device = device
        self._free_at_start: int | None = None

    def steps(self) -> list[Step]:
        """The steps, those with the fewest requirements first."""
        return [
            Step("load", self.load),
            Step("numbers, graph by graph", self.numbers),
            Step("a whole answer", self.answer),
            Step("the first look kept", self.prefix_reuse),
            Step("the same question five times", self.repeats),
            Step("time", self.time_of_an_answer),
            Step("two sessions, closed in both orders", self.two_sessions),
            Step("memory goes back", self.memory_back),
        ]

    @cached_property
    def _limits(self) -> Tolerances:
        return tolerances_of(self._device.numerics)

    def load(self) -> Finding:
        """Open the bundle and ask a first question."""
        self._free_at_start = self._settled_free_bytes()
        start = time.perf_counter()
        with self._device.open() as session:
            opened_s = time.perf_counter() - start
            first_s = self._first_s(session)
            taken = _difference(self._free_at_start, self._device.free_bytes())
        figures: dict[str, Figure] = {"open_s": opened_s, "first_answer_s": first_s}
        if taken is not None:
            figures["taken_bytes"] = taken
        subject, note = self._device.subject, self._device.note
        return Finding(
            f"{subject.variant} on {subject.backend} opened in {opened_s:.2f} s, first answer after another "
            f"{first_s:.2f} s{f'; {note}' if note else ''}",
            figures,
        )

    def numbers(self) -> Finding:
        """Compare each graph's outputs with ONNX Runtime's."""
        gates = list(self._device.gates())
        failed = [gate for gate in gates if not gate.ok]
        if failed:
            shown = "; ".join(f"{gate.graph} {gate.kind}, {gate.tensor}: {gate.text}" for gate in failed)
            raise CheckFailed(f"{len(failed)} of {len(gates)} gates failed: {shown}")
        figures: dict[str, Figure] = {
            f"{gate.graph}_{gate.kind.replace(' ', '_')}": float(gate.found) for gate in gates if gate.found is not None
        }
        return Finding(f"{len(gates)} of {len(gates)} gates passed", figures)

    def answer(self) -> Finding:
        """Both passes: RoI logits and tokens equal to the reference's, up to rounding."""
        with self._device.open() as session:
            found = self._ask(session)
        reference = self._device.open_reference()
        if reference is None:
            return Finding(
                f"{len(found.token_ids)} tokens, {found.roi_token_count} of them seen in the crop; nothing to compare "
                "with: other backends are compared with this one"
            )
        with reference:
            expected = self._ask(reference)
        figures = self._compared(found, expected)
        same = found.token_ids == expected.token_ids
        logits = f"logits differ by up to {figures['logit_difference']:.1e} of the largest"
        whose = f"{reference.variant.name} on {reference.backend}"
        shown = f"the tokens of {whose}" if same else f"rounding decides between its tokens and those of {whose}"
        return Finding(f"{shown}; {logits}", figures)

    def prefix_reuse(self) -> Finding:
        """A second question about an image gets the same answer as in a fresh session, with prefix reuse."""
        with self._device.open() as session:
            fresh = self._ask(session)
            session.forget_image()
            self._ask(session, reverse=True)
            again = self._ask(session)
            if again.tokens.trunk_rows >= fresh.tokens.trunk_rows:
                raise CheckFailed("the second question about an image recomputed its prefix")
        return Finding(
            f"{again.tokens.trunk_rows} instead of {fresh.tokens.trunk_rows} rows computed, the same answer",
            self._compared(again, fresh),
        )

    def repeats(self) -> Finding:
        """Whether repeated answers have bit-identical logits."""
        with self._device.open() as session:
            answers = []
            for _ in range(_REPEATS):
                session.forget_image()
                answers.append(self._ask(session))
        first, *others = answers
        if all(_same_bits(first, other) for other in others):
            return Finding(f"{_REPEATS} times the same bits")
        figures = [self._compared(other, first) for other in others]
        worst = max(float(found["logit_difference"]) for found in figures)
        return Finding(f"other bits: logits differ by up to {worst:.2g} of the largest", {"logit_difference": worst})

    def time_of_an_answer(self) -> Finding:
        """Median times; on TensorRT with the decode step as one CUDA graph, and without."""
        figures: dict[str, Figure] = dict(self._times(cuda_graph=True))
        shown = f"first token {figures['first_token_ms']:.1f} ms, then {_per_token(figures)}"
        if self._device.subject.backend != "tensorrt":
            return Finding(shown, figures)
        without = self._times(cuda_graph=False)
        figures |= {f"{name.removesuffix('_ms')}_without_graph_ms": value for name, value in without.items()}
        return Finding(f"{shown}; without a CUDA graph {_per_token(without)}", figures)

    def _times(self, *, cuda_graph: bool) -> dict[str, float]:
        """Medians; no `token_ms` where the answer ends with its first token."""
        with self._device.open(cuda_graph=cuda_graph) as session:
            self._ask(session)  # warm-up: the first answer is slower
            answers = []
            for _ in range(_REPEATS):
                session.forget_image()
                answers.append(self._ask(session).timings)
        first = [timings.total_s - sum(timings.decode_s) for timings in answers]
        found = {"first_token_ms": float(np.median(first)) * 1e3}
        token = [timings.decode_per_token_s for timings in answers if timings.decode_s]
        return {**found, "token_ms": float(np.median(token)) * 1e3} if token else found

    def two_sessions(self) -> Finding:
        """The remaining session answers as before, whichever was closed first."""
        self._require_room()
        for first_to_close in (0, 1):
            with self._device.open() as first, self._device.open() as second:
                sessions = (first, second)
                expected = [self._ask(session) for session in sessions]
                sessions[first_to_close].close()
                left = sessions[1 - first_to_close]
                left.forget_image()
                self._compared(self._ask(left), expected[1 - first_to_close])
        return Finding("the remaining session answered as before")

    def _require_room(self) -> None:
        before = self._settled_free_bytes()
        with self._device.open() as session:
            self._ask(session)
            after = self._device.free_bytes()
        needed = _difference(before, after)
        if needed is not None and after is not None and needed > after:
            raise Skip(f"another session takes {text_from_bytes(needed)}; {text_from_bytes(after)} are free")

    def memory_back(self) -> Finding:
        """Memory is free again after all sessions were closed."""
        if self._device.subject.backend == "onnxruntime":
            raise Skip("ONNX Runtime keeps the memory of the process; this is measured on a GPU")
        lost = _difference(self._free_at_start, self._settled_free_bytes())
        if lost is None:
            raise Skip("this device does not report how much memory is free")
        if lost > _LEAK_BYTES:
            raise CheckFailed(f"{text_from_bytes(lost)} were not freed")
        return Finding("all of it", {"lost_bytes": lost})

    @cached_property
    def _case(self) -> BenchCase:
        spec = self._device.spec
        return bench_cases(spec, ["one-box" if spec.rpn is not None else "plain"])[0]

    def _first_s(self, session: Session) -> float:
        """Seconds of a first question."""
        return self._ask(session).timings.total_s

    def _ask(self, session: Session, *, reverse: bool = False) -> Answer:
        """Ask a question, with both passes where the model has an RPN: the crop is fixed, whatever rounding does."""
        before, after = bench_prompt(session.spec)
        return session.answer_ids(
            bench_picture(0),
            before,
            after[::-1] if reverse else after,
            roi=self._case.roi,
            decide=self._case.decide,
            max_new_tokens=_NEW_TOKENS,
            trace=True,
        )

    def _compared(self, found: Answer, expected: Answer) -> dict[str, Figure]:
        """Differences of the logits, up to the first different token. Raises CheckFailed above the variant's limits."""
        ours, reference = _trace(found), _trace(expected)
        figures: dict[str, Figure] = {}
        if ours.roi_logits is not None and reference.roi_logits is not None:
            figures["roi_difference"] = relative_difference(ours.roi_logits, reference.roi_logits)
            require_within(float(figures["roi_difference"]), self._limits.values, "RoI logits")
        steps = _shared_steps(found.token_ids, expected.token_ids, len(ours.step_logits), len(reference.step_logits))
        figures["logit_difference"] = max(
            relative_difference(a, b)
            for a, b in zip(ours.step_logits[:steps], reference.step_logits[:steps], strict=True)
        )
        require_within(float(figures["logit_difference"]), self._limits.token_logit, "logits")
        return figures

    def _settled_free_bytes(self) -> int | None:
        gc.collect()
        return self._device.free_bytes()


def _trace(answer: Answer) -> Trace:
    if answer.trace is None:
        raise CheckFailed("the answer has no trace")
    return answer.trace


def _same_bits(first: Answer, second: Answer) -> bool:
    a, b = _trace(first), _trace(second)
    return first.token_ids == second.token_ids and compare_bits(a.step_logits, b.step_logits)


def _shared_steps(found: Sequence[int], expected: Sequence[int], found_steps: int, expected_steps: int) -> int:
    """The number of steps preceded by equal tokens."""
    same = 0
    for found_id, expected_id in zip(found, expected, strict=False):
        if found_id != expected_id:
            break
        same += 1
    return min(same + 1, found_steps, expected_steps)


def compare_bits(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> bool:
    """Whether both hold the same bits."""
    return first.tobytes() == second.tobytes()


def relative_difference(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """The largest difference relative to max(1, largest value); infinite for values that are not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / scale


def require_within(difference: float, limit: float, what: str) -> None:
    """Raises CheckFailed for a difference that is more than rounding."""
    if not difference <= limit:
        raise CheckFailed(f"{what} differ by {difference:.3g} of the largest, at most {limit:g} is rounding")


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else before - after


def _per_token(figures: Mapping[str, Figure]) -> str:
    return f"{figures['token_ms']:.2f} ms per token" if "token_ms" in figures else "no further one: the answer ended"
