"""Check files listed in a manifest: their place, their kind, and whether they are unchanged. Knows no manifest.

Every file that is loaded from a bundle goes through here: graphs, weights, tokenizer, engines, saved graphs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.json_reader import MOST_JSON_BYTES, Misfit, parse_json, read_small_file, require_regular, shown
from sdrpn.host.links import real_file
from sdrpn.host.progress import Grown, uncounted

__all__ = [
    "SMALL_FILE_BYTES",
    "FileInfo",
    "ListedFiles",
    "errors_of",
    "file_digest",
    "read_manifest",
    "require_inside",
    "require_loadable",
]

# Digests of files up to this size are always verified; only those of larger files can be skipped.
SMALL_FILE_BYTES = 4 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 2**50


@dataclass(frozen=True)
class FileInfo:
    """Size and SHA-256 of one file."""

    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not 0 <= self.size_bytes < _MOST_BYTES:
            raise BadInput(f"size_bytes is {self.size_bytes}; expected 0 or more, below {_MOST_BYTES}")
        if not _SHA256.fullmatch(self.sha256):
            raise BadInput(f"sha256 is {shown(self.sha256)}; expected 64 hexadecimal digits")


@dataclass(frozen=True)
class ListedFiles:
    """A folder, and the entries of its manifest about the files in it."""

    folder: Path
    manifest: Path  # for messages
    files: Mapping[str, FileInfo]
    roots: Sequence[Path]  # resolved folders that links may point to, from `link_roots`
    advice: str  # what to do about a wrong file

    def path(self, name: str) -> Path:
        """A file that may be opened: listed, below one of the roots, regular, of the listed size.

        Raises: BadBundle
        """
        if name not in self.files:
            raise BadBundle(f"{self.manifest} names {shown(name)} but does not list it; {self.advice}")
        path = self.folder / require_inside(self.manifest, name)
        status = require_loadable(path, self.roots, self.advice)
        expected = self.files[name].size_bytes
        if status.st_size != expected:
            raise BadBundle(f"{path} has {status.st_size} bytes, the manifest says {expected}; {self.advice}")
        return path

    def verify(self, names: Iterable[str], *, large: bool = True, advance: Grown = uncounted) -> None:
        """Check every file as `path` does, and its digest; with `large` false, only digests of small files.

        Raises: BadBundle for the first file that differs
        """
        for name in names:
            path, expected = self.path(name), self.files[name]
            if not large and expected.size_bytes > SMALL_FILE_BYTES:
                continue
            with errors_of(path, self.advice):
                found = file_digest(path, advance)
            if found != expected.sha256:
                raise BadBundle(
                    f"{path} was changed: its SHA-256 is {found[:12]}..., the manifest says "
                    f"{expected.sha256[:12]}...; {self.advice}"
                )


def require_loadable(path: Path, roots: Sequence[Path], advice: str) -> os.stat_result:
    """The status of a regular file below one of the roots. Raises BadBundle for anything else."""
    with errors_of(path, advice):
        status = real_file(path, roots, BadBundle).stat()
        require_regular(status)
        return status


def read_manifest(path: Path, roots: Sequence[Path], advice: str, most_bytes: int = MOST_JSON_BYTES) -> object:
    """The JSON of a regular file of at most `most_bytes`, below one of the roots. Raises BadBundle."""
    with errors_of(path, advice):
        return parse_json(read_small_file(real_file(path, roots, BadBundle), most_bytes))


def file_digest(path: Path, advance: Grown = uncounted) -> str:
    """SHA-256 of a file as hex, read in pieces; `advance` is called with the number of bytes of each."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(8 * 1024 * 1024):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def require_inside(manifest: Path, name: str) -> PurePosixPath:
    """`name` as a relative path that stays below the manifest's folder. Raises BadBundle."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not relative.parts or not name.isprintable():
        raise BadBundle(f"{manifest} names {shown(name)}, which leaves the bundle; expected a path inside it")
    return relative


@contextmanager
def errors_of(path: Path, advice: str) -> Iterator[None]:
    """Turn errors about a file into messages that a user can act on."""
    try:
        yield
    except Misfit as error:
        raise BadBundle(f"{path} cannot be read ({error}); {advice}") from error
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadBundle(f"{path} is missing; {advice}") from None
    except PermissionError:
        raise BadBundle(f"{path} cannot be read: permission denied; check the folder's owner and mode") from None
    except OSError as error:
        reason = "a loop of links" if error.errno == errno.ELOOP else error.strerror or type(error).__name__
        raise BadBundle(f"{path} cannot be read ({reason}); {advice}") from error
    except ValueError as error:  # an invalid file name
        raise BadBundle(f"{os.fspath(path)!r} cannot be read ({error}); {advice}") from error
