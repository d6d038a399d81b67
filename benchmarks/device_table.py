"""README's table of what was run where, from files of results: of `sdrpn doctor --device --record`, and of builds.

python benchmarks/device_table.py           # print the table
python benchmarks/device_table.py --write   # put it into README.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdrpn.engines import read_targets

ROOT = Path(__file__).parents[1]
RAN = ROOT / "docs" / "results" / "devices.jsonl"
COMPILED = ROOT / "docs" / "results" / "engine-builds.jsonl"
BEGIN, END = "<!-- devices: python benchmarks/device_table.py --write -->", "<!-- /devices -->"


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; none if the file does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(ran: Sequence[dict[str, Any]], compiled: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each device that was tried with a bundle, then the targets without one by what is known."""
    lines = [
        "| device | what ran there | checks | first token | a token | date |",
        "|---|---|---|---:|---:|---|",
        *(_row(row) for row in newest(ran)),
    ]
    capabilities = {capability for row in compiled for capability in row["for"].split("+")}
    seen = {row["subject"]["target"] for row in ran if row["subject"] is not None}
    waiting = {name: target for name, target in read_targets().items() if name not in seen}
    built = [name for name, target in waiting.items() if _compiled(target, capabilities)]
    others = [name for name in waiting if name not in built]
    if built:
        lines.append(f"| {', '.join(built)} | engines compiled, never run | | | | |")
    if others:
        lines.append(f"| {', '.join(others)} | nothing yet: engines are built on the device | | | | |")
    return "\n".join(lines)


def newest(ran: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each device and backend that answered with a bundle."""
    last = {(row["device"], row["subject"]["backend"]): row for row in ran if row["subject"] is not None}
    return list(last.values())


def _compiled(target: Any, capabilities: set[str]) -> bool:
    return target.built == "here" and set(target.compute_capabilities) <= capabilities


def _row(row: dict[str, Any]) -> str:
    subject = row["subject"]
    library = "onnxruntime" if subject["backend"].startswith("onnxruntime") else subject["backend"]
    version = next((text for name, text in row["libraries"].items() if name.startswith(library)), "")
    what = f"{subject['bundle']}, {subject['variant']}, {subject['backend']} {version}".rstrip()
    checks = f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"
    times = (f"{row[name]:.1f} ms" if row[name] is not None else "" for name in ("first_token_ms", "token_ms"))
    return f"| {row['device']} | {what} | {checks} | {' | '.join(times)} | {row['date']} |"


def with_table(readme: str, text: str) -> str:
    """README with the table between its two marks. Raises ValueError where they are not there."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args(argv)
    text = table(rows(RAN), rows(COMPILED))
    if not args.write:
        sys.stdout.write(f"{text}\n")
        return 0
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
