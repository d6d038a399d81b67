"""One table per CPU for docs/benchmarks.md, from the results files of benchmarks/all.sh. Measures nothing.

    python benchmarks/cpu_table.py --write      # into the page, from docs/results/cpu/

Shares are of figures of one run, whose sides took turns; nothing is compared between machines. Where other processes
take turns too, the shares per second of processor time say more than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdrpn.host.atomic import replacing_file
from sdrpn.host.machine import read_cpu, read_machine

FORMAT_VERSION = 1
DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULTS = DOCS / "benchmarks.md", DOCS / "results" / "cpu"
BEGIN, END = "<!-- benchmarks/cpu_table.py writes from here -->\n", "<!-- to here -->\n"
INTRODUCTION = """\
0.4B in INT4 with the head in 8 bits where nothing else is said; medians of rounds in turns; load at the end: {load}.
"""


def joined(folder: Path) -> dict[str, Any]:
    """A results file from what the scripts printed into PART-THREADS.json, as far as it is there."""
    machine = read_machine()
    threads: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        for file in sorted(folder.glob(f"{part}-*.json")):
            found = json.loads(file.read_text(encoding="utf-8"))
            threads.setdefault(file.stem.removeprefix(f"{part}-"), {})[part] = found
    return {
        "format_version": FORMAT_VERSION,
        "machine": {
            "processor": read_cpu().name,
            "instructions": [name for name in read_cpu().features if name.startswith(("avx", "amx", "asimd", "sve"))],
            "cores": machine.cpu_cores,
            "memory_bytes": machine.memory_bytes,
            "system": platform.platform(),
            "load": [round(value, 1) for value in os.getloadavg()],
        },
        "threads": dict(sorted(threads.items())),
    }


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one CPU's section."""
    machine = results["machine"]
    yield f"### {machine['processor']}, {machine['cores']} cores"
    yield ""
    load = " / ".join(map(str, machine["load"]))
    yield from INTRODUCTION.format(load=load).splitlines()
    for part, (title, columns, rows) in SECTIONS.items():
        found = [(count, each[part]) for count, each in results["threads"].items() if part in each]
        if found:
            yield from ("", f"{title}:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
            for count, report in found:
                yield from rows(count, report)


def with_tables(page: str, files: Sequence[Path]) -> str:
    """The page with one section for each results file between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    sections = ["\n".join(table(json.loads(file.read_text(encoding="utf-8")))) for file in files]
    return f"{before}{BEGIN}{''.join(f'{section}{chr(10)}{chr(10)}' for section in sections)}{end}{after}"


def _runtimes(threads: str, report: Mapping[str, Any]) -> Iterator[str]:
    sides = report["sides"]
    first = next(iter(sides.values()))
    for name, side in sides.items():
        cells = []
        for stage in ("prefill", "decode"):
            rate, busy = f"{stage}_tokens_per_s", f"{stage}_tokens_per_processor_s"
            cells += [f"{side[rate]:.4g}", f"{side[rate] / first[rate]:.2f}", f"{side[busy] / first[busy]:.2f}"]
        yield f"| {' | '.join((threads, name, *cells))} |"


def _by_side(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sides: dict[str, dict[str, Any]] = {}
    for case in report["cases"]:
        sides.setdefault(case["side"], {})[case["case"]] = case
    return sides


def _bench(threads: str, report: Mapping[str, Any]) -> Iterator[str]:
    for name, cases in _by_side(report).items():
        seconds = {case: found["stages"]["first token"]["p50"] for case, found in cases.items()}
        plain = seconds["plain"]
        ratios = [f"{seconds[case] / plain:.2f}" if case in seconds else "" for case in BENCH_CASES]
        read, share = cases["plain"]["token_bytes"], cases["plain"]["bandwidth_share"]
        bounds = ["", ""]
        if read is not None and share is not None:
            bounds = [
                f"{read / 1e6:.0f} MB",
                f"{100 * share:.0f} % of {report['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s",
            ]
        yield f"| {' | '.join((threads, name, f'{plain:.2f}', *ratios, *bounds))} |"


def _reference(threads: str, report: Mapping[str, Any]) -> Iterator[str]:
    sides = _by_side(report)
    torch = {case: found["stages"]["total"]["p50"] for case, found in sides["torch"].items()}
    for name, cases in sides.items():
        for case, found in cases.items():
            own = found["stages"]["total"]["p50"]
            yield f"| {threads} | {name} | {case} | {own:.2f} | {torch[case] / own:.2f} |"


BENCH_CASES = ("no-box", "one-box", "mask", "two-box", "second-question")
_RATES = (
    "threads",
    "",
    "prefill tokens/s",
    "over the first",
    "per processor second",
    "decode tokens/s",
    "over the first",
    "per processor second",
)
_PASSES = ("threads", "", "plain: first token, s", *(f"{case} / plain" for case in BENCH_CASES))
# Part of benchmarks/all.sh -> what its table is about, its columns, and its rows.
SECTIONS: dict[str, tuple[str, tuple[str, ...], Callable[[str, Mapping[str, Any]], Iterator[str]]]] = {
    "runtimes": ("640 + 32 tokens of the LLM, in turns", _RATES, _runtimes),
    "large": ("The same at 7B, or with its matrices in 8 layers (`LARGE=7b-8`)", _RATES, _runtimes),
    "bench": ("Both passes, in turns", (*_PASSES, "a token reads", "of what memory gives"), _bench),
    "reference": (
        "Answers of two tokens against the official two passes in PyTorch, fp32",
        ("threads", "", "case", "s", "torch / this"),
        _reference,
    ),
}
PARTS = tuple(SECTIONS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables of all results into docs/benchmarks.md")
    parser.add_argument(
        "--join", metavar=("OUT", "FOLDER"), nargs=2, type=Path, help="write a results file of what is in a folder"
    )
    args = parser.parse_args()
    if args.join is not None:
        out, folder = args.join
        with replacing_file(out) as path:
            path.write_text(json.dumps(joined(folder), indent=1) + "\n", encoding="utf-8")
        return 0
    page = with_tables(PAGE.read_text(encoding="utf-8"), results_files())
    if args.write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page.partition(BEGIN)[2].partition(END)[0])
    return 0


def results_files() -> list[Path]:
    return sorted(RESULTS.glob("*.json"))


if __name__ == "__main__":
    sys.exit(main())
