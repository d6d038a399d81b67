"""Files of JSON lines that grow: whole lines alone, whatever ends the writing, and one writer at a time."""

from __future__ import annotations

import errno
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.line_file import LineFile, disk_advice


def line_file(path: Path) -> LineFile:
    return LineFile(path, then="resume", busy="wait for it", options=("resume",))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for numbers in ((1, 2), (3,)):
        with line_file(path) as file:
            assert file.is_empty == (numbers[0] == 1)
            for number in numbers:
                file.append({"number": number})
    assert lines(path) == [{"number": 1}, {"number": 2}, {"number": 3}]


@pytest.mark.parametrize("rest", [b"", b"{", b"x" * 200_000])
@pytest.mark.parametrize("whole", [b"", b"1\n", b"1\n2\n"])
def test_an_unfinished_line_is_removed(tmp_path: Path, whole: bytes, rest: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole + rest)
    with line_file(path) as file:
        file.append(3)
    assert path.read_bytes() == whole + b"3\n"


@pytest.mark.parametrize(
    ("number", "first"),
    [(errno.ENOSPC, "free some space"), (errno.EFBIG, "free some space"), (errno.EIO, "check the disk")],
)
def test_a_disk_that_takes_half_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, first: str
) -> None:
    path = tmp_path / "a.jsonl"

    class Failing(FileIO):
        room = 10

        def write(self, data: Any) -> int:
            if self.room == 0:
                raise OSError(number, os.strerror(number))
            written = super().write(bytes(data)[: self.room])
            self.room -= written
            return written

    monkeypatch.setattr("sdrpn.host.line_file.FileIO", Failing)
    with line_file(path) as file:
        file.append(1234)
        message = rf"a\.jsonl cannot be written \(.+\); {first} and resume: what was written before is kept"
        with pytest.raises(RunFailed, match=message) as found:
            file.append("a long line")
    assert found.value.options == ("resume",)
    assert path.read_text() == "1234\n"


def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with line_file(path) as file:
        file.append(1)
        with pytest.raises(BadInput, match=r"a\.jsonl is being written by another process; wait for it"):
            line_file(path).__enter__()
        file.append(2)
    assert lines(path) == [1, 2]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.jsonl cannot be written \(No such file or directory\); name a folder"):
        line_file(tmp_path / "none" / "a.jsonl").__enter__()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "name a folder on a disk that works and that you may write to"),
        (errno.ENOTDIR, "name a folder on a disk that works and that you may write to"),
    ],
)
def test_what_to_do(number: int, advice: str) -> None:
    assert disk_advice(OSError(number, "it failed")) == advice
