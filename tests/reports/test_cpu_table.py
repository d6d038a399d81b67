"""The tables of each CPU in docs/benchmarks.md are what their script makes of the files of results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts import script_module

ROOT = Path(__file__).parents[2]


def case(name: str, first_token_s: float) -> dict[str, Any]:
    return {
        "side": "b32:fused-int4-cpu",
        "case": name,
        "stages": {"first token": {"p50": first_token_s}},
        "token_bytes": 400_000_000,
        "bandwidth_share": 0.5,
    }


@pytest.fixture(scope="module")
def cpu_table() -> ModuleType:
    return script_module("benchmarks/cpu_table.py")


@pytest.fixture
def results(cpu_table: ModuleType, tmp_path: Path) -> Path:
    """A file of two sides, joined from what the scripts print."""
    names = (
        "prefill_tokens_per_s",
        "prefill_tokens_per_processor_s",
        "decode_tokens_per_s",
        "decode_tokens_per_processor_s",
    )
    sides = {
        "ours": dict(zip(names, (300.0, 300.0, 40.0, 40.0), strict=True)),
        "theirs": dict(zip(names, (450.0, 600.0, 30.0, 20.0), strict=True)),
    }
    runtimes, bench = tmp_path / "runtimes-2.json", tmp_path / "bench-2.json"
    runtimes.write_text(json.dumps({"machine": {"rounds": 5}, "sides": sides}))
    cases = [case("plain", 2.0), case("no-box", 2.2), case("one-box", 4.5)]
    bench.write_text(json.dumps({"cases": cases, "bandwidth_bytes_per_s": 32e9}))
    torch = [{**case(name, 9.0), "side": "torch", "stages": {"total": {"p50": 9.0}}} for name in ("plain", "one-box")]
    own = [{**each, "side": "ours", "stages": {"total": {"p50": 3.0}}} for each in torch]
    (tmp_path / "reference-1.json").write_text(json.dumps({"cases": [*own, *torch]}))
    joined = cpu_table.joined(tmp_path)
    out = tmp_path / "results.json"
    out.write_text(json.dumps(joined))
    return out


def test_the_page_is_up_to_date(cpu_table: ModuleType) -> None:
    page = cpu_table.PAGE.read_text(encoding="utf-8")
    assert cpu_table.with_tables(page, cpu_table.results_files()) == page


def test_shares_are_of_the_first_side_and_of_plain(cpu_table: ModuleType, results: Path) -> None:
    page = f"before\n{cpu_table.BEGIN}old\n{cpu_table.END}after\n"
    found = cpu_table.with_tables(page, [results]).splitlines()
    assert "| 2 | ours | 300 | 1.00 | 1.00 | 40 | 1.00 | 1.00 |" in found
    assert "| 2 | theirs | 450 | 1.50 | 2.00 | 30 | 0.75 | 0.50 |" in found
    assert "| 2 | b32:fused-int4-cpu | 2.00 | 1.10 | 2.25 |  |  |  | 400 MB | 50 % of 32 GB/s |" in found
    assert "| 1 | ours | one-box | 3.00 | 3.00 |" in found
    assert "The same at 7B:" not in found  # what was not measured
    assert (found[0], found[-1]) == ("before", "after")
    assert "old" not in found


def test_the_machine_is_named(cpu_table: ModuleType, results: Path) -> None:
    machine = json.loads(results.read_text())["machine"]
    assert machine["cores"] >= 1
    assert f"### {machine['processor']}, {machine['cores']} cores" in cpu_table.with_tables("", [results])


class TestScript:
    """benchmarks/all.sh with commands that make nothing and print what they were asked for."""

    PYTHON = """#!/bin/sh
case "$*" in
  *cpu_table.py*) exec {python} "$@" ;;
  -c*) exit 1 ;;
  *random_checkpoint.py*|*export*) for last; do :; done; mkdir -p "$last"; exit 0 ;;
  *optimize*) exit 0 ;;
  *two-box*) [ -f {flag} ] || exit 3; echo '{{"cases": []}}' ;;
  *) echo run >> {log}; echo '{{"machine": {{"rounds": 1}}, "sides": {{}}}}' ;;
esac
"""

    def test_it_goes_on_where_it_was(self, tmp_path: Path) -> None:
        flag, log, python, out = (tmp_path / name for name in ("flag", "log", "python", "results.json"))
        python.write_text(self.PYTHON.format(python=sys.executable, flag=flag, log=log))
        python.chmod(0o755)
        command = ["bash", str(ROOT / "benchmarks" / "all.sh"), str(out)]
        environment = {**os.environ, "PYTHON": str(python), "THREADS": "1", "PARTS": "runtimes passes"}
        first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert "bench-1 ended with 3 and is left out" in first.stderr
        assert json.loads(out.read_text())["threads"]["1"].keys() == {"runtimes"}
        flag.touch()
        again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert "runtimes-1 is there" in again.stderr
        assert json.loads(out.read_text())["threads"]["1"].keys() == {"runtimes", "bench"}
        assert log.read_text().splitlines() == ["run"]

    def test_a_part_that_does_not_exist(self, tmp_path: Path) -> None:
        command = ["bash", str(ROOT / "benchmarks" / "all.sh"), str(tmp_path / "out.json")]
        environment = {**os.environ, "PARTS": "everything"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (2, "all.sh: PARTS has no everything\n")
        assert list(tmp_path.iterdir()) == []
