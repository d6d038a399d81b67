"""`sdrpn eval` in several processes: the results of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdrpn.evaluation.records import RECORDS_NAME, read_records
from tests.cli.command import Command, refusal

ROOT = Path(__file__).parents[2]
SAMPLES = 5
TAGS = ("--task", "tags", "--samples", SAMPLES, "--threads", 1, "--methods", "plain,random-crop,shuffled-crop,sdrpn")
KILLED_AFTER = """
import os, signal, sys
from sdrpn.evaluation.records import RecordFile
from sdrpn.cli.main import main

append, count = RecordFile.append, int(sys.argv[1])

def killed(self, record):
    global count
    count -= 1
    append(self, record)
    if count == 0:
        self._lines._opened.write(b'{"index": 3, "id"')  # a line that was begun
        os.kill(os.getpid(), signal.SIGKILL)

RecordFile.append = killed
sys.exit(main(sys.argv[2:]))
"""


def answers(out: Path) -> list[tuple[Any, ...]]:
    """All but times, in order."""
    return [
        (found.index, found.method, found.answer, found.score, found.crops_xyxy_px, found.note)
        for found in read_records(out)
    ]


@pytest.fixture(scope="module")
def whole(text_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds."""
    from sdrpn.cli.main import main

    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(["eval", str(text_bundle), *map(str, TAGS), "--out", str(out)]) == 0
    return out


def test_two_processes_equal_one(sdrpn: Command, text_bundle: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("eval", text_bundle, *TAGS, "--out", out, "--shard")
    first = sdrpn(*command, "2/2")
    assert (first.code, "12 answers of other parts are missing" in first.out) == (0, True)
    assert not (out / "results.json").exists()
    assert sdrpn(*command, "1/2").code == 0
    assert answers(out) == answers(whole)
    assert {path.name for path in out.iterdir()} - {".lock"} == {path.name for path in whole.iterdir()}
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (out, whole))
    assert found["missing"] == expected["missing"] == 0
    assert found["settings"] == expected["settings"]
    for name, result in expected["methods"].items():
        timed = ("seconds_per_question", "median_seconds", "relative_speed")
        assert {key: value for key, value in found["methods"][name].items() if key not in timed} == {
            key: value for key, value in result.items() if key not in timed
        }
    # A late process finds everything done.
    assert json.loads(sdrpn(*command, "2/2", "--json").out)["missing"] == 0
    assert answers(out) == answers(whole)


def test_a_killed_process_loses_nothing(sdrpn: Command, text_bundle: Path, whole: Path, tmp_path: Path) -> None:
    """It is continued by itself, or by as many others as one likes."""
    out = tmp_path / "run"
    command = ["eval", str(text_bundle), *map(str, TAGS), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER, "3", *command],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode < 0, done.stderr
    before = (out / "records.2-of-2.jsonl").read_text().splitlines()
    assert len(before) == 4  # the last one was begun
    for shard in ("3/3", "1/3"):
        assert sdrpn(*command, "--shard", shard).code == 0
    assert not (out / "results.json").exists()
    assert sdrpn(*command, "--resume").code == 0  # one process does what is left
    assert answers(out) == answers(whole)
    kept = {line for line in (out / RECORDS_NAME).read_text().splitlines() if line in before}
    assert len(kept) == 3
    assert (out / "results.json").is_file()


def test_refusals(sdrpn: Command, text_bundle: Path, tmp_path: Path) -> None:
    def refused(*options: object) -> str:
        return refusal(sdrpn("eval", text_bundle, *TAGS, *options))

    assert "share a folder; name it (--out)" in refused("--shard", "1/2")
    assert "the part is 3 of 2; expected a number" in refused("--shard", "3/2", "--out", tmp_path / "run")
    assert sdrpn("eval", text_bundle, *TAGS, "--shard", "1/2", "--out", tmp_path / "run").code == 0
    message = refused("--shard", "2/2", "--out", tmp_path / "run", "--split", "shifted")
    assert "was started with other settings (split)" in message


def test_two_processes_that_do_the_same_part(text_bundle: Path, tmp_path: Path) -> None:
    from sdrpn.errors import BadInput
    from sdrpn.evaluation.records import RecordFile
    from sdrpn.host.part import Part

    files = [RecordFile(tmp_path / "run", {}, resume=False, part=Part(1, 2)) for _ in range(2)]
    with files[0], pytest.raises(BadInput, match=r"records\.1-of-2\.jsonl is being written by another process"):
        files[1].__enter__()


def test_processes_with_other_numbers_of_threads_are_one_run(
    sdrpn: Command, text_checkpoint: Path, tmp_path: Path
) -> None:
    """As on machines with other numbers of cores."""
    tags = ("--task", "tags", "--samples", 2, "--methods", "plain", "--out", tmp_path / "run")
    for number in (1, 2):
        done = sdrpn("eval", text_checkpoint, *tags, "--threads", number, "--shard", f"{number}/2")
        assert done.code == 0, done.err
    assert (tmp_path / "run" / "results.json").is_file()
