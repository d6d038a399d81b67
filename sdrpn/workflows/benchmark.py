"""Measure how long answers take, stage by stage: of bundles, and of the reference in PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdrpn.bundle.shipped import bundle_name, bundle_path, bundle_title
from sdrpn.bundle.work import prefill_operations
from sdrpn.errors import BadInput
from sdrpn.families.look_settings import LookSettings
from sdrpn.host.bandwidth import read_bandwidth
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra, installed_version
from sdrpn.host.machine import read_cpu, read_machine
from sdrpn.host.power import PowerMeter
from sdrpn.host.progress import Advance, unseen
from sdrpn.host.threads import choose_threads
from sdrpn.method.spec import ModelSpec
from sdrpn.reports.bench_report import BenchReport, CaseFigures, percentiles, stages_of_median
from sdrpn.runtime import Session
from sdrpn.runtime.backends.registry import AUTOMATIC, BACKENDS
from sdrpn.runtime.bench import (
    CASES,
    BenchCase,
    BenchRun,
    BenchSide,
    SessionSide,
    bench_cases,
    bench_picture,
    bench_prompt,
    bench_rounds,
)
from sdrpn.workflows.torch_threads import torch_threads

__all__ = ["CASES", "BenchBundle", "BenchReference", "BenchRequest", "bench", "bench_bundle"]


@dataclass(frozen=True)
class BenchBundle(CheckedFields):
    """A further side of a benchmark: a bundle's variant."""

    path: Path | str  # folder, or `demo`
    variant: str | None = None  # None: the one that suits a CPU best
    optimized: bool = True  # use graphs saved for this machine, if there are any
    backend: str | None = None  # as for Session.open; None: that of the request
    kv_cache: Literal["int8"] | None = None  # as for Session.open

    @classmethod
    def from_text(cls, text: str, path: Path) -> BenchBundle:
        """BUNDLE, BUNDLE:VARIANT, BUNDLE:VARIANT:standard or BUNDLE:VARIANT:BACKEND, which :int8 may follow.

        Args: path: what BUNDLE stands for
        Raises: BadInput for another form
        """
        _, variant, form, caches, *more = [*text.split(":"), "", "", ""]
        backends = (AUTOMATIC, *BACKENDS)
        if form not in ("", "standard", *backends) or caches not in ("", "int8") or any(more):
            expected = "BUNDLE, BUNDLE:VARIANT, BUNDLE:VARIANT:standard, BUNDLE:VARIANT:BACKEND"
            raise BadInput(f"{text}: expected {expected} or BUNDLE:VARIANT:BACKEND:int8")
        return cls(
            path,
            variant or None,
            optimized=form != "standard",
            backend=form if form in backends else None,
            kv_cache="int8" if caches else None,
        )

    def __str__(self) -> str:
        form = self.backend or ("" if self.optimized else "standard")
        parts = [bundle_name(bundle_path(self.path)), self.variant or "", form, self.kv_cache or ""]
        return ":".join(parts).rstrip(":")


@dataclass(frozen=True)
class BenchReference(CheckedFields):
    """A further side of a benchmark: a checkpoint in PyTorch, which recomputes everything in the second pass."""

    checkpoint: Path


@dataclass(frozen=True)
class BenchRequest(CheckedFields):
    """What to measure, and how often."""

    bundle: Path | str  # folder, or `demo`
    variant: str | None = None  # None: the one that suits a CPU best
    optimized: bool = True  # use graphs saved for this machine, if there are any
    others: tuple[BenchBundle | BenchReference, ...] = ()  # loaded together and measured in turn
    cases: tuple[str, ...] = CASES
    backend: str = "onnxruntime"  # as for Session.open
    threads: int | None = None  # of the CPU; None: one per free core, and a single one for a small model
    runs: int = 10  # measured runs, after one warm-up run; percentiles of fewer than ten mean little
    new_tokens: int = 16  # tokens per answer
    verify: bool = True  # check the digests of large files
    command: str = ""  # the command that the report shows
    image_tokens: tuple[int, int] | None = None  # least and most of the picture; None: the model's own
    preset: str | None = None  # a kind of question, whose official image tokens are used
    kv_cache: Literal["int8"] | None = None  # as for Session.open, of the first side

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("runs", "new_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(
                    f"{name} is {getattr(self, name)}; expected a whole number of at least 1", options=(name,)
                )

    @property
    def first(self) -> BenchBundle:
        """The side that the others are compared with."""
        return BenchBundle(self.bundle, self.variant, self.optimized, kv_cache=self.kv_cache)

    @property
    def has_reference(self) -> bool:
        """Whether one of the sides is PyTorch."""
        return any(isinstance(other, BenchReference) for other in self.others)


def bench_bundle(
    bundle: Path | str,
    *,
    variant: str | None = None,
    optimized: bool = True,
    others: tuple[BenchBundle | BenchReference, ...] = (),
    cases: tuple[str, ...] = CASES,
    backend: str = "onnxruntime",
    threads: int | None = None,
    runs: int = 10,
    new_tokens: int = 16,
    verify: bool = True,
    progress: Advance = unseen,
) -> BenchReport:
    """Answer with the number of crops forced (the RPN still runs) and time every stage.

    Questions are token ids about seeded pictures, so any bundle works. All sides are in memory at once and are measured
    in turn, so that other load on the machine slows them alike.

    Args:
        bundle: folder, or "demo"
        variant: None: the one that suits a CPU best
        optimized: use graphs saved for this machine, if there are any
        others: further sides, loaded together and measured in turn
        cases: names from CASES
        backend, threads, verify: see `Session.open`
        runs: measured runs, after one warm-up run; percentiles of fewer than ten mean little
        new_tokens: tokens per answer
        progress: called with the number of answers so far, and of all

    Returns: seconds by side, case and stage (p50, p95, p99), tokens per second, and ratios
    Raises:
        BadInput: an unknown case or variant, bundles of different models, or the same side twice
        BadBundle, BadCheckpoint: a file that cannot be read
        MissingDependency: the reference without the extra `train`
    """
    request = BenchRequest(
        bundle, variant, optimized, others, cases, backend, threads, runs=runs, new_tokens=new_tokens, verify=verify
    )
    return bench(request, progress)


def bench(request: BenchRequest, progress: Advance = unseen) -> BenchReport:
    """See `bench_bundle`."""
    with ExitStack() as opened:
        sides, spec = _sides(request, opened)
        vision = LookSettings(None, request.preset, request.image_tokens).settled(spec).vision_of(spec)
        cases = bench_cases(dataclasses.replace(spec, vision=vision), request.cases)
        on_cpu = {side.name: side.session for side in sides if isinstance(side, SessionSide) and side.session.on_cpu}
        threads = choose_threads(request.threads, spec.llm.largest_matrix).count
        with PowerMeter() as meter:
            found = list(bench_rounds(sides, cases, runs=request.runs, advance=progress))
        peak = _peak_rss_bytes() if len(sides) == 1 else None
        bandwidth = read_bandwidth(threads) if on_cpu else None  # takes memory of its own
        figures = tuple(
            each if each.side not in on_cpu or bandwidth is None else _with_bounds(each, found, on_cpu, bandwidth)
            for each in _figures(found, [case.name for case in cases], [side.name for side in sides])
        )
    machine = _machine(request, threads)
    return BenchReport(machine, request.command, request.runs, figures, peak, meter.readings, bandwidth)


def _with_bounds(
    figures: CaseFigures,
    found: Iterable[tuple[str, str, BenchRun]],
    sessions: Mapping[str, Session],
    bandwidth: float,
) -> CaseFigures:
    """With what a step reads and a prefill computes, beside what the machine's memory allows."""
    session = sessions[figures.side]
    run = next(run for side, case, run in found if (side, case) == (figures.side, figures.case))
    read = session.step_bytes(run.prompt_tokens + run.new_tokens // 2)
    token, prefill = figures.stages.get("token"), figures.stages.get("LLM prefill")
    operations = prefill_operations(session.spec, run.prompt_tokens) if figures.case == "plain" else None
    return dataclasses.replace(
        figures,
        token_bytes=read,
        bandwidth_share=None if token is None or read is None else read / token.p50 / bandwidth,
        prefill_flops_per_s=None if operations is None or prefill is None else operations / prefill.p50,
    )


def _sides(request: BenchRequest, opened: ExitStack) -> tuple[list[BenchSide], ModelSpec]:
    first = _session(request, request.first, opened)
    sides: list[BenchSide] = [_session_side(request, request.first, first)]
    for other in request.others:
        if isinstance(other, BenchReference):
            sides.append(_reference_side(request, other.checkpoint, opened))
            continue
        session = _session(request, other, opened)
        if session.spec != first.spec:
            raise BadInput(
                f"{other} is of another model than {request.first}; compare exports of one checkpoint",
                options=("compare",),
            )
        sides.append(_session_side(request, other, session))
    if len({side.name for side in sides}) < len(sides):
        raise BadInput("the same bundle and variant is compared with itself; name another variant, or its own graphs")
    return sides, first.spec


def _session(request: BenchRequest, side: BenchBundle, opened: ExitStack) -> Session:
    return opened.enter_context(
        Session.open(
            bundle_path(side.path),
            backend=side.backend or request.backend,
            threads=request.threads,
            variant=side.variant,
            optimized=side.optimized,
            kv_cache=side.kv_cache,
            verify=request.verify,
        )
    )


def _session_side(request: BenchRequest, side: BenchBundle, session: Session) -> SessionSide:
    form = f":{side.backend}" if side.backend else "" if side.optimized else ":standard"
    held = f":{side.kv_cache}" if side.kv_cache else ""
    name = f"{bundle_title(bundle_path(side.path))}:{session.variant.name}{form}{held}"
    settings = LookSettings(None, request.preset, request.image_tokens).settled(session.spec)
    return SessionSide(name, session, request.new_tokens, settings.image_tokens)


def _reference_side(request: BenchRequest, checkpoint: Path, opened: ExitStack) -> BenchSide:
    """The reference, which measures whole answers without their stages."""
    with importing_extra("train", "sdrpn bench --compare torch"):
        import torch  # noqa: F401

    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.model.base import model_from_checkpoint
    from sdrpn.model.reference import reference_answer

    with open_checkpoint(checkpoint) as source:
        model = model_from_checkpoint(source)
    opened.enter_context(torch_threads(request.threads, model.spec))
    picture, (before, after) = bench_picture(0), bench_prompt(model.spec)

    class TorchSide:
        name = "torch"

        def run(self, case: BenchCase) -> BenchRun:
            start = time.perf_counter()
            answer = reference_answer(
                model, picture, before, after, roi=None, decide=case.decide, max_new_tokens=request.new_tokens
            )
            return BenchRun({"total": time.perf_counter() - start}, new_tokens=len(answer.token_ids))

    return TorchSide()


def _figures(
    found: Iterable[tuple[str, str, BenchRun]], cases: Sequence[str], sides: Sequence[str]
) -> tuple[CaseFigures, ...]:
    """One entry for all runs of a side and case, ordered by case, then side."""
    runs: dict[tuple[str, str], list[BenchRun]] = {}
    for side, case, run in found:
        runs.setdefault((case, side), []).append(run)
    return tuple(
        _case_figures(side, case, runs[case, side], runs.get(("plain", side)), runs[case, sides[0]])
        for case, side in itertools.product(cases, sides)
    )


def _case_figures(
    side: str, case: str, runs: list[BenchRun], plain: list[BenchRun] | None, first: list[BenchRun]
) -> CaseFigures:
    stages = {name: percentiles([run.stages_s[name] for run in runs]) for name in runs[0].stages_s}
    total_s = stages["total"].p50
    prefill, token = stages.get("LLM prefill"), stages.get("token")

    def against(others: list[BenchRun]) -> float:
        return percentiles([run.stages_s["total"] for run in others]).p50 / total_s

    return CaseFigures(
        side=side,
        case=case,
        stages=stages,
        prefill_tokens_per_s=runs[0].prompt_tokens / prefill.p50 if prefill and runs[0].prompt_tokens else None,
        decode_tokens_per_s=1 / token.p50 if token else None,
        answers_per_s=1 / total_s,
        relative_to_plain=None if plain is None else against(plain),
        relative_to_first=against(first),
        median_answer_s=stages_of_median(run.stages_s for run in runs),
    )


def _machine(request: BenchRequest, threads: int) -> dict[str, Any]:
    machine = read_machine()
    libraries = {name: installed_version(name) for name in ("sdrpn", "onnxruntime", "numpy")}
    if request.has_reference:
        libraries["torch"] = installed_version("torch")
    about: dict[str, Any] = {"processor": read_cpu().name, "architecture": machine.arch, "cores": machine.cpu_cores}
    if machine.jetson is not None:
        about["board"] = machine.jetson.model
    if machine.gpus:
        about["GPUs"] = ", ".join(gpu.name for gpu in machine.gpus)
    return {**about, "threads": threads, "backend": request.backend, **libraries}


def _peak_rss_bytes() -> int:
    import resource  # not available on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
