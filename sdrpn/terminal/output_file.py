"""Files and folders that a user names for a verb to write: checked before the work, reported afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sdrpn.errors import BadInput
from sdrpn.host.suggestion import did_you_mean
from sdrpn.images.picture_output import PICTURES, save_picture

__all__ = [
    "PICTURES",
    "append_json_line",
    "report_written",
    "require_output_file",
    "require_output_folder",
    "save_picture",
    "write_text",
]


def require_output_file(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """Raise BadInput where the file could not be written under this name, or would make a folder that nobody meant.

    Args:
        option: what it was named with, such as --overlay
        suffixes: what its name may end in; empty: anything
    """
    from sdrpn.host.atomic import require_writable_file

    _require_folder(option, path)
    require_writable_file(path)
    if suffixes and path.suffix.lower() not in suffixes:
        *others, last = suffixes
        expected = f"{', '.join(others)} or {last}" if others else last
        found = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise BadInput(f"{option} {path} {found}; expected a name that ends in {expected}")


def require_output_folder(option: str, path: Path | None) -> None:
    """Raise BadInput where the folder that a verb is to write would lie in one that does not exist.

    Args:
        option: what it was named with, such as --out
        path: None: it was not named
    """
    if path is not None:
        _require_folder(option, path)


def write_text(path: Path, text: str) -> None:
    """Write it whole or not at all."""
    from sdrpn.host.atomic import replacing_file

    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_json_line(path: Path, value: object) -> None:
    """Append one object as a line of JSON, with its version; an existing file keeps its lines."""
    from sdrpn.terminal.output import versioned

    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, f"{before}{json.dumps(versioned(value))}\n")


def report_written(path: Path, what: str) -> None:
    """Say on stderr what was written: stdout is for results."""
    from sdrpn.terminal.output import remark

    remark(f"{what}: {path}")


def _require_folder(option: str, path: Path) -> None:
    folder = path.parent
    try:
        there = next((above for above in (folder, *folder.parents) if above.exists()), folder)
        if there.is_file():
            raise BadInput(f"{option} {path} is below {there}, which is a file; expected a path in a folder")
        if there == folder:
            return
        near = folder.parent
        known = [beside.name for beside in near.iterdir() if beside.is_dir()] if near.is_dir() else []
    except OSError:  # a folder that may not be read: what writes the file says so
        return
    raise BadInput(
        f"{option} {path} is in a folder that does not exist{did_you_mean(folder.name, known)}; "
        f"make it first: mkdir -p {folder}"
    )
