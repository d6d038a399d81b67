"""Messages of the library: they do not speak in options of the command line, which adds those that an error names."""

from __future__ import annotations

import ast
import re

import pytest

from sdrpn.errors import BadInput, RunFailed
from sdrpn.terminal.failure import Failure
from tests.sources import modules

# The rooms that are the command line: their messages speak its language.
COMMAND_LINE = ("sdrpn.cli", "sdrpn.terminal")
# A flag of a whole command, such as `sdrpn export --template NAME`, belongs to it; so does one after a command
# that is filled in, and a text of nothing but flags and values is a part of a command.
FLAG = re.compile(r"(?<![\w-])--[a-z]")
COMMAND = re.compile(r"`(sdrpn|hf|git) [^`]*`|\b(sdrpn|hf|git|pip|python3) [\w{}./\[\]' =-]*|\{\} --[a-z-]+")
PART = re.compile(r"( ?--[\w-]+(=[^ ]*| [^ -][^ ]*)?)+")


def rooms() -> list[str]:
    """Packages and modules right below `sdrpn`."""
    return sorted({".".join(module.split(".")[:2]) for module in modules() if "." in module} - set(COMMAND_LINE))


def speaks_in_options(text: str) -> bool:
    return FLAG.search(COMMAND.sub("", text)) is not None and PART.fullmatch(text) is None


def texts_of(module: str) -> list[tuple[int, str]]:
    """Every text of a module that is not a docstring; of an f-string the whole, with {} for what is filled in."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    left_out = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    filled = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    left_out |= {id(part) for node in filled for part in node.values}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [
        *((node.lineno, str(node.value)) for node in texts if id(node) not in left_out),
        *((node.lineno, "".join(_part(part) for part in node.values)) for node in filled),
    ]


def _part(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "{}"


@pytest.mark.parametrize("room", rooms())
def test_no_message_speaks_in_options(room: str) -> None:
    """Except in the lines of a verb's report (`*_text`), which the command line alone prints."""
    own = [module for module in modules() if module == room or module.startswith(f"{room}.")]
    own = [module for module in own if not module.endswith("_text")]
    assert own
    found = [f"{module}:{line}: {text}" for module in own for line, text in texts_of(module) if speaks_in_options(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name its folder with --vision-tower", True),
        ("--jobs 2 is too many", True),
        ("answer on the CPU: --backend onnxruntime", True),
        ("export again with sdrpn export {} --out {}, or lower --block", True),
        ("see `sdrpn export --template`", False),
        ("add it: sdrpn export CHECKPOINT --out {} --precision int4", False),
        ("build for a shorter context: {} --max-context N", False),
        ("install it: pip install --upgrade cuda-python", False),
        ("--query-gpu={}", False),
        (" --dialect {} --precision {}", False),
        ("a line -- with a dash", False),
    ],
)
def test_what_speaks_in_options(text: str, expected: bool) -> None:
    assert speaks_in_options(text) == expected


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
