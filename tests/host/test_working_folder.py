"""A working folder for one call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sdrpn.errors import RunFailed
from sdrpn.host.working_folder import run_in_folder

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has working folders of threads")


@linux
def test_only_that_call_is_there(tmp_path: Path) -> None:
    before = Path.cwd()
    assert run_in_folder(tmp_path, Path.cwd) == tmp_path
    assert Path.cwd() == before


@linux
def test_what_is_raised_comes_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_folder(tmp_path, lambda: 1 // 0)


def test_another_system_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RunFailed, match="this system has no working folder for one thread"):
        run_in_folder(tmp_path, Path.cwd)
