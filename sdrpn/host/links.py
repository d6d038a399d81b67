"""Which symbolic links are allowed in a folder of model files. Knows neither bundles nor checkpoints.

A link may point to known places of the folder's files: the folder itself, the blobs of the model cache that it is a
snapshot of, the installed package for files shipped with it, and folders that the caller allows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

from sdrpn.errors import BadInput, SdrpnError

__all__ = ["AllowLinks", "allowing_links", "files_below", "link_roots", "real_file"]

# True: links may point anywhere. Folders: also below these.
AllowLinks: TypeAlias = bool | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# The real folder of the code: packages installed as links (uv, Nix, conda) have their data beside it.
_PACKAGE = Path(__file__).resolve().parents[1]
# For all folders opened while a command runs; see `allowing_links`.
_ALLOWED: ContextVar[tuple[Path, ...]] = ContextVar("allowed links", default=())
# huggingface_hub's marker of a store shared by the repositories of a cache.
_SHARED_STORE_MARK = ".huggingface-shared-blobs"


def link_roots(folder: Path, allow: AllowLinks = ()) -> tuple[Path, ...]:
    """Resolved folders that the files of `folder` may be below; `folder` itself first.

    Raises BadInput for an allowed one that does not exist, as in a mistyped path.
    """
    real = _real(folder)
    return (real, *_blobs(real), *_package(folder), *_allowed(real, allow), *_ALLOWED.get())


@contextmanager
def allowing_links(folders: Sequence[Path]) -> Iterator[None]:
    """Inside the block, files of every folder may link to places below `folders`: for options of a whole command.

    Raises BadInput for one that does not exist.
    """
    token = _ALLOWED.set((*_ALLOWED.get(), *_allowed(Path(), folders)))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def real_file(path: Path, roots: Sequence[Path], error: type[SdrpnError]) -> Path:
    """The resolved `path`. Raises `error` where it is outside all roots, whether or not it exists."""
    real = _real(path)
    if not any(real.is_relative_to(root) for root in roots):
        raise error(
            f"{path} is a link that leaves {roots[0]}: it points to {real}; if you trust that file, "
            f"allow links to {real.parent}",
            options=(f"allow_links {real.parent}",),
        )
    return real


def files_below(folder: Path, roots: Sequence[Path], error: type[SdrpnError]) -> list[Path]:
    """Every file in a folder and in its subfolders, linked ones too, which `Path.rglob` leaves out; in order.

    Raises `error` for a link that leaves all roots, leads to nothing, or to a folder that it is in.
    """
    return list(_files(folder, roots, error, (_real(folder),)))


def _files(folder: Path, roots: Sequence[Path], error: type[SdrpnError], above: tuple[Path, ...]) -> Iterator[Path]:
    """As `files_below`. Args: above: real folders on the way to this one, which is the last of them"""
    for path in sorted(folder.iterdir()):
        real = real_file(path, roots, error) if path.is_symlink() else path
        if not real.exists():
            raise error(f"{path} is a link to {real}, which does not exist; remove it, or put that back")
        if real.is_file():
            yield path
        elif real.is_dir():
            if path.is_symlink() and any(place.is_relative_to(real) for place in above):
                raise error(f"{path} is a link to {real}, a folder that it is in; remove it")
            yield from _files(path, roots, error, (*above, _real(path)))


def _blobs(real: Path) -> list[Path]:
    """REPOSITORY/blobs for a folder in REPOSITORY/snapshots/REVISION, and the store shared by its cache."""
    found = []
    for revision in (real, *real.parents):
        if revision.parent.name == "snapshots":
            repository = revision.parents[1]
            store = repository.parent / "blobs"
            found += [repository / "blobs", *([store] if (store / _SHARED_STORE_MARK).is_file() else [])]
    return [blobs for blobs in found if blobs.is_dir() and not blobs.is_symlink()]


def _package(folder: Path) -> list[Path]:
    """The package's folder, only for a folder inside it."""
    return [_PACKAGE] if folder.absolute().is_relative_to(Path(__file__).absolute().parents[1]) else []


def _allowed(real: Path, allow: AllowLinks) -> list[Path]:
    if isinstance(allow, bool):
        return [Path(real.anchor)] if allow else []
    folders = [allow] if isinstance(allow, (str, os.PathLike)) else allow
    return [_allowed_folder(Path(folder).expanduser()) for folder in folders]


def _allowed_folder(folder: Path) -> Path:
    try:
        folder.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"links are allowed to {folder}, which cannot be read ({reason}); name an existing folder",
            options=("allow_links",),
        ) from error
    return _real(folder)


def _real(path: Path) -> Path:
    """`Path.resolve` that raises for a loop of links in all Python releases."""
    return Path(os.path.realpath(path))
