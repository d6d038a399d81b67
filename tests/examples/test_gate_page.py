"""What the page says of the gate is what the kept figures say."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sdrpn.errors import BadInput
from tests.scripts import script_module

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_module("examples/demo/gate_page.py")


def test_the_page_has_the_kept_figures(script: ModuleType) -> None:
    page = script.PAGE.read_text("utf-8")
    assert script.with_section(page, script.section(*script.kept_curves())) == page


def test_the_shipped_gate_keeps_its_promise(script: ModuleType) -> None:
    gate, probe = script.kept_curves()
    assert (gate.questions, probe.questions) == (2000, 2000)
    assert gate.own.over_always >= -0.01
    assert gate.own.time_share <= 0.75
    for curve, judge in ((gate, "gate"), (probe, "probe")):
        assert min(point.over_random for point in script.judged(curve, judge).points) >= 0


def test_it_is_written_again(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGE", "PICTURE", "FIGURES"):
        source = getattr(script, name)
        shutil.copy(source, tmp_path / source.name)
        monkeypatch.setattr(script, name, tmp_path / source.name)
    script.PAGE.write_text(script.with_section(script.PAGE.read_text("utf-8"), "\nnothing\n"), "utf-8")
    script.PICTURE.unlink()
    monkeypatch.setattr(sys, "argv", ["gate_page.py"])
    assert script.main() == 0
    assert script.PAGE.read_text("utf-8") == (ROOT / "docs" / "demo-model.md").read_text("utf-8")
    assert script.PICTURE.stat().st_size > 10_000


def test_a_page_without_its_heading(script: ModuleType) -> None:
    with pytest.raises(BadInput, match="has lost '## The gate' or 'How it was trained:'; put it back"):
        script.with_section("# Page\n", "text")
