"""Messages of the library: they do not speak in options of the command line, which adds those that an error names."""

from __future__ import annotations

import ast
import re

import pytest

from sdrpn.errors import BadInput, RunFailed
from sdrpn.terminal.failure import Failure
from tests.sources import modules

# Rooms whose messages a program reads as well as a shell.
ROOMS = (
    "sdrpn.calibration",
    "sdrpn.checkpoint",
    "sdrpn.compare",
    "sdrpn.evaluation",
    "sdrpn.export",
    "sdrpn.labels",
    "sdrpn.train",
)
# A flag that belongs to a whole command, such as `sdrpn export --template NAME`, is that command's.
FLAG = re.compile(r"(?<![\w-])--[a-z]")
COMMAND = re.compile(r"`(sdrpn|hf|git) [^`]*`|(sdrpn|hf|git) [\w ]*--")


def texts_of(module: str) -> list[tuple[int, str]]:
    """Every text of a module that is no docstring."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [(node.lineno, str(node.value)) for node in texts if id(node) not in docstrings]


@pytest.mark.parametrize("room", ROOMS)
def test_no_message_speaks_in_options(room: str) -> None:
    own = [module for module in modules() if module == room or module.startswith(f"{room}.")]
    assert own
    found = [
        f"{module}:{line}: {text}"
        for module in own
        for line, text in texts_of(module)
        if FLAG.search(text) and not COMMAND.search(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "the tower is missing; name it"),
        (("vision_tower",), "the tower is missing; name it (--vision-tower)"),
        (("precision bf16", "base"), "the tower is missing; name it (--precision bf16, --base)"),
    ],
)
def test_the_command_line_adds_the_options(options: tuple[str, ...], expected: str) -> None:
    error = BadInput("the tower is missing; name it", options=options)
    assert (str(error), error.options) == ("the tower is missing; name it", options)
    failure = Failure.of(error)
    assert (failure.message, failure.cure) == (expected, expected.partition("; ")[2])


def test_an_error_without_advice_has_no_cure() -> None:
    assert Failure.of(RunFailed("it broke", options=("jobs",))).cure is None
