"""`sdrpn bench`: how long every way of answering takes, and against what.

The JSON form is sdrpn.reports.bench_report.BenchReport: machine, command, runs, cases (side, case, stages with p50,
p95 and p99 in seconds, tokens per second, ratios, median_answer_s), peak_rss_bytes, energy.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.cli.arguments import BUNDLE_HELP, bundle_folder, positive_int
from sdrpn.cli.model_folders import add_model_options
from sdrpn.errors import BadInput

if TYPE_CHECKING:
    from sdrpn.reports.bench_report import BenchReport, CaseFigures
    from sdrpn.runtime.bench import BenchRun, BenchSide

HELP = "measure how long answers take, stage by stage"
DESCRIPTION = """\
Answer with the number of crops forced (the RPN still runs) and time every stage: p50, p95 and p99 over the counted
runs, tokens per second, throughput against plain LLaVA. Questions are token ids, so any bundle will do. With --compare
all sides are loaded at once and take turns in one run; "torch" is the reference in PyTorch, which computes everything
again in the second pass.

  sdrpn bench bundle --cases plain,one-box --html bench.html
  sdrpn bench bundle --variant fused-int4-cpu --compare bundle:fused-fp32
  sdrpn bench bundle --variant fused-int4-cpu --compare bundle:fused-int4-cpu:standard
  sdrpn bench bundle --compare torch --checkpoint CHECKPOINT
"""

ALL_CASES = "plain,no-box,one-box,mask,two-box,second-question"
LEAST_RUNS = 10  # for a percentile to mean anything


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument("--variant", metavar="NAME", help="default: the one that suits a CPU best")
    parser.add_argument("--backend", default="onnxruntime", help="as for `sdrpn ask` (default: onnxruntime)")
    parser.add_argument("--cases", metavar="A,B", default=ALL_CASES, help=f"of {ALL_CASES} (default: all)")
    parser.add_argument("--threads", metavar="N", type=positive_int, help="CPU threads (default: one per core)")
    parser.add_argument(
        "--runs", metavar="N", type=positive_int, default=LEAST_RUNS, help="counted, after one more (default: 10)"
    )
    parser.add_argument("--new-tokens", metavar="N", type=positive_int, default=16, help="an answer (default: 16)")
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        action="append",
        default=[],
        help="another bundle; a bundle's variant as BUNDLE:VARIANT, or BUNDLE:VARIANT:standard for its own graphs, not "
        "those of `sdrpn optimize`; or torch; may be given several times",
    )
    parser.add_argument(
        "--no-optimized", action="store_true", help="run BUNDLE's own graphs, not those of `sdrpn optimize`"
    )
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, help="of --compare torch")
    parser.add_argument("--no-verify", action="store_true", help="do not check the digests of large files")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write a page with charts")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the report as JSON")
    form.add_argument("--csv", action="store_true", help="print every stage as CSV")
    add_model_options(parser, "bundle", "checkpoint")


def run(args: argparse.Namespace) -> int:
    """Measure, and report."""
    from sdrpn.cli.output import print_document, print_json, warn
    from sdrpn.cli.output_file import report_written, require_output_file
    from sdrpn.host.atomic import replacing_file
    from sdrpn.reports.bench_report import csv_text, html_text

    if ("torch" in args.compare) != (args.checkpoint is not None):
        raise BadInput("--compare torch and --checkpoint DIR go together: name both or none")
    if args.html is not None:
        require_output_file("--html", args.html, (".html", ".htm"))
    if args.runs < LEAST_RUNS:
        warn(f"--runs {args.runs}: fewer than {LEAST_RUNS} say little about anything but the median")
    report = _measured(args)
    if args.json:
        print_json(report)
    elif args.csv:
        print_document(csv_text(report))
    else:
        _print(report)
    if args.html is not None:
        with replacing_file(args.html) as temporary:
            temporary.write_text(html_text(report), encoding="utf-8")
        if not args.json:
            report_written(args.html, "page with charts")
    return 0


def _measured(args: argparse.Namespace) -> BenchReport:
    from sdrpn.cli.progress import progress
    from sdrpn.host.power import PowerMeter
    from sdrpn.reports.bench_report import BenchReport
    from sdrpn.runtime.bench import bench_cases, bench_rounds

    names = tuple(filter(None, args.cases.split(",")))
    with ExitStack() as opened:
        sides, spec = _sides(args, opened)
        cases = bench_cases(spec, names)
        with progress("bench", "answers") as advance, PowerMeter() as meter:
            found = list(bench_rounds(sides, cases, runs=args.runs, advance=advance))
    figures = _figures(found, [case.name for case in cases], [side.name for side in sides])
    command = shlex.join(["sdrpn", *sys.argv[1:]])
    return BenchReport(
        _machine(args), command, args.runs, figures, _peak_rss() if len(sides) == 1 else None, meter.readings
    )


def _sides(args: argparse.Namespace, opened: ExitStack) -> tuple[list[BenchSide], Any]:
    from sdrpn.bundle.shipped import bundle_path
    from sdrpn.runtime import Session
    from sdrpn.runtime.bench import SessionSide

    def side(path: Path, variant: str | None, optimized: bool) -> tuple[Session, SessionSide]:
        session = opened.enter_context(
            Session.open(
                path,
                backend=args.backend,
                threads=args.threads,
                variant=variant,
                optimized=optimized,
                verify=not args.no_verify,
            )
        )
        name = f"{path.name}:{session.variant.name}{'' if optimized else ':standard'}"
        return session, SessionSide(name, session, args.new_tokens)

    first, first_side = side(args.bundle, args.variant, not args.no_optimized)
    sides: list[BenchSide] = [first_side]
    for other in args.compare:
        if other == "torch":
            sides.append(_torch_side(args))
            continue
        path, variant, form = [*other.split(":"), "", ""][:3]
        if form not in ("", "standard"):
            raise BadInput(f"--compare {other}: expected BUNDLE, BUNDLE:VARIANT or BUNDLE:VARIANT:standard")
        one, other_side = side(bundle_path(path), variant or None, optimized=not form)
        if one.spec != first.spec:
            raise BadInput(
                f"--compare {other} is of another model than {args.bundle}; compare exports of one checkpoint"
            )
        sides.append(other_side)
    if len({side.name for side in sides}) < len(sides):
        raise BadInput(
            "the same bundle and variant is compared with itself; name another with BUNDLE:VARIANT[:standard]"
        )
    return sides, first.spec


def _torch_side(args: argparse.Namespace) -> BenchSide:
    """The reference, which tells the time of a whole answer and nothing of its stages."""
    import time

    from sdrpn.host.libraries import importing_extra
    from sdrpn.runtime.bench import BenchCase, BenchRun, bench_picture, bench_prompt

    with importing_extra("train", "sdrpn bench --compare torch"):
        import torch

    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.model.llava import model_from_checkpoint
    from sdrpn.model.reference import reference_answer

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with open_checkpoint(args.checkpoint) as source:
        model = model_from_checkpoint(source)
    picture, (before, after) = bench_picture(0), bench_prompt(model.spec)

    class TorchSide:
        name = "torch"

        def run(self, case: BenchCase) -> BenchRun:
            start = time.perf_counter()
            answer = reference_answer(
                model, picture, before, after, roi=None, decide=case.decide, max_new_tokens=args.new_tokens
            )
            return BenchRun({"total": time.perf_counter() - start}, new_tokens=len(answer.token_ids))

    return TorchSide()


def _figures(
    found: Iterable[tuple[str, str, BenchRun]], cases: Sequence[str], sides: Sequence[str]
) -> tuple[CaseFigures, ...]:
    """All runs of a side's case as one entry; the sides of a case lie together."""
    runs: dict[tuple[str, str], list[BenchRun]] = {}
    for side, case, one in found:
        runs.setdefault((case, side), []).append(one)
    return tuple(
        _case_figures(side, case, runs[case, side], runs.get(("plain", side)), runs[case, sides[0]])
        for case, side in itertools.product(cases, sides)
    )


def _case_figures(
    side: str, case: str, runs: list[BenchRun], plain: list[BenchRun] | None, first: list[BenchRun]
) -> CaseFigures:
    from sdrpn.reports.bench_report import CaseFigures, percentiles, stages_of_median

    stages = {name: percentiles([one.stages_s[name] for one in runs]) for name in runs[0].stages_s}
    total_s = stages["total"].p50
    prefill, token = stages.get("LLM prefill"), stages.get("token")

    def against(others: list[BenchRun]) -> float:
        return percentiles([one.stages_s["total"] for one in others]).p50 / total_s

    return CaseFigures(
        side=side,
        case=case,
        stages=stages,
        prefill_tokens_per_s=runs[0].prompt_tokens / prefill.p50 if prefill and runs[0].prompt_tokens else None,
        decode_tokens_per_s=1 / token.p50 if token else None,
        answers_per_s=1 / total_s,
        relative_to_plain=None if plain is None else against(plain),
        relative_to_first=against(first),
        median_answer_s=stages_of_median(one.stages_s for one in runs),
    )


def _machine(args: argparse.Namespace) -> dict[str, Any]:
    from sdrpn.host.libraries import installed_version
    from sdrpn.host.machine import read_cpu, read_machine

    machine = read_machine()
    libraries = {name: installed_version(name) for name in ("sdrpn", "onnxruntime", "numpy")}
    if "torch" in args.compare:
        libraries["torch"] = installed_version("torch")
    about: dict[str, Any] = {"processor": read_cpu().name, "architecture": machine.arch, "cores": machine.cpu_cores}
    if machine.jetson is not None:
        about["board"] = machine.jetson.model
    if machine.gpus:
        about["GPUs"] = ", ".join(gpu.name for gpu in machine.gpus)
    return {**about, "threads": args.threads or "all", "backend": args.backend, **libraries}


def _peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _print(report: BenchReport) -> None:
    from sdrpn.cli.output import print_table, print_text
    from sdrpn.host.sizes import text_from_bytes, text_from_number

    def number(value: float | None) -> str:
        return "" if value is None else text_from_number(value)

    def milliseconds(found: CaseFigures, stage: str) -> str:
        value = found.stages.get(stage)
        return "" if value is None else f"{1e3 * value.p50:.1f} / {1e3 * value.p95:.1f} / {1e3 * value.p99:.1f}"

    columns = ("side", "case", "first token, ms: p50 / p95 / p99", "a token, ms", "prefill tokens/s", "decode tokens/s")
    rows = [
        (
            one.side,
            one.case,
            milliseconds(one, "first token"),
            milliseconds(one, "token"),
            number(one.prefill_tokens_per_s),
            number(one.decode_tokens_per_s),
            f"{one.stages['total'].p50:.3f}",
            number(one.relative_to_plain),
            number(one.relative_to_first),
        )
        for one in report.cases
    ]
    print_table((*columns, "whole answer, s", "throughput / plain", "/ first side"), rows)
    if report.peak_rss_bytes is not None:
        print_text(f"peak memory of this process: {text_from_bytes(report.peak_rss_bytes)}")
    for name, value in report.energy.items():
        print_text(f"{name}: {text_from_number(value, 4)}")
