"""What comes with the package: a small trained model as a bundle, under the name `default`. Loads nothing.

The word `default`, as text, means that bundle wherever a bundle is asked for; a folder of this name in the working
directory is `./default`. Nothing is ever written into the installed package.
"""

from __future__ import annotations

import os
from pathlib import Path

from sdrpn.errors import BadInput

__all__ = [
    "CHECKPOINT",
    "DEFAULT_BUNDLE",
    "DEFAULT_NAME",
    "RPN",
    "bundle_name",
    "bundle_path",
    "export_advice",
    "is_shipped",
    "require_not_shipped",
    "shipped_source",
]

DEFAULT_NAME = "default"
DEFAULT_BUNDLE = Path(__file__).parents[1] / "default"
# What it was exported from: in the repository, not in the installed package.
_REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = _REPOSITORY / "examples" / "tiny" / "checkpoint"
RPN = _REPOSITORY / "examples" / "default" / "rpn" / "rpn.safetensors"


def bundle_path(name: str | os.PathLike[str]) -> Path:
    """The folder of a bundle. Only the text `default` is a name: a Path, or `./default`, is always a folder."""
    return DEFAULT_BUNDLE if isinstance(name, str) and name == DEFAULT_NAME else Path(name)


def bundle_name(path: Path) -> str:
    """How a user names this bundle, the same on every machine for the shipped one."""
    return DEFAULT_NAME if is_shipped(path) else str(path)


def is_shipped(path: Path) -> bool:
    """Whether this folder is the shipped bundle, however it is reached."""
    return path.resolve() == DEFAULT_BUNDLE.resolve()


def require_not_shipped(path: Path, advice: str) -> None:
    """Raise BadInput where something would be written into the shipped bundle.

    Args:
        advice: what to do instead
    """
    if is_shipped(path):
        raise BadInput(
            f"{DEFAULT_NAME} is part of the installed package ({path}) and nothing is written there; {advice}"
        )


def export_advice(path: Path, options: str) -> str:
    """The command that adds a variant to this bundle, or makes one that has it."""
    out = "BUNDLE" if is_shipped(path) else path
    return f"sdrpn export CHECKPOINT --out {out} {options}"


def shipped_source() -> tuple[Path, Path]:
    """Checkpoint and RPN of the shipped bundle. Raises BadInput outside the repository."""
    if not (CHECKPOINT.is_dir() and RPN.is_file()):
        checkpoint, rpn = (path.relative_to(_REPOSITORY) for path in (CHECKPOINT, RPN))
        raise BadInput(
            f"the checkpoint of {DEFAULT_NAME} does not come with the installed package; get the repository and say "
            f"--checkpoint {checkpoint} --rpn {rpn}"
        )
    return CHECKPOINT, RPN
