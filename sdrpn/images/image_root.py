"""Pictures below one folder, by names from untrusted callers: nothing outside it is read. Knows no picture formats."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sdrpn.errors import BadImage, BadInput
from sdrpn.host.escaping import one_line
from sdrpn.host.suggestion import did_you_mean_path

__all__ = ["MOST_FILE_BYTES", "ImageRoot"]

MOST_FILE_BYTES = 256 << 20  # a larger file is refused before it is read
_MOST_NAME = 1024  # characters; longer ones are cut in messages, and open nothing on any file system


class ImageRoot:
    """A folder whose pictures may be read, in it and below it. Links are followed where they stay inside."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Args: folder: resolved once. Raises: BadInput where it is not a folder."""
        given = Path(folder)
        self.folder = Path(os.path.realpath(given))
        if not self.folder.is_dir():
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise BadInput(f"the image root {given} {what}; expected a folder whose pictures may be read")

    def path(self, name: str) -> Path:
        """The resolved file of a name: relative to the root, or an absolute path that lies below it.

        Raises: BadImage for a name that leads out of the root (whether or not it exists), for one that does not exist,
            and for what is not a regular file
        """
        shown = _shown(name)
        if not isinstance(name, str) or not name or len(name) > _MOST_NAME or "\0" in name:
            raise BadImage(f"{shown} is not the name of a picture; expected a path below the image root")
        path = self.folder / name
        real = self._real(name)
        if not real.is_relative_to(self.folder):
            raise BadImage(f"{shown} leads out of the image root; expected a path below it, such as street.jpg")
        if not real.exists():
            raise BadImage(f"{shown} does not exist below the image root{self._meant(path)}")
        if not real.is_file():
            what = "is a folder" if real.is_dir() else "is not a regular file"
            raise BadImage(f"{shown} {what}; expected a picture below the image root")
        return real

    def holds(self, name: str) -> bool:
        """Whether a name lies below the root when all links are followed, whether or not it exists."""
        return "\0" not in name and self._real(name).is_relative_to(self.folder)

    def read(self, name: str, *, most_bytes: int = MOST_FILE_BYTES) -> bytes:
        """The bytes of a file, as `path` finds it.

        Raises: BadImage, also for a file of more than `most_bytes` or one that may not be read
        """
        data = self.first_bytes(name, most_bytes + 1)
        if len(data) > most_bytes:
            raise BadImage(f"{_shown(name)} has more than {most_bytes:,} bytes; expected a smaller picture file")
        return data

    def first_bytes(self, name: str, count: int) -> bytes:
        """As `read`, at most so many bytes from its start."""
        path = self.path(name)
        try:
            # O_NOFOLLOW, O_NONBLOCK: what replaced the file meanwhile is neither followed nor waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise BadImage(f"{_shown(name)} is not a regular file; expected a picture below the image root")
                if not _place_of(descriptor, path).is_relative_to(self.folder):
                    raise BadImage(f"{_shown(name)} leads out of the image root; expected a path below it")
                return file.read(count)
        except OSError as error:
            raise BadImage(
                f"{_shown(name)} cannot be read ({error.strerror}); name a picture that may be read"
            ) from error

    def _real(self, name: str) -> Path:
        return Path(os.path.realpath(self.folder / name))

    def _meant(self, path: Path) -> str:
        """A similar name in the same folder, where that folder is below the root."""
        parent = Path(os.path.realpath(path.parent))
        return did_you_mean_path(parent / path.name) if parent.is_relative_to(self.folder) else ""


def _place_of(descriptor: int, otherwise: Path) -> Path:
    """Where an open file lies now: a folder on the way may have been exchanged since its name was resolved."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
    except OSError:  # not on this system
        return otherwise


def _shown(name: object) -> str:
    text = repr(name)
    return one_line(text if len(text) <= 200 else f"{text[:200]}...")
