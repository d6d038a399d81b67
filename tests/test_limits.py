"""Tests wait for threads and processes for a limited time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.limits import killing_after, line_of

TESTS = Path(__file__).parent


def test_nothing_is_waited_for_without_a_limit() -> None:
    """A join or a conversation that has no time limit holds up the whole run where what it waits for hangs."""
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}: {node.func.attr}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("join", "communicate")
        and not node.args
        and not node.keywords
    ]
    assert found == []


def test_a_process_that_prints_nothing_is_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print('one', flush=True); import time; time.sleep(600)"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert line_of(process, process.stdout) == "one\n"
        with killing_after(process, 0.01):
            assert line_of(process, process.stdout) == ""
