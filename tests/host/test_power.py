"""What the vendors' tools print, and a meter that reads it from a program of that name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sdrpn.host.power import PowerMeter, parse_nvidia_smi, parse_tegrastats

ORIN = "RAM 3180/30536MB (lfb 5x4MB) SWAP 0/15268MB CPU [2%@729] VDD_GPU_SOC 1978mW/1978mW VDD_IN 5080mW/5100mW"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("71.23, 1534", (71.23, 1534 * 1024 * 1024)),
        ("[N/A], 12", (None, 12 * 1024 * 1024)),
        ("70", (70.0, None)),
        ("", (None, None)),
    ],
)
def test_nvidia_smi(line: str, expected: tuple[float | None, float | None]) -> None:
    assert parse_nvidia_smi(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (ORIN, (5.08, 3180 * 1024 * 1024)),
        ("VDD_GPU 1000mW/900mW VDD_CPU 500mW/400mW", (1.5, None)),
        ("nothing", (None, None)),
    ],
)
def test_tegrastats(line: str, expected: tuple[float | None, float | None]) -> None:
    assert parse_tegrastats(line) == expected


def test_a_meter_averages_what_the_tool_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '10.0, 100'\necho '30.0, 300'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with PowerMeter() as meter:
        deadline = time.monotonic() + 30
        while meter._count < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    readings = meter.readings
    assert readings["watts"] == 20.0
    assert readings["joules"] == pytest.approx(20.0 * meter._seconds)
    assert readings["device_memory_bytes"] == 300 * 1024 * 1024


def test_without_a_tool_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerMeter() as meter:
        pass
    assert meter.readings == {}
