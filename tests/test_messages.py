"""Messages of the library: they do not speak in options of the command line, which adds those that an error names."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator

import pytest

from sdrpn import errors
from sdrpn.cli.main import build_parser
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


# Messages that begin with the name of an option and are about something else: what a file says, or what Python alone is
# asked.
OTHER_MATTERS = {
    "sdrpn.bundle.manifest": ("name",),
    "sdrpn.bundle.optimized": ("library",),
    "sdrpn.families.qwen.vision_spec": ("resize",),
    "sdrpn.frames.source": ("kind",),
    "sdrpn.method.spec": ("gate_layers",),
    "sdrpn.runtime.lmms_eval_model": ("image_tokens",),
}


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What options are called in Python: by where argparse puts their values, and by their own names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from arguments_of(below)
        elif action.option_strings:
            yield action.dest
            yield action.option_strings[-1].lstrip("-").replace("-", "_")


def nameless(module: str, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Errors that say what an argument is, without the option that it comes from: line and argument."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        if not issubclass(getattr(errors, node.func.id, int), BadInput) or any(
            keyword.arg == "options" for keyword in node.keywords
        ):
            continue
        message = node.args[0]
        text = "".join(map(_part, message.values)) if isinstance(message, ast.JoinedStr) else _part(message)
        about = re.match(r"(\w+) (is|are|\()", text)
        if about and about[1] in names and about[1] not in OTHER_MATTERS.get(module, ()):
            yield node.lineno, about[1]


def test_what_is_wrong_with_an_argument_names_its_option() -> None:
    """In Python its name is enough: `top_p is 0`. The option may be called otherwise, and has dashes at least."""
    names = frozenset(arguments_of(build_parser()))
    assert {"top_p", "max_new_tokens", "opt_level"} <= names
    own = [module for module in modules() if not module.startswith(COMMAND_LINE)]
    assert [f"{module}:{line}: {name}" for module in own for line, name in nameless(module, names)] == []
