"""The archive of a release: a tar file in which every byte is determined by its index and its signature.

ARCHIVE (tar, not compressed: weights do not shrink)
├── model.sig               absent where nobody signed
├── release.json
└── objects/SHA256          each content once, however many files have it; in ascending order

A delta lacks the objects that another release has; its index and signature are those of the whole release. Headers,
order and padding are compared with what this module writes, so a byte that is changed anywhere is found. Contents pass
in pieces: memory does not grow with their size.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.atomic import replacing_file
from sdrpn.host.listed_files import errors_of
from sdrpn.host.progress import Grown, uncounted
from sdrpn.release.index import INDEX_NAME, SIGNATURE_NAME, ReleaseIndex, index_from_bytes
from sdrpn.release.signature import SignedDigests, read_signature, require_canonical, require_same_files

__all__ = ["Archive", "StoredObject", "open_archive", "write_archive"]

_BLOCK, _PIECE = 512, 4 * 1024 * 1024
_END = bytes(2 * _BLOCK)
_OBJECTS = "objects/"
# Index and signature are read whole.
_MOST_BYTES = 4 * 1024 * 1024
_AGAIN = "get the release again"


@dataclass(frozen=True)
class StoredObject:
    """One content: `pieces` yields it once, and raises BadBundle at its end where the digest differs."""

    sha256: str
    size_bytes: int
    pieces: Callable[[], Iterator[bytes]]


class Archive:
    """An archive that is read from front to back. Signature and index were read."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        """Raises BadBundle for anything else than the beginning of an archive."""
        self._stream, self.path, self._started = stream, path, False
        name, size = self._header()
        self.signature: bytes | None = None
        if name == SIGNATURE_NAME:
            self.signature = self._small(size)
            name, size = self._header()
        if name != INDEX_NAME:
            raise self._changed(f"has {name!r} in place of {INDEX_NAME}")
        self.index: ReleaseIndex = index_from_bytes(self._small(size), path)
        self.signed: SignedDigests | None = None
        if self.signature is not None:
            require_canonical(self.signature, path)
            self.signed = read_signature(self.signature, path)
            require_same_files(self.signed, self.index, path)

    def objects(self) -> Iterator[StoredObject]:
        """Every content in order, each to be read before the next. Raises BadBundle where something was changed."""
        sizes, last = self.index.sizes, ""
        while (header := self._header_or_end()) is not None:
            name, size = header
            digest = name.removeprefix(_OBJECTS)
            if not name.startswith(_OBJECTS) or sizes.get(digest) != size or digest <= last:
                raise self._changed(f"has {name!r} of {size} bytes, which its index does not have there")
            pieces = self._pieces(digest, size)
            yield StoredObject(digest, size, lambda pieces=pieces: pieces)  # type: ignore[misc]  # bound now
            for _ in pieces:  # what the caller did not read is checked all the same
                pass
            last = digest

    def _pieces(self, digest: str, size: int) -> Iterator[bytes]:
        found, left = hashlib.sha256(), size
        while left:
            piece = self._exactly(min(_PIECE, left))
            found.update(piece)
            left -= len(piece)
            yield piece
        self._skip_padding(size)
        if found.hexdigest() != digest:
            raise self._changed(f"has other bytes than its index says for {digest[:12]}...")

    def _header(self) -> tuple[str, int]:
        header = self._header_or_end()
        if header is None:
            raise self._changed("ends early")
        return header

    def _header_or_end(self) -> tuple[str, int] | None:
        """Name and size of the next member; None at the end, after which nothing follows."""
        block = self._exactly(_BLOCK)
        if block == bytes(_BLOCK) and self._started:
            if self._exactly(_BLOCK) != bytes(_BLOCK) or self._stream.read(1):
                raise self._changed("goes on after its end")
            return None
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError):
            member = None
        if member is None or _header_bytes(member.name, member.size) != block:
            if not self._started:
                raise BadBundle(f"{self.path} is not an archive of a release; expected what `sdrpn release pack` wrote")
            raise self._changed("has another header than its index gives")
        self._started = True
        return member.name, member.size

    def _small(self, size: int) -> bytes:
        if size > _MOST_BYTES:
            raise self._changed(f"has an index or a signature of {size} bytes; expected at most {_MOST_BYTES}")
        content = self._exactly(size)
        self._skip_padding(size)
        return content

    def _skip_padding(self, size: int) -> None:
        if self._exactly(-size % _BLOCK).strip(b"\0"):
            raise self._changed("has bytes where there are none")

    def _exactly(self, count: int) -> bytes:
        content = self._stream.read(count)
        while len(content) < count:  # a pipe gives what it has
            more = self._stream.read(count - len(content))
            if not more:
                if not self._started:
                    raise BadBundle(f"{self.path} is too short for a release; expected what `sdrpn release pack` wrote")
                raise self._changed("ends early")
            content += more
        return content

    def _changed(self, how: str) -> BadBundle:
        return BadBundle(f"{self.path} was changed or is incomplete: it {how}; {_AGAIN}")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """An archive, open for reading. Raises BadBundle or BadInput; also where it is read."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; expected an archive, as `sdrpn release pack` writes it")
    if path.is_dir():
        raise BadInput(f"{path} is a folder; expected an archive, as `sdrpn release pack` writes it")
    with errors_of(path, _AGAIN), path.open("rb") as stream:
        yield Archive(stream, path)


def write_archive(
    path: Path,
    index: ReleaseIndex,
    signature: bytes | None,
    objects: Iterable[StoredObject],
    advance: Grown = uncounted,
) -> int:
    """Write an archive atomically, and return its size in bytes.

    Args:
        objects: in ascending order of their digests
        advance: called with the number of bytes of each piece
    Raises: what reading the objects raises; BadBundle for one that changed; BadInput, RunFailed as `replacing_file`
    """
    with replacing_file(path) as temporary, temporary.open("wb") as stream:
        if signature is not None:
            _write_small(stream, SIGNATURE_NAME, signature)
        _write_small(stream, INDEX_NAME, index.to_bytes())
        for stored in objects:
            stream.write(_header_bytes(f"{_OBJECTS}{stored.sha256}", stored.size_bytes))
            written = 0
            for piece in stored.pieces():
                stream.write(piece)
                written += len(piece)
                advance(len(piece))
            if written != stored.size_bytes:
                raise BadBundle(f"a file of {path} changed while it was packed; pack it again")
            stream.write(bytes(-written % _BLOCK))
        stream.write(_END)
        return stream.tell()


def _write_small(stream: BinaryIO, name: str, content: bytes) -> None:
    stream.write(_header_bytes(name, len(content)))
    stream.write(content + bytes(-len(content) % _BLOCK))


def _header_bytes(name: str, size: int) -> bytes:
    """The only header that a member of this name and size has. GNU's form, for files of more than 8 GiB."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member.tobuf(tarfile.GNU_FORMAT)
