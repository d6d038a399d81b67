"""The file in which TensorRT stores kernel timings, so that later builds can reuse them. Imports no TensorRT.

Concurrent builds share one file: each reads it first, and adds its own measurements under a lock.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sdrpn.engines.flavour import combined_timing_caches
from sdrpn.host.atomic import replacing_file
from sdrpn.host.file_lock import lock_file

__all__ = ["TimingCacheFile"]


class TimingCacheFile:
    """A timing cache file, or none."""

    def __init__(self, path: str | None, flavour: str) -> None:
        self._path = None if path is None else Path(path)
        self._flavour = flavour
        self._read = b""

    def read(self) -> bytes | None:
        """The measurements of earlier builds, empty where there is no file yet; None: no cache is used."""
        if self._path is None:
            return None
        with suppress(FileNotFoundError):
            self._read = self._path.read_bytes()
        return self._read

    def add(self, content: bytes | None) -> dict[str, int] | None:
        """Add the measurements of this build to those in the file; returns its size before and after, in bytes."""
        if self._path is None or content is None:
            return None
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            lock_file(lock.fileno(), wait=True)
            latest = self._path.read_bytes() if self._path.exists() else b""
            if latest not in (b"", self._read):
                content = combined_timing_caches(self._flavour, latest, content)
            with replacing_file(self._path) as temporary:
                temporary.write_bytes(content)
        return {"read_bytes": len(self._read), "written_bytes": len(content)}
