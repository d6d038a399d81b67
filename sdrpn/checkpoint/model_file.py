"""Check a file of a checkpoint before it is read: its kind, its place, its size, and that it is not a placeholder.
Knows no format."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdrpn.errors import BadCheckpoint
from sdrpn.host.links import AllowLinks, link_roots, real_file
from sdrpn.host.placeholder import describe_placeholder
from sdrpn.host.sizes import text_from_bytes

__all__ = ["MAX_JSON_BYTES", "parsed_json", "read_small_file", "require_links", "require_model_file", "short"]

# The largest known files, tokenizer_config.json with thousands of tokens, take 1 MB; in the worst case a parser needs
# 25 times the size of a file in memory.
MAX_JSON_BYTES = 4 * 1024 * 1024
_READ_SUFFIXES = frozenset((".json", ".safetensors", ".bin", ".model", ".jinja"))
_SHOWN_CHARACTERS = 100
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def require_model_file(path: Path) -> int:
    """Raise BadCheckpoint for anything but a regular file, for one without access, and for placeholders.

    Returns: its size in bytes
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        what = "is a link to a file that does not exist" if path.is_symlink() else "is missing"
        raise BadCheckpoint(f"{short(path)} {what}; download it again") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise BadCheckpoint(f"{short(path)} cannot be read ({_reason(error)})") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
        raise BadCheckpoint(f"{path} is {kind}; expected a file of a checkpoint: download it again")
    placeholder = describe_placeholder(path)
    if placeholder is not None:
        raise BadCheckpoint(placeholder)
    return status.st_size


def read_small_file(path: Path, most_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read the whole of a file that is expected to be small. Raises BadCheckpoint also for a larger one."""
    size_bytes = require_model_file(path)
    if size_bytes > most_bytes:
        raise BadCheckpoint(
            f"{path} has {text_from_bytes(size_bytes)}; expected {text_from_bytes(most_bytes)} at most here: "
            f"download it again"
        )
    try:
        with path.open("rb") as file:
            return file.read(most_bytes)
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read ({_reason(error)})") from error


def parsed_json(content: bytes, where: str, *, names_once: bool = False) -> dict[str, Any]:
    """Parse a JSON object, with or without a byte-order mark. Raises BadCheckpoint for anything else.

    Args: names_once: refuse a name that occurs twice in one object, instead of taking the last
    """
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_repetition if names_once else None)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"{where} is not JSON that can be read ({short(_reason(error))}); download it again"
        ) from error
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{where} is not a JSON object; download it again")
    return value


def require_links(places: Iterable[Path | None], allow: AllowLinks) -> None:
    """Raise BadCheckpoint for a file of a checkpoint that is a link to a place that is not allowed.

    `places`: folders, or files in them; None and missing ones are skipped
    """
    for place in places:
        if place is None:
            continue
        links = [path for path in _files(place) if path.suffix in _READ_SUFFIXES and path.is_symlink()]
        roots = link_roots(place if place.is_dir() else place.parent, allow) if links else ()
        for path in links:
            real_file(path, roots, BadCheckpoint)


def _files(place: Path) -> list[Path]:
    """The files of a folder; or a file and the description beside it."""
    try:
        return sorted(place.iterdir()) if place.is_dir() else [place, place.with_suffix(".json")]
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{short(place)} cannot be read ({_reason(error)})") from error


def short(text: object) -> str:
    """A name or a message from a file, shortened to fit one line of an error."""
    whole = " ".join(str(text).split())
    cut = f"{whole[:_SHOWN_CHARACTERS]}... ({len(whole)} characters)"
    return whole if len(whole) <= _SHOWN_CHARACTERS + 20 else cut


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{short(name)} occurs twice")
        found[name] = value
    return found


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
