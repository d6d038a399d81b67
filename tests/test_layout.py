"""The rooms of the code base: docs/layout.md lists every module, and rooms import each other one way."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.sources import FACE, ROOT, modules, needs_of

LAYOUT = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
# The house has 28, and each area of the product beyond it adds one: every family of models is a room, and so are frames
# of videos and cameras, the server, and tools for agents.
MOST_ROOMS = 32
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


def test_the_root_needs_no_room() -> None:
    """Errors lie there for everybody, and importing any room runs it. What it hands on is imported when asked for."""
    assert arrows()[FACE] == set()
