"""The rooms of the code base: docs/layout.md lists every module, and rooms import each other one way."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.sources import FACE, ROOT, modules, needs_of

LAYOUT = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
# The house has 28, and each area of the product beyond it adds one: every family of models is a room, and so are frames
# of videos and cameras, the server, tools for agents, and releases for devices.
MOST_ROOMS = 34
# Of the command line, which reads arguments and calls a workflow: what grows beyond belongs to another room.
MOST_LINES_OF_VERBS = 3_000


def room_of(module: str) -> str:
    """The package that a module lies in."""
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]


def rooms() -> set[str]:
    return {room_of(module) for module in modules()}


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports from. What `python -m` runs belongs to the command line, wherever it lies."""
    found: dict[str, set[str]] = {room: set() for room in rooms()}
    for module in modules():
        if not module.endswith(".__main__"):
            found[room_of(module)] |= {room_of(each.name) for each in needs_of(module) if each.name in modules()}
    return {room: others - {room} for room, others in found.items()}


def test_every_module_is_listed_once_in_its_room() -> None:
    listed, folder = [], ""
    for line in LAYOUT.splitlines():
        if heading := re.fullmatch(r"### `(.+/)`", line):
            folder = heading.group(1)
        elif entry := re.match(r"- `(\w+\.py)`: \S", line):
            listed.append(folder + entry.group(1))
    there = [path.relative_to(ROOT).as_posix() for path in modules().values() if path.name != "__init__.py"]
    assert sorted(listed) == sorted(there)


def test_every_room_says_what_it_is() -> None:
    for room in rooms():
        text = modules()[room].read_text(encoding="utf-8")
        assert text.startswith('"""'), room


def test_there_are_few_enough_rooms() -> None:
    assert len(rooms()) <= MOST_ROOMS


def test_the_command_line_stays_thin() -> None:
    sources = [path for module, path in modules().items() if room_of(module) == "sdrpn.cli"]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert lines["main.py"] > 0
    assert sum(lines.values()) <= MOST_LINES_OF_VERBS, lines


def test_no_verb_lays_out_a_table() -> None:
    """A result knows its text (`Table` of sdrpn.reports); a verb prints it."""
    verbs = [path for module, path in modules().items() if room_of(module) == "sdrpn.cli"]
    assert [path.name for path in verbs if "print_table" in path.read_text(encoding="utf-8")] == []


def test_rooms_import_each_other_one_way() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(f"rooms that import each other in a circle: {' <- '.join(error.args[1])}")


# The families, and what writes a family's vision graph.
KNOW_BACKBONES = ("sdrpn.families", "sdrpn.export.vision", "sdrpn.export.qwen_vision", "sdrpn._moved")
BACKBONES = re.compile(r"llava|vicuna|qwen", re.IGNORECASE)


def named_in(module: str) -> set[str]:
    """The names and texts of a module's code; not its comments and docstrings, which may say where a number is from."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.add(node.value)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.alias)):
            found.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute, ast.ImportFrom, ast.arg)):
            found.add(
                next(getattr(node, name) for name in ("id", "attr", "module", "arg") if hasattr(node, name)) or ""
            )
    return found


def test_names_of_code_are_seen() -> None:
    assert {"VisionSpec", "sdrpn.families.llava.vision_spec", "clip_of"} <= named_in("sdrpn.families.llava.family")


def test_no_room_but_the_families_knows_a_backbone() -> None:
    """What the command line tells its users of is another matter: it names examples."""
    others = [name for name in modules() if not name.startswith((*KNOW_BACKBONES, "sdrpn.cli", "sdrpn.terminal"))]
    knowing = {name: sorted(filter(BACKBONES.search, named_in(name))) for name in others}
    assert {name: found for name, found in knowing.items() if found} == {}


def test_the_root_needs_no_room() -> None:
    """Errors lie there for everybody, and importing any room runs it. What it hands on is imported when asked for."""
    assert arrows()[FACE] == set()
