"""What the pages in docs/ tell people to type is understood, and what they link to is there."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from sdrpn._moved import MOVED
from sdrpn.cli.main import build_parser
from sdrpn.engines import read_targets
from sdrpn.terminal.model_folders import add_model_options

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
names = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `sdrpn` in a block of shell, also after `&&`, `.venv/bin/` or `ssh HOST`."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;|\|", line):
                words = shlex.split(part, comments=True)
                program, *arguments = words[2:] if words[:1] == ["ssh"] else words or [""]
                if program in ("sdrpn", ".venv/bin/sdrpn"):
                    yield arguments


@names
def test_every_command_is_understood(page: Path) -> None:
    for arguments in commands(page):
        try:
            build_parser().read(arguments)
        except SystemExit:
            pytest.fail(f"{page.name}: sdrpn {shlex.join(arguments)}")


def test_there_are_commands() -> None:
    found = {page.name: len(list(commands(page))) for page in PAGES}
    assert found["devices.md"] > 10
    assert found["engines.md"] > 1


@names
def test_every_target_exists(page: Path) -> None:
    found = {words[words.index("--target") + 1] for words in commands(page) if "--target" in words}
    assert {path for path in found if not path.endswith(".toml") and path != "NAME"} <= set(read_targets())


def test_every_option_of_a_build_is_explained() -> None:
    """On one of both pages; and none that there is not."""
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("engines.md", "devices.md"))
    told = set(re.findall(r"--[a-z][a-z-]+", text))
    assert options("build") - {"--help", "--debug", "--target"} <= told
    known = {
        option for verb in ("build", "ask", "export", "inspect", "plan", "verify", "doctor") for option in options(verb)
    }
    others = {"--system-site-packages", "--model", "--dialect", "--force-reinstall"}
    assert told - known - others == set()


def options(verb: str) -> set[str]:
    """As its --help lists them."""
    parser = argparse.ArgumentParser()
    import_module(f"sdrpn.cli.{verb}").add_arguments(parser)
    add_model_options(parser)
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


EVERY_PAGE = (*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md")
each_page = pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in shown}


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    missing = []
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]*))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{link}#{anchor}")
    assert missing == []


@each_page
def test_every_name_of_the_code_exists(page: Path) -> None:
    """Such as sdrpn.train.loss.cell_losses; the compiled modules are not on every machine."""
    names = set(re.findall(r"`(sdrpn(?:\.\w+)+)", page.read_text(encoding="utf-8"))) - set(MOVED)
    assert [name for name in sorted(names) if "._native" not in name and not is_there(name)] == []


def is_there(name: str) -> bool:
    """A module, or what can be reached from one; a package may hand on a function of a module's name."""
    module, *rest = name.split(".")
    found: object = import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        try:
            found = import_module(module)
        except ImportError:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
    return True
