"""README's table of what was run where is what its script makes of the files of results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts import script_module

ROOT = Path(__file__).parents[2]
CPU: dict[str, Any] = {
    "date": "2026-11-29",
    "device": "AMD EPYC",
    "libraries": {"onnxruntime": "1.32.0", "numpy": "2.4.6"},
    "subject": {"bundle": "demo", "variant": "fused-int8-cpu", "backend": "onnxruntime", "target": None},
    "passed": 8,
    "failed": 0,
    "skipped": 13,
    "first_token_ms": 169.94,
    "token_ms": None,
}
COMPILED = [{"for": "SM89"}, {"for": "SM86+SM89+SM120+SM121"}]


@pytest.fixture(scope="module")
def device_table() -> ModuleType:
    return script_module("benchmarks/device_table.py")


def test_the_readme_is_up_to_date(device_table: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = device_table.table(device_table.rows(device_table.RAN), device_table.rows(device_table.COMPILED))
    assert device_table.with_table(readme, text) == readme


def test_what_ran_and_what_did_not(device_table: ModuleType) -> None:
    lines = device_table.table([CPU], COMPILED).splitlines()
    assert lines[2] == (
        "| AMD EPYC | demo, fused-int8-cpu, onnxruntime 1.32.0 | 8 passed, 0 failed, 13 skipped | 169.9 ms |  | "
        "2026-11-29 |"
    )
    compiled, nothing = lines[3:]
    assert "rtx-4090" in compiled
    assert "dgx-spark" in compiled
    assert "a100" in nothing
    assert "jetson-thor" in nothing


def test_the_first_run_of_a_device_fills_its_row(device_table: ModuleType) -> None:
    engines = {"bundle": "b", "variant": "fused-fp16", "backend": "tensorrt-rtx", "target": "rtx-4090"}
    first = {**CPU, "device": "RTX 4090", "subject": engines, "token_ms": 7.0, "libraries": {"tensorrt-rtx": "1.7.1"}}
    again = {**first, "token_ms": 6.0}
    lines = device_table.table([first, again], COMPILED).splitlines()
    assert lines[2].startswith("| RTX 4090 | b, fused-fp16, tensorrt-rtx 1.7.1 |")
    assert "| 6.0 ms |" in lines[2]
    assert "rtx-4090" not in "".join(lines[3:])


def test_checks_without_a_bundle_fill_no_row(device_table: ModuleType) -> None:
    assert len(device_table.table([{**CPU, "subject": None}], []).splitlines()) == 3
