"""Kernels that TensorRT-RTX compiled for one engine on this GPU: shared by its contexts, stored between processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sdrpn.bundle.bundle import file_digest
from sdrpn.bundle.engine_manifest import read_engine_manifest
from sdrpn.errors import BadBundle, SdrpnError
from sdrpn.host.atomic import replacing_file, require_writable_file
from sdrpn.runtime.backends.tensorrt_library import Engine

__all__ = ["RuntimeCache", "cache_file"]

_DEFAULT_FOLDER = Path("~/.cache/sdrpn/tensorrt-rtx")

Report = Callable[[str], None]


class RuntimeCache:
    """The compiled kernels of one engine."""

    def __init__(self, engine: Engine, path: Path | None, unwritable: Report | None = None) -> None:
        """Check immediately that the file can be written.

        Args:
            path: the file; None: compiled kernels are lost with the process
            unwritable: called where the file cannot be written; None: that is an error
        """
        self._path, self._unwritable = path, unwritable
        if path is not None and not self._tried(lambda: require_writable_file(path)):
            self._path = None
        self._kept = _content(self._path)
        self.kernels = engine.new_runtime_cache(self._kept)

    def save(self) -> None:
        """Write the file, if new kernels were compiled."""
        path, content = self._path, self.kernels.content()
        if path is not None and content != self._kept:
            self._tried(lambda: _write(path, content))

    def _tried(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except SdrpnError as error:
            if self._unwritable is None:
                raise
            self._unwritable(f"kernels compiled by TensorRT-RTX are not stored for the next start: {error}")
            return False
        return True


def cache_file(engine: Path, folder: Path | None, capability: str) -> Path:
    """The path of a cache file: one for each engine and kind of GPU.

    Args: folder: None: the user's cache folder
    """
    return (folder or _DEFAULT_FOLDER.expanduser()) / f"{_digest(engine)[:32]}.{capability}.rtx-cache"


def _digest(engine: Path) -> str:
    """SHA-256 of the engine: from its manifest, else computed."""
    try:
        return read_engine_manifest(engine.with_name(f"{engine.name}.json")).engine.sha256
    except BadBundle:
        return file_digest(engine)


def _content(path: Path | None) -> bytes | None:
    with suppress(OSError):  # no cache yet
        return path.read_bytes() if path is not None else None
    return None


def _write(path: Path, content: bytes) -> None:
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)
