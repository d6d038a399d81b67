"""What killed runs left goes; what a run at work writes stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrpn.host.atomic import replacing_directory, replacing_file
from sdrpn.host.partial import remove_leftovers, remove_partial, temporary_beside
from tests.limits import line_of
from tests.sources import modules

AT_WORK = """
import sys, time
from pathlib import Path
from sdrpn.host.atomic import {function}
with {function}(Path(sys.argv[1])) as temporary:
    print(temporary, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("writing", [replacing_file, replacing_directory], ids=lambda entry: entry.__name__)
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, writing: Callable[..., Any]) -> None:
    target = tmp_path / "out[1].d"
    command = [sys.executable, "-c", AT_WORK.format(function=writing.__name__), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        temporary = Path(line_of(child, child.stdout).strip())
        remove_leftovers(target)
        assert temporary.exists()  # it is at work
        child.kill()
    assert temporary.exists()
    with writing(target) as mine:
        assert not temporary.exists()
        assert mine.exists()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_other_names_stay(tmp_path: Path) -> None:
    names = [
        ".out.partial",
        ".out.12345678.partial.txt",
        ".out2.12345678.partial",
        ".out.notahex0.partial",
        "out.partial",
    ]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").write_text("x")
    (tmp_path / ".out.0000000a.partial").symlink_to(tmp_path / "elsewhere")
    remove_leftovers(tmp_path / "out")
    assert (tmp_path / "elsewhere" / "thesis.tex").exists()
    assert all((tmp_path / name).exists() for name in names)


def test_a_full_folder_is_removed(tmp_path: Path) -> None:
    left = temporary_beside(tmp_path / "out")
    (left / "a").mkdir(parents=True)
    (left / "a" / "b").write_text("x")
    with replacing_directory(tmp_path / "out") as folder:
        (folder / "c").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("leads_to", ["folder", "file", "nothing"])
def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    (tmp_path / "file").touch()
    temporary = temporary_beside(tmp_path / "current")
    temporary.symlink_to(leads_to)
    remove_partial(temporary)
    assert not temporary.is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "kept"]


def test_nothing_else_removes_folders() -> None:
    """`shutil.rmtree` leaves a link where it is, without a word if errors are ignored."""
    found = [module for module, path in modules().items() if "rmtree" in path.read_text(encoding="utf-8")]
    assert found == ["sdrpn.host.partial"]
