"""The drawn pictures of the documentation can be drawn again, and measured figures come from the page that has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.scripts import script_module

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    return script_module("docs/pictures/draw.py")


def test_they_are_drawn(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PICTURES / "draw.py", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first-token.png",
        "graphs.png",
        "rows.png",
        "threshold.png",
    ]
    for path in tmp_path.iterdir():
        with Image.open(path) as drawn, Image.open(PICTURES / path.name) as kept:
            assert drawn.size == kept.size


def test_figures_come_from_the_page(draw: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "| case | one | two threads | target | official | rest |\n|---|---|---|---|---|---|\n"
        "| plain | 1 | 1 | | | 2 |\n| no box | 1.2 | **1.25** | 1.3 | 1.7 | 2 |\n| again | 0.1 | 0.2 | | | 2 |\n"
    )
    assert draw.prefill_ratios(page) == [("no box", 1.25, 1.7), ("again", 0.2, None)]
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no table that begins with the column case"):
        draw.prefill_ratios(page)


def test_the_page_has_them(draw: ModuleType) -> None:
    ratios = {case: ours for case, ours, _ in draw.prefill_ratios(draw.BENCHMARKS)}
    assert {"no box", "second question, no box"} <= set(ratios)
    readme = (PICTURES.parents[1] / "README.md").read_text(encoding="utf-8")
    for case in ("no box", "second question, no box"):
        assert f"**{ratios[case]:.2f}x**" in readme
