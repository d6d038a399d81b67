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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdrpn.host.atomic import replacing_file
from sdrpn.host.machine import read_cpu, read_machine

FORMAT_VERSION = 1
DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULTS = DOCS / "benchmarks.md", DOCS / "results" / "cpu"
BEGIN, END = "<!-- benchmarks/cpu_table.py writes from here -->\n", "<!-- to here -->\n"
INTRODUCTION = """\
0.4B in INT4 with the head in 8 bits, 640 + 32 tokens. Medians of {rounds} rounds in turns; load at the end: {load}.
"""
COLUMNS = (
    (
        "threads",
        "",
        "prefill tokens/s",
        "over the first",
        "per processor second",
        "decode tokens/s",
        "over the first",
        "per processor second",
    ),
    (
        "threads",
        "",
        "plain: first token, s",
        "no box / plain",
        "one box / plain",
        "a token reads",
        "of what memory gives",
    ),
)


def joined(parts: Sequence[str]) -> dict[str, Any]:
    """A results file from THREADS=RUNTIMES.json,BENCH.json: what other_runtimes.py and sdrpn bench printed."""
    machine = read_machine()
    threads = {}
    for part in parts:
        count, _, files = part.partition("=")
        runtimes, bench = (json.loads(Path(file).read_text(encoding="utf-8")) for file in files.split(","))
        threads[count] = {"runtimes": runtimes, "bench": bench}
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
        "threads": threads,
    }


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one CPU's section."""
    machine = results["machine"]
    first = next(iter(results["threads"].values()))
    yield f"### {machine['processor']}, {machine['cores']} cores"
    yield ""
    rounds, load = first["runtimes"]["machine"]["rounds"], " / ".join(map(str, machine["load"]))
    yield from INTRODUCTION.format(rounds=rounds, load=load).splitlines()
    yield ""
    yield from _head(COLUMNS[0])
    for count, found in results["threads"].items():
        yield from _runtimes(count, found["runtimes"]["sides"])
    yield ""
    yield from _head(COLUMNS[1])
    for count, found in results["threads"].items():
        yield from _bench(count, found["bench"])


def with_tables(page: str, files: Sequence[Path]) -> str:
    """The page with one section for each results file between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    sections = ["\n".join(table(json.loads(file.read_text(encoding="utf-8")))) for file in files]
    return f"{before}{BEGIN}{''.join(f'{section}{chr(10)}{chr(10)}' for section in sections)}{end}{after}"


def _head(columns: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _runtimes(threads: str, sides: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    first = next(iter(sides.values()))
    for name, side in sides.items():
        cells = []
        for stage in ("prefill", "decode"):
            rate, busy = f"{stage}_tokens_per_s", f"{stage}_tokens_per_processor_s"
            cells += [f"{side[rate]:.4g}", f"{side[rate] / first[rate]:.2f}", f"{side[busy] / first[busy]:.2f}"]
        yield f"| {' | '.join((threads, name, *cells))} |"


def _bench(threads: str, report: Mapping[str, Any]) -> Iterator[str]:
    sides: dict[str, dict[str, Any]] = {}
    for case in report["cases"]:
        sides.setdefault(case["side"], {})[case["case"]] = case
    for name, cases in sides.items():
        seconds = {case: found["stages"]["first token"]["p50"] for case, found in cases.items()}
        plain = seconds["plain"]
        ratios = [f"{seconds[case] / plain:.2f}" for case in ("no-box", "one-box")]
        read, share = cases["plain"]["token_bytes"], cases["plain"]["bandwidth_share"]
        bounds = [f"{read / 1e6:.0f} MB", f"{100 * share:.0f} % of {report['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s"]
        yield f"| {' | '.join((threads, name, f'{plain:.2f}', *ratios, *bounds))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="THREADS=RUNTIMES.json,BENCH.json")
    parser.add_argument("--write", action="store_true", help="write the tables of all results into docs/benchmarks.md")
    parser.add_argument("--join", metavar="OUT", type=Path, help="write a results file of what the two scripts printed")
    args = parser.parse_args()
    if args.join is not None:
        with replacing_file(args.join) as path:
            path.write_text(json.dumps(joined(args.files), indent=1) + "\n", encoding="utf-8")
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
