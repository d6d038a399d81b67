"""The README tells the truth: its commands run, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sdrpn.cli.main import build_parser
from sdrpn.host.libraries import EXTRAS
from sdrpn.tags import shipped_scene

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_first_command_asks_the_model_that_comes_along(tmp_path: Path) -> None:
    """Without its first part, which makes the environment: this one has what is needed."""
    *making, last = blocks("sh")[0].strip().split(" && ")
    assert making == ["python3 -m venv .venv", ".venv/bin/pip install -e ."]
    program, *arguments = shlex.split(last)
    assert (program, arguments) == (".venv/bin/sdrpn", ["demo"])
    done = run("-m", "sdrpn.cli.main", *arguments, folder=tmp_path)
    assert shipped_scene().question in done
    made = sorted(tmp_path.iterdir())
    assert [path.name for path in made] == ["sdrpn-demo.png", "sdrpn-scene.png"]
    for path in made:
        assert f"`{path.name}`" in README
        with Image.open(path) as picture:
            picture.load()


def test_the_quickstart_makes_a_bundle_and_asks_it(tmp_path: Path) -> None:
    assert "`examples/quickstart.py`" in README
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("tiny", "demo"))
    assert "random" in run("examples/quickstart.py", folder=tmp_path)
    made = {path.suffix: path for path in tmp_path.rglob("*") if "examples" not in path.parts}
    assert ".onnx" in made
    with Image.open(made[".png"]) as overlay:
        overlay.load()
        assert overlay.width > 336


def run(*arguments: str, folder: Path) -> str:
    """What Python prints, run in a folder."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = [line for block in blocks("sh") for line in block.splitlines() if "/pytest" in line]
    pattern = re.search(r'grep -E "(.+)" README\.md', (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert pattern is not None
    assert re.search(pattern.group(1), command)


def test_every_sdrpn_command_is_understood() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("sdrpn ")]
    assert commands
    for command in commands:
        build_parser().read(shlex.split(command, comments=True)[1:])


def test_every_python_example_compiles() -> None:
    examples = blocks("python")
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "base"])
def test_every_extra_is_in_the_table(extra: str) -> None:
    assert f"| `{extra}` |" in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_every_page_is_in_the_index() -> None:
    """And can be reached from the README."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert "(docs/README.md)" in README
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []
