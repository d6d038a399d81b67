"""The suite in several processes, by pytest-xdist: when, how many, which files first, and what they make only once.

A bare `pytest` is spread over the cores; with files or tests named it stays in one process, which starts sooner. A file
is never split, so what its fixtures make is made once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["cores", "longest_first", "made_once", "spread_over_cores", "use_one_thread"]

MOST_WORKERS = 8  # each imports and collects everything, which takes about 1 GB and 20 seconds
# What takes longest is begun first, so that no process is left with it at the end. The order changes no result.
LONGEST = (
    "tests/test_release.py",
    "tests/examples/test_ci.py",
    "tests/engines/test_builder.py",
    "tests/examples/test_pipeline.py",
    "tests/train/test_processes.py",
    "tests/runtime/checkup/test_bundle_checks.py",
    "tests/cli/test_build.py",
    "tests/test_wheels.py",
)


def is_worker() -> bool:
    """Whether this process was started by pytest-xdist."""
    return "PYTEST_XDIST_WORKER" in os.environ


def spread_over_cores(config: pytest.Config) -> None:
    """Let pytest-xdist start workers where no test was named. `-n 0` keeps one process, `-n 4` takes four always."""
    option = config.option
    if is_worker() or not hasattr(option, "numprocesses"):
        return  # a worker starts none of its own; and without pytest-xdist there is nothing to start
    if option.numprocesses is None and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        option.numprocesses = "auto" if cores() > 1 else 0
    if option.numprocesses and option.dist == "no":
        option.dist = "loadfile"
        option.loadscopereorder = False  # it would begin with the files of most tests


def cores() -> int:
    """How many workers a bare `pytest` starts."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def use_one_thread() -> None:
    """For the libraries of this process that have not started yet, and of its children.

    Models of tests are so small that a second thread only waits for the first.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by file; the sort is stable."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Let the first process of a run make a file or folder; the others wait for it and take the same.

    Not to be written to. Args: name: its last two parts, as "tiny/bundle".
    """
    base = factory.getbasetemp().parent if is_worker() else factory.getbasetemp()
    path = base / name
    path.parent.mkdir(exist_ok=True)
    done, lock = (path.with_name(f".{path.name}.{ending}") for ending in ("done", "lock"))
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)  # of a process that failed half way
            make(path)
            done.touch()
    return path
