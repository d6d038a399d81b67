"""The example that starts a verb in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "launch" / "shards.sh"


def shards(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *map(str, command)],
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_several_processes_answer_all(tmp_path: Path) -> None:
    tags = ("--task", "tags", "--samples", 3, "--methods", "plain,sdrpn", "--threads", 1, "--out", tmp_path / "run")
    done = shards(2, "eval", "demo", *tags)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (found["missing"], found["samples"], list(found["methods"])) == (0, 3, ["plain", "sdrpn"])


@pytest.mark.parametrize("command", [(), ("eval", "demo"), (0, "eval", "demo"), (2,)])
def test_a_number_and_a_verb_are_needed(command: tuple[object, ...]) -> None:
    done = shards(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected shards.sh N VERB ARGUMENTS..., with N of at least 1" in done.stderr


@pytest.mark.slow
def test_wrong_arguments_are_not_tried_again(tmp_path: Path) -> None:
    done = shards(2, "eval", "demo", "--task", "tags", "--out", tmp_path / "run", "--methods", "magic")
    assert done.returncode == 2
    assert done.stderr.count("does not exist; expected some of") == 2
