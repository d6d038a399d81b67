"""The prose of the sources: docstrings, comments, messages and help texts avoid what CONTRIBUTING.md lists as Words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Folders whose sources are read for this, with what lies below them; this file, which quotes the words, is left out.
ROOMS = (
    "benchmarks",
    "engines",
    "examples",
    "export",
    "runtime",
    "sdrpn",
    "tests",
)

# Patterns that no prose should have -> what to write instead. CONTRIBUTING.md has them as a table.
AVOIDED = {
    r"mend(s|ed|ing)?": "fix",
    r"cures?": "fix, advice",
    r"told": "reported, listed, passed",
    r"unfit": "incompatible, unsupported",
    r"lest": "so that ... not",
    r"who(so)?ever|whatsoever": "name who: the caller, the user",
    r"believed": "trusted, accepted",
    r"of (no|any) use": "useless, works, needed",
    r"(come|came|bring|brought|carr(y|ies|ied))s? along": "ships with, copies",
    r"(from|by|of) (anybody|strangers)": "untrusted",
    r"held against": "compared with",
    r"at fault": "faulty",
    r"puts? up with": "tolerates",
    r"anew": "again",
    r"reckon(s|ed)?( with)?": "count, compute, expect",
    r"turn(s|ed)? round": "transpose, reverse",
    r"the like of": "like, such as",
    r"(which|that) this \w+ has not": "not available in this ...",
}

_AVOIDED = re.compile(rf"\b(?:{'|'.join(AVOIDED)})(?!\w)", re.IGNORECASE)


def prose_of_python(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment, and of every string that has more than one word."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def openings(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of docstrings and help texts, which begin with what they describe."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node):
                yield node.body[0].lineno, text
        elif isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


def loop_variables(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of the targets of loops and comprehensions, and of the arguments of lambdas."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.For, ast.comprehension)):
            yield from ((n.lineno, n.id) for n in ast.walk(node.target) if isinstance(n, ast.Name))
        elif isinstance(node, ast.Lambda):
            yield from ((node.lineno, argument.arg) for argument in node.args.args)


def comments_of_c(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every // comment."""
    for number, line in enumerate(source.splitlines(), 1):
        if "//" in line:
            yield number, line.partition("//")[2]


def faults(path: Path) -> Iterator[str]:
    """What is wrong with the prose of one file, a line each."""
    source = path.read_text("utf-8")
    is_python = path.suffix == ".py"
    for line, text in prose_of_python(source) if is_python else comments_of_c(source):
        yield from (f"{path}:{line}: {found.group(0)!r} in {text[:80]!r}" for found in _AVOIDED.finditer(text))
    if is_python:
        for line, text in openings(source):
            if re.match(r"of\b", text, re.IGNORECASE):
                yield f"{path}:{line}: begins with 'Of': {text[:80]!r}"
        for line, name in loop_variables(source):
            if name == "one":
                yield f"{path}:{line}: the loop variable 'one' should be named after what it holds"


@pytest.mark.parametrize("room", ROOMS)
def test_prose_avoids_what_the_word_list_replaces(room: str) -> None:
    own = Path(__file__).resolve()
    found_there = [path for path in sorted((ROOT / room).rglob("*")) if path != own]
    sources = [path for path in found_there if path.suffix in (".py", ".cpp", ".cu", ".h")]
    assert sources, f"{room} has no sources"
    found = [fault.replace(f"{ROOT}/", "") for path in sources for fault in faults(path)]
    assert not found, "see Words in CONTRIBUTING.md:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Of the gate."""', "begins with 'Of'"),
        ('parser.add_argument("--gate", help="of the gate")', "begins with 'Of'"),
        ("for one in engines: pass", "loop variable 'one'"),
        ("names = [one.name for one in engines]", "loop variable 'one'"),
        ("key = lambda one: one.name", "loop variable 'one'"),
        ("# a larger limit mends it", "'mends'"),
        ('raise ValueError(f"{name} is unfit for this GPU")', "'unfit'"),
        ('raise ValueError("needs a library that this build has not")', "'that this build has not'"),
    ],
)
def test_each_kind_of_fault_is_found(tmp_path: Path, source: str, expected: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source + "\n", "utf-8")
    (fault,) = faults(path)
    assert expected in fault


def test_plain_prose_and_public_keys_pass(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Offsets of the gate."""\nfor gate in gates:\n    row["cure"] = "set a larger limit"\n', "utf-8")
    assert list(faults(path)) == []
