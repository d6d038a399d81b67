"""The suite in several processes: what is shared is made once, and whole, and the order names files that are there."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.limits import LIMIT_S
from tests.workers import LONGEST, MOST_WORKERS, cores, give_whole_files, longest_first, made_once

ROOT = Path(__file__).parents[1]


def factory(folder: Path) -> pytest.TempPathFactory:
    folder.mkdir(exist_ok=True)
    return cast(pytest.TempPathFactory, SimpleNamespace(getbasetemp=lambda: folder))


class TestMadeOnce:
    def test_workers_that_ask_at_the_same_time_get_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each has a folder of its own below that of the run. A lock on a file that was opened twice counts twice."""
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
        together, made = Barrier(4, timeout=LIMIT_S), []

        def make(path: Path) -> None:
            made.append(path)
            path.mkdir()
            (path / "weights").write_text("all of them")

        def ask(number: int) -> str:
            together.wait()
            return (made_once(factory(tmp_path / f"gw{number}"), "tiny/bundle", make) / "weights").read_text()

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == ["all of them"] * 4
        assert made == [tmp_path / "tiny" / "bundle"]

    def test_what_failed_half_way_is_made_again(self, tmp_path: Path) -> None:
        def fail(path: Path) -> None:
            path.mkdir()
            (path / "half").touch()
            raise OSError("the disk is full")

        with pytest.raises(OSError, match="the disk is full"):
            made_once(factory(tmp_path), "tiny/bundle", fail)
        assert list(made_once(factory(tmp_path), "tiny/bundle", Path.mkdir).iterdir()) == []


def test_the_longest_files_are_there_and_come_first() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    names = ("tests/a.py::test_1", f"{LONGEST[1]}::test_2", "tests/a.py::test_0", f"{LONGEST[0]}::test_3")
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in names]
    longest_first(items)
    assert [item.nodeid for item in items] == [names[3], names[1], names[0], names[2]]


@pytest.mark.parametrize(
    ("workers", "dist", "expected"),
    [
        (2, "no", ("loadfile", False, "2")),
        (2, "loadgroup", ("loadgroup", True, None)),
        (None, "no", ("no", True, None)),
    ],
)
def test_files_stay_whole_unless_the_command_says_otherwise(
    workers: int | None, dist: str, expected: tuple[str, bool, str | None]
) -> None:
    option = SimpleNamespace(numprocesses=workers, dist=dist, loadscopereorder=True, maxworkerrestart=None)
    give_whole_files(cast(pytest.Config, SimpleNamespace(option=option)))
    assert (option.dist, option.loadscopereorder, option.maxworkerrestart) == expected


CRASHING = """
import os
from pathlib import Path

def test_before(): pass

def test_that_crashes(tmp_path):
    there = Path(os.environ["CRASHED"])
    if not there.exists():
        there.touch()
        os._exit(3)

def test_behind(): pass
"""
FILES_BEFORE = 8


@pytest.mark.slow
def test_a_run_goes_on_behind_a_crash(tmp_path: Path) -> None:
    """Also where its process had files behind it that were done: pytest-xdist alone would wait for them."""
    for number in range(FILES_BEFORE):
        (tmp_path / f"test_{number}.py").write_text("def test_it(): pass\n", encoding="utf-8")
    (tmp_path / "test_last.py").write_text(CRASHING, encoding="utf-8")
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "-o", "addopts=", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CRASHED": str(tmp_path / "crashed")}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout
    assert f"1 failed, {FILES_BEFORE + 3} passed" in done.stdout


def test_without_pytest_xdist_nothing_changes() -> None:
    option = SimpleNamespace()
    give_whole_files(cast(pytest.Config, SimpleNamespace(option=option)))
    assert vars(option) == {}


def test_there_is_a_worker_for_each_core() -> None:
    assert 1 <= cores() <= MOST_WORKERS
