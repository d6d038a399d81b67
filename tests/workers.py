"""The suite in several processes (`pytest -n auto`): how many, which files first, and what they make only once.

A file is never split, so what its fixtures make is made once. A process that crashes has failed its test and is
replaced, so that the others are run.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "cores",
    "give_whole_files",
    "longest_first",
    "made_once",
    "use_one_thread",
    "whole_file_scheduler",
]

MOST_CRASHES = 2  # then the run ends
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


def give_whole_files(config: pytest.Config) -> None:
    """With `-n`, unless `--dist` says otherwise: files in the order of `longest_first`, each to one process."""
    option = config.option
    if getattr(option, "numprocesses", None) and option.dist == "no":
        option.dist = "loadfile"
        option.loadscopereorder = False  # it would begin with the files of most tests
        if option.maxworkerrestart is None:
            option.maxworkerrestart = str(MOST_CRASHES)


def whole_file_scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist's scheduler of whole files, which goes on behind a process that crashed.

    Its own gives the next process all files of the one that crashed, and waits for tests of those that are done, too.
    """
    from xdist.scheduler import LoadFileScheduling

    class WholeFiles(LoadFileScheduling):  # type: ignore[misc]  # no stubs
        def remove_node(self, node: Any) -> str | None:
            files = self.assigned_work[node]
            for name in [name for name, tests in files.items() if all(tests.values())]:
                del files[name]
            crashed: str | None = super().remove_node(node)
            return crashed

    return WholeFiles(config, log) if config.option.dist == "loadfile" else None


def cores() -> int:
    """How many workers `-n auto` starts."""
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
    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
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
