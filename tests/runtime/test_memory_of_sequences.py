"""A further question in flight takes the memory that `sdrpn plan --batch` counts for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tolerances import FURTHER_SEQUENCE_SHARE

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "batching.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read a process's memory from")
def test_a_further_sequence_takes_what_is_planned() -> None:
    """The shipped model, in a process of its own: eight questions at once against eight one after the other."""
    command = [
        sys.executable,
        str(BENCHMARK),
        "demo",
        "--in-flight",
        "8",
        "--rounds",
        "0",
        "--threads",
        "1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)["further_sequence_bytes"]
    share = found["measured"] / found["planned"]
    assert abs(share - 1) <= FURTHER_SEQUENCE_SHARE, f"{found['measured']} bytes, planned {found['planned']}"
