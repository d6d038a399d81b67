"""`sdrpn label` in several processes: the folder of one, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn.labels.head_choice import write_heads
from tests.cli.command import Command, refusal
from tests.labels.data import write_questions

ROOT = Path(__file__).parents[2]
KILLED_AFTER = """
import os, signal, sys
from sdrpn.cli.main import main
from sdrpn.labels import run_folder

write, count = run_folder.write_shard, int(sys.argv[1])

def killed(path, *more):
    global count
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    count -= 1
    write(path, *more)

run_folder.write_shard = killed
sys.exit(main(sys.argv[2:]))
"""


def command_for(checkpoint: Path, folder: Path, out: Path) -> tuple[object, ...]:
    files = ("--data", folder / "qa.jsonl", "--images", folder, "--heads", folder / "heads.json", "--out", out)
    return ("label", checkpoint, *files, "--max-new-tokens", 4, "--shard-questions", 1, "--threads", 1)


def content(out: Path) -> dict[str, bytes]:
    """All files of a folder, but for the lock."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of questions, and what one process makes of it."""
    from sdrpn.cli.main import main

    folder = tmp_path_factory.mktemp("parts")
    write_heads(folder / "heads.json", ((0, 1), (1, 2), (3, 0)), {})
    write_questions(folder)
    assert main([str(part) for part in command_for(text_checkpoint, folder, folder / "whole")]) == 0
    return folder / "whole"


def test_two_processes_equal_one(sdrpn: Command, text_checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = command_for(text_checkpoint, whole.parent, out)
    first = sdrpn(*command, "--shard", "2/2")
    assert (first.code, "files of others are missing" in first.out) == (0, True)
    assert not (out / "labels.json").exists()
    assert sdrpn(*command, "--shard", "1/2").code == 0
    assert content(out) == content(whole)
    assert sdrpn(*command, "--shard", "2/2", "--json").json()["counts"] is not None  # all is done
    assert content(out) == content(whole)
    assert "already holds a run; resume it" in refusal(sdrpn(*command))


def test_a_killed_process_loses_nothing(sdrpn: Command, text_checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [str(part) for part in command_for(text_checkpoint, whole.parent, out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "2"}
    started = [sys.executable, "-c", KILLED_AFTER, "1", *command]
    done = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode < 0, done.stderr
    kept = content(out / "attention")
    assert list(kept) == ["part-00000.parquet"]
    assert sdrpn(*command, "--shard", "2/2").code == 0
    assert not (out / "labels.json").exists()
    assert sdrpn(*command, "--shard", "1/2").code == 0
    assert content(out) == content(whole)


@pytest.mark.slow
def test_a_launcher_starts_the_parts(text_checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    """`accelerate launch`, with the example's config on a machine without GPUs."""
    out = tmp_path / "out"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    config = ["--config_file", str(ROOT / "examples" / "launch" / "ddp.yaml"), "-m", "sdrpn"]
    command = [str(part) for part in command_for(text_checkpoint, whole.parent, out)]
    done = subprocess.run(
        [*launcher, *config, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert content(out) == content(whole)
