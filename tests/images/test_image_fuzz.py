"""Mutated pictures of every format, with and without the native module: no crash, no raw error, nothing printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LARGEST_BYTES = 10**9


def tried(tmp_path: Path, *, first: int, count: int, pillow: bool) -> dict[str, Any]:
    """What `tests.images.image_fuzz` found in a process of its own."""
    options = ["--first", str(first), "--count", str(count), "--at", str(tmp_path / "at"), *["--pillow"] * pillow]
    command = [sys.executable, "-m", "tests.images.image_fuzz", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"mutant {(tmp_path / 'at').read_text()}: {done.stderr[-500:]}"
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("pillow", [False, True], ids=["native", "pillow"])
def test_a_sample(tmp_path: Path, pillow: bool) -> None:
    found = tried(tmp_path, first=0, count=400, pillow=pillow)
    assert found["formats"] >= 30
    assert found["wrong"] == []
    assert found["largest"][0] < LARGEST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("pillow", [False, True], ids=["native", "pillow"])
def test_twenty_thousand(tmp_path: Path, pillow: bool) -> None:
    for first in range(0, 20_000, 1000):
        found = tried(tmp_path, first=first, count=1000, pillow=pillow)
        print(first, found["slowest"], found["largest"])
        assert found["wrong"] == []
        assert found["largest"][0] < LARGEST_BYTES
