"""Unpack an archive into a folder; contents that installed releases have are linked, not written again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sdrpn.errors import BadBundle
from sdrpn.host.listed_files import file_digest, require_inside
from sdrpn.host.progress import Grown, uncounted
from sdrpn.release.archive import Archive
from sdrpn.release.index import INDEX_NAME, SIGNATURE_NAME
from sdrpn.release.installed import InstalledRelease

__all__ = ["contents_of", "unpack"]

# Nobody writes into an installed release: several may share a file.
_MODE = 0o444


def contents_of(releases: Iterable[InstalledRelease]) -> dict[str, Path]:
    """SHA-256 -> a file that should have this content; nothing is read."""
    found: dict[str, Path] = {}
    for release in releases:
        for name, file in release.index.files.items():
            found.setdefault(file.sha256, release.folder / name)
    return found


def unpack(archive: Archive, folder: Path, there: Mapping[str, Path], advance: Grown = uncounted) -> None:
    """Write all files of a release into a folder.

    Args:
        there: SHA-256 -> file of an installed release, from `contents_of`; it is read and compared before it is used
        advance: called with the number of bytes of each piece
    Raises: BadBundle where the archive was changed, or a delta lacks a content that is not installed; OSError
    """
    paths = _paths_by_digest(archive)
    for stored in archive.objects():
        first, *others = (folder / name for name in paths.pop(stored.sha256))
        if _taken(there.get(stored.sha256), stored.sha256, first):
            advance(stored.size_bytes)
        else:
            first.parent.mkdir(parents=True, exist_ok=True)
            with first.open("wb") as stream:
                for piece in stored.pieces():
                    stream.write(piece)
                    advance(len(piece))
            first.chmod(_MODE)
        _link_all(first, others)
    for digest, names in paths.items():
        first, *others = (folder / name for name in names)
        if not _taken(there.get(digest), digest, first):
            raise BadBundle(
                f"{archive.path} is a delta, and lacks {names[0]}, which no installed release has unchanged; install "
                "the whole release"
            )
        advance(archive.index.files[names[0]].size_bytes)
        _link_all(first, others)
    _write_small(folder / INDEX_NAME, archive.index.to_bytes())
    if archive.signature is not None:
        _write_small(folder / SIGNATURE_NAME, archive.signature)


def _paths_by_digest(archive: Archive) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, file in sorted(archive.index.files.items()):
        require_inside(archive.path, name)
        found.setdefault(file.sha256, []).append(name)
    return found


def _taken(source: Path | None, digest: str, target: Path) -> bool:
    """Whether `target` is now a link to an installed file, or a copy, whose content was compared."""
    if source is None or source.is_symlink() or not source.is_file() or file_digest(source) != digest:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
        target.chmod(_MODE)
        if file_digest(target) != digest:
            target.unlink()
            return False
    return True


def _link_all(first: Path, others: Sequence[Path]) -> None:
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(first, other)
        except OSError:
            shutil.copyfile(first, other)
            other.chmod(_MODE)


def _write_small(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(_MODE)
