"""The JSON of every verb: one object on standard output, whose first entry is `format_version`."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

import pytest

from sdrpn.cli import main as command_line
from sdrpn.tags import shipped_scene
from tests.cli.command import Command
from tests.sources import modules

SCENE = shipped_scene()
# Verbs that answer within a second from what the package has.
RUNS = (
    ("targets",),
    ("doctor",),
    ("inspect", "demo"),
    ("plan", "demo"),
    ("plan", "demo", "--target", "rtx-4090"),
    ("ask", "demo", str(SCENE.picture), SCENE.question, "--max-new-tokens", "1", "--threads", "1"),
    ("demo", "--threads", "1", "--overlay", "demo.png"),
    ("eval", "demo", "--task", "tags", "--samples", "1", "--methods", "plain", "--threads", "1"),
)


def verbs_with_json() -> list[str]:
    (verbs,) = (
        action for action in command_line.build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return [name for name, parser in verbs.choices.items() if "--json" in parser._option_string_actions]


def calls_of(module: str) -> set[str]:
    """Names of everything that a module calls."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {ast.unparse(function) for function in called}


def test_every_verb_with_one_result_has_it() -> None:
    # look prints a line a frame, and servers print no result; the steps of release have it, each its own.
    assert set(command_line.VERBS) - set(verbs_with_json()) == {"completion", "look", "serve", "mcp", "release"}


@pytest.mark.parametrize("verb", verbs_with_json())
def test_a_usage_error(sdrpn: Command, verb: str) -> None:
    outcome = sdrpn(verb, "--json", "--no-such-option")
    found = json.loads(outcome.out)
    assert (outcome.code, list(found), found["format_version"]) == (2, ["format_version", "error"], 1)


@pytest.mark.parametrize("command", RUNS, ids=" ".join)
def test_a_result(sdrpn: Command, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = sdrpn(*command, "--json")
    assert outcome.code in (0, 1), outcome.err
    found = json.loads(outcome.out)
    assert next(iter(found)) == "format_version"
    assert found["format_version"] == (2 if command[0] == "inspect" else 1)


def test_verbs_print_json_in_one_way_only() -> None:
    """What is not run here prints through `print_json`, which puts the version first."""
    own = [module for module in modules() if module.startswith(("sdrpn.cli.", "sdrpn.terminal."))]
    assert own
    dumping = {module for module in own if {"json.dumps", "json.dump"} & calls_of(module)}
    assert dumping == {"sdrpn.terminal.output", "sdrpn.terminal.output_file"}  # the latter to the file of --record
    printing = {module for module in own if "print_json" in calls_of(module)}
    verbs = {
        f"sdrpn.cli.{verb.replace('-', '_')}" for verb in verbs_with_json() if verb != "compare"
    }  # compare is verify
    assert verbs <= printing
