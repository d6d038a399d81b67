"""`sdrpn export` with real signals at many moments, and on disks that are too small: nothing is left that loads."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Command, refusal
from tests.damage import copied

# Exports several times, each interrupted by a real signal at another moment: when the n-th file of the temporary folder
# is opened, made, renamed or removed. Prints [moments, [moment, exit code, {name left: exit code of inspect}], ...].
INTERRUPTED = """
import json, os, shutil, signal, sys
from sdrpn.cli.main import main

folder, command = sys.argv[1], sys.argv[2:]
moments = {"seen": 0, "stop at": None}

def watch(event, arguments):
    if event.startswith(("open", "os.", "shutil.")) and any(".partial" in str(one) for one in arguments[:2]):
        moments["seen"] += 1
        if moments["seen"] == moments["stop at"]:
            os.kill(os.getpid(), signal.SIGINT)

def export(stop_at):
    moments.update({"seen": 0, "stop at": stop_at})
    sys.stdout = open(os.devnull, "w")
    code = main(command)
    moments["stop at"] = None
    left = {name: main(["inspect", os.path.join(folder, name), "--verify"]) for name in os.listdir(folder)}
    sys.stdout = sys.__stdout__
    return [stop_at, code, left]

sys.addaudithook(watch)
aside = folder + ".aside"
shutil.copytree(folder, aside)
export(None)
total = moments["seen"]
outcomes = []
for step in (1, total // 3, 2 * total // 3, total - 2, total - 1, total):
    shutil.rmtree(folder)
    shutil.copytree(aside, folder)
    outcomes.append(export(step))
print(json.dumps([total, *outcomes]))
"""


def interrupted_exports(folder: Path, *command: object) -> list[list[Any]]:
    """[moment, exit code, {name left in `folder`: exit code of inspect}] of each."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(folder), *map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    total, *outcomes = json.loads(done.stdout)
    assert total > 30
    # The export that counts the moments is not interrupted: it names what it wrote.
    first, *others = done.stderr.splitlines()
    assert first.startswith("sdrpn: bundle: ")
    assert others == ["sdrpn: interrupted"] * len(outcomes)
    assert {code for _, code, _ in outcomes} == {130}
    return list(outcomes)


class TestCtrlC:
    def test_a_new_bundle_is_not_there(self, text_checkpoint: Path, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        outcomes = interrupted_exports(folder, "export", text_checkpoint, "--out", folder / "new")
        for moment, _, left in outcomes[:-1]:
            assert left == {}, moment
        assert outcomes[-1][2] in ({}, {"new": 0})  # the last moment may be after the rename that completes it

    def test_a_bundle_that_was_there_stays_whole(
        self, text_checkpoint: Path, text_bundle: Path, tmp_path: Path
    ) -> None:
        """As it was or, after the last rename, as it should become; nothing else is left beside it."""
        out = copied(text_bundle, tmp_path / "folder")
        command = ("export", text_checkpoint, "--out", out, "--precision", "fp16")
        for moment, _, left in interrupted_exports(out.parent, *command):
            assert left == {out.name: 0}, moment


# Exports into a file system of so many kB that nobody else sees; its size is not asked for where it should fill up.
SMALL_DISK = """
mkdir -p "$1" && mount -t tmpfs -o size="$2"k tmpfs "$1" || exit 77
"$3" -c '
import sys
import sdrpn.export.bundle_writer as writer
from sdrpn.cli.main import main
if sys.argv[1] == "unchecked":
    writer.require_free_space = lambda *arguments, **options: None
sys.exit(main(sys.argv[2:]))
' "$4" export "$5" --out "$1/bundle"
code=$?
ls -A "$1"
exit $code
"""


class TestFullDisk:
    @pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare to mount a small disk with")
    @pytest.mark.parametrize(
        ("size_kb", "check", "message"),
        [
            (300, "checked", r".*bundle needs .* MB and its disk has .* kB free: .* are missing; free some space .*"),
            (1100, "unchecked", r"the disk is full: writing .*bundle stopped after .* MB; free some space or name "
             r"another disk; nothing was left behind"),
        ],
    )  # fmt: skip
    def test_a_disk_that_fills_up(
        self, text_checkpoint: Path, tmp_path: Path, size_kb: int, check: str, message: str
    ) -> None:
        done = subprocess.run(
            [
                *("unshare", "--mount", "--map-root-user", "sh", "-c", SMALL_DISK, "sh"),
                *(tmp_path / "disk", str(size_kb), sys.executable, check, text_checkpoint),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        assert done.returncode == 1, done.stderr
        assert re.fullmatch(f"sdrpn: error: {message}\n", done.stderr), done.stderr
        assert done.stdout == ""  # nothing on the disk

    def test_a_disk_that_is_full_only_at_the_end(
        self, sdrpn: Command, text_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """File systems that allocate late report it when the bytes are flushed."""

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        message = refusal(sdrpn("export", text_checkpoint, "--out", tmp_path / "bundle"), 1)
        assert re.match(r"the disk is full: writing .*bundle stopped after 1\.\d MB; free some space", message)
        assert list(tmp_path.iterdir()) == []
