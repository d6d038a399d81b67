"""The command line as tests run it: in this process, with both streams caught where libraries write to them too."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from sdrpn.cli.main import main
from sdrpn.terminal import progress
from tests.cli.command import Command, Outcome
from tests.pictures import photo


@pytest.fixture
def sdrpn(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run one command line; what was printed before is dropped."""
    # However slow the machine: a run that is quiet stays so.
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", math.inf)

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small photo."""
    path = tmp_path / "photo.png"
    Image.fromarray(photo()).save(path)
    return path
