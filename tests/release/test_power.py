"""A power cut at any moment leaves a release that works: processes are killed while they install and go back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn.release.store import ReleaseStore
from sdrpn.workflows.release_install import InstallRequest, install_release
from tests.release.small_releases import NOW, small_archive
from tests.sources import ROOT


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, count: int) -> None:
    command = [sys.executable, "-m", "tests.release.killed", str(tmp_path), str(count), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(row["killed"] for row in rows) == count
    # The next install leaves no trace of those that did not.
    store = ReleaseStore(tmp_path / "store")
    small_archive(tmp_path / "last.sdrpn", version=1000)
    install_release(InstallRequest(tmp_path / "last.sdrpn", store.path, NOW, trial=False))
    assert store.current is not None
    assert store.current.index.version == 1000
    names = {path.name for path in (*store.path.iterdir(), *(store.path / "releases").iterdir())}
    assert not any(name.endswith(".partial") for name in names), names
    assert len(list((store.path / "releases").iterdir())) == 2
