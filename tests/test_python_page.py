"""docs/python.md: every public name and every verb stands there, calls could be made, and the first example runs."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sdrpn
from sdrpn.cli.main import VERBS
from sdrpn.tags import shipped_scene
from tests.sources import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def calls(example: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of `sdrpn.NAME(...)` and `sdrpn.NAME.METHOD(...)`."""
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("sdrpn."):
            yield ast.unparse(node.func).removeprefix("sdrpn."), node


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_call(verb: str) -> None:
    assert re.search(rf"^\| .*`sdrpn {verb}`.* \| \S", PAGE, re.MULTILINE)


def test_every_public_name_is_there() -> None:
    assert [name for name in sdrpn.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_call_could_be_made(example: str) -> None:
    for name, call in calls(example):
        function: Any = sdrpn
        for part in name.split("."):
            function = getattr(function, part)
        named = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
        inspect.signature(function).bind(*call.args, **named)


def test_there_are_calls() -> None:
    found = {name.partition(".")[0] for example in EXAMPLES for name, _ in calls(example)}
    functions = {name for name in sdrpn.__all__ if inspect.isfunction(getattr(sdrpn, name))}
    assert functions - {"run_demo"} <= found


def test_the_first_example_runs(tmp_path: Path) -> None:
    shutil.copy(shipped_scene().picture, tmp_path / "sdrpn-scene.png")
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[0]], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    layers, total_bytes, answered, *regions = done.stdout.splitlines()
    assert int(layers) == sdrpn.inspect_bundle("demo").spec.llm.layers
    assert int(total_bytes) > 1_000_000
    assert "Timings(" in answered
    assert regions
    assert all(re.fullmatch(r"\(\d+, \d+, \d+, \d+\) [01]\.\d+ [01]\.\d+ \(\d+, \d+\)", line) for line in regions)
