"""Copies of bundles and checkpoints, to be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["copied", "cut", "edit_json", "flip_byte"]


def copied(folder: Path, into: Path) -> Path:
    """A copy of `folder` below `into`."""
    return Path(shutil.copytree(folder, into / f"copy of {folder.name}"))


def flip_byte(path: Path, position: int = -1) -> None:
    """Change one byte and nothing else."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")
