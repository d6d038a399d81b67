"""A folder that several processes of one run write to."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.host.shared_run import RUN_NAME, run_lock, start_run

SETTINGS = {"task": "tiny", "sizes": (1, 2)}


def test_processes_join_the_run_of_others(tmp_path: Path) -> None:
    for _ in range(3):
        start_run(tmp_path / "run", SETTINGS, shared=True)
    with pytest.raises(BadInput, match=r"started with other settings \(task\)"):
        start_run(tmp_path / "run", {**SETTINGS, "task": "large"}, shared=True)
    with pytest.raises(BadInput, match="already holds a run; resume it"):
        start_run(tmp_path / "run", SETTINGS)
    start_run(tmp_path / "run", SETTINGS, resume=True)


def test_many_start_at_once(tmp_path: Path) -> None:
    problems: list[Exception] = []

    def start() -> None:
        try:
            start_run(tmp_path / "run", SETTINGS, shared=True)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert problems == []
    assert (tmp_path / "run" / RUN_NAME).is_file()


@pytest.mark.parametrize("shared", [True, False])
def test_other_folders_are_refused(tmp_path: Path, shared: bool) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="exists and is not the folder of a run; name a new folder"):
        start_run(tmp_path, SETTINGS, shared=shared)
    with pytest.raises(BadInput, match="has no run to resume"):
        start_run(tmp_path, SETTINGS, resume=True, shared=shared)
    with pytest.raises(BadInput, match="name a new folder"):
        start_run(tmp_path / "thesis.tex", SETTINGS, shared=shared)


def test_what_a_killed_start_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".{RUN_NAME}.0123abcd.partial").write_text("{")
    (tmp_path / ".lock").touch()
    start_run(tmp_path, SETTINGS, shared=True)
    assert (tmp_path / RUN_NAME).is_file()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from sdrpn.host.shared_run import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "locked\n"
    with run_lock(tmp_path):
        pass
