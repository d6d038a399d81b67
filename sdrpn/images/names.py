"""Names of pictures in a folder, as files of questions, labels and data sets give them. Knows no file formats."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

__all__ = ["leads_out"]


def leads_out(name: str) -> bool:
    """Whether a POSIX or Windows name points outside the folder that it should lie in."""
    path, on_windows = PurePosixPath(name), PureWindowsPath(name)
    return path.is_absolute() or bool(on_windows.anchor) or ".." in path.parts or ".." in on_windows.parts
