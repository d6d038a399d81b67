"""Weight files that an interrupted export finished, kept for the next attempt. Knows nothing about their content.

They are in a hidden folder beside the bundle, as hard links to the files of the running export, so they take no extra
space. The folder does not load as a bundle. It is removed when an export is complete.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sdrpn.host.partial import remove_partial

__all__ = ["FinishedFiles"]

_KEY_NAME = "key"


class FinishedFiles:
    """The finished files of one bundle.

    Args:
        out: the bundle
        key: everything that decides the files' content; files of another key are dropped
    """

    def __init__(self, out: Path, key: str) -> None:
        target = out.resolve()
        self._folder = target.parent / f".{target.name}.unfinished"
        self._key = key

    def take(self, folder: Path, sizes: dict[str, int]) -> frozenset[str]:
        """Link finished files into `folder`, and return their names; `sizes` has the files of this export."""
        if not self._is_ours():
            remove_partial(self._folder)
            return frozenset()
        taken = set()
        for name, size_bytes in sizes.items():
            source, target = self._folder / name, folder / name
            if source.is_file() and source.stat().st_size == size_bytes and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, target)
                taken.add(name)
        return frozenset(taken)

    def keep(self, folder: Path, names: tuple[str, ...]) -> None:
        """Keep files of `folder` that are complete. Without hard links in the file system, nothing is kept."""
        if not self._is_ours():
            remove_partial(self._folder)
            self._folder.mkdir(parents=True)
            (self._folder / _KEY_NAME).write_text(self._key, encoding="ascii")
        for name in names:
            with (folder / name).open("rb") as stream:
                os.fsync(stream.fileno())  # later only the size can be checked
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                os.link(folder / name, self._folder / name)

    def drop(self) -> None:
        """Remove the folder: the export is complete."""
        remove_partial(self._folder)

    def _is_ours(self) -> bool:
        key = self._folder / _KEY_NAME
        return key.is_file() and key.read_text(encoding="ascii") == self._key
