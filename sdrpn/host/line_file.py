"""A file of JSON lines that grows: a line is whole or not there, and one process writes at a time."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType

from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.file_lock import lock_file

__all__ = ["LineFile", "disk_advice"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK_BYTES = 1 << 16


def disk_advice(error: Exception) -> str:
    """What to do where a file cannot be written."""
    full = getattr(error, "errno", None) in _FULL
    return "free some space" if full else "name a folder on a disk that works and that you may write to"


class LineFile:
    """Appends lines; a context manager. An unfinished last line, as an interruption leaves it, is removed first."""

    def __init__(self, path: Path, *, then: str, busy: str, options: tuple[str, ...] = ()) -> None:
        """Args:
        then: what to do once there is space again, as in "free some space and ..."
        busy: what to do where another process writes to it
        options: of the request, by which it goes on
        """
        self._path, self._then, self._busy, self._options = path, then, busy, options
        self._stream: FileIO | None = None

    def __enter__(self) -> LineFile:
        """Raises BadInput for a file that another process writes to, or that nobody may write to."""
        try:
            stream = FileIO(self._path, "a+")
        except OSError as error:
            raise BadInput(f"{self._path} cannot be written ({error.strerror}); {disk_advice(error)}") from error
        if lock_file(stream.fileno(), wait=False) == "elsewhere":
            stream.close()
            raise BadInput(f"{self._path} is being written by another process; {self._busy}")
        _remove_unfinished_line(stream)
        self._stream = stream
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    @property
    def is_empty(self) -> bool:
        """Whether there is no line."""
        return self._opened.seek(0, os.SEEK_END) == 0

    def append(self, value: object) -> None:
        """Write one line. Raises RunFailed where the disk is full; the lines before stay whole."""
        stream = self._opened
        start = stream.seek(0, os.SEEK_END)
        try:
            line = memoryview(f"{json.dumps(value, allow_nan=False)}\n".encode("ascii"))
            while line:
                line = line[stream.write(line) :]  # a full disk may accept only a part
        except OSError as error:
            with suppress(OSError):
                stream.truncate(start)
            first = "free some space" if error.errno in _FULL else "check the disk"
            raise RunFailed(
                f"{self._path} cannot be written ({error.strerror or error}); {first} and {self._then}: "
                "what was written before is kept",
                options=self._options,
            ) from error

    @property
    def _opened(self) -> FileIO:
        assert self._stream is not None  # entered
        return self._stream


def _remove_unfinished_line(stream: FileIO) -> None:
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _CHUNK_BYTES)
        stream.seek(start)
        newline = (stream.read(end - start) or b"").rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    stream.truncate(end)
