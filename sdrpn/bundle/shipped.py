"""The bundle that ships with the package: a small trained model under the name `demo`. Loads nothing.

The text `demo` means that bundle wherever a bundle is expected; a folder of this name in the working directory is
`./demo`. Nothing is ever written into the installed package.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from sdrpn.errors import BadInput

__all__ = [
    "CHECKPOINT",
    "DEMO_BUNDLE",
    "DEMO_NAME",
    "RPN",
    "bundle_name",
    "bundle_path",
    "bundle_title",
    "export_advice",
    "is_former_name",
    "is_shipped",
    "is_shipped_name",
    "require_name",
    "require_not_shipped",
    "shipped_source",
]

DEMO_NAME = "demo"
DEMO_BUNDLE = Path(__file__).parents[1] / "default"
# The name of the release before, which is accepted for one version.
_FORMER_NAME = "default"
# The sources of the export: in the repository, not in the installed package.
_REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = _REPOSITORY / "examples" / "tiny" / "checkpoint"
RPN = _REPOSITORY / "examples" / "demo" / "rpn" / "rpn.safetensors"


def is_former_name(name: str | os.PathLike[str]) -> bool:
    """Whether this is what the shipped bundle was called in the release before."""
    return isinstance(name, str) and name == _FORMER_NAME


def is_shipped_name(name: str | os.PathLike[str]) -> bool:
    """Whether this text names the shipped bundle. A Path, or `./demo`, is always a folder."""
    return isinstance(name, str) and name in (DEMO_NAME, _FORMER_NAME)


def require_name(name: object) -> None:
    """Raise BadInput for what can name no bundle."""
    if not isinstance(name, (str, os.PathLike)):
        raise BadInput(f"a bundle is {name!r}; expected the path of its folder, or {DEMO_NAME!r}")


def bundle_path(name: str | os.PathLike[str]) -> Path:
    """The folder of a bundle; see `is_shipped_name`. Warns where the shipped bundle's former name is used.

    Raises: BadInput for what can name no bundle
    """
    require_name(name)
    if is_former_name(name):
        warnings.warn(
            f"{_FORMER_NAME} is {DEMO_NAME} now; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
    return DEMO_BUNDLE if is_shipped_name(name) else Path(name)


def bundle_name(path: Path) -> str:
    """How a user names this bundle; for the shipped one the same on every machine."""
    return DEMO_NAME if is_shipped(path) else str(path)


def bundle_title(path: Path) -> str:
    """A bundle's name in tables and reports: without the place of its folder."""
    return DEMO_NAME if is_shipped(path) else path.name


def is_shipped(path: Path) -> bool:
    """Whether this folder is the shipped bundle, however it is reached."""
    return path.resolve() == DEMO_BUNDLE.resolve()


def require_not_shipped(path: Path, advice: str, options: tuple[str, ...] = ()) -> None:
    """Raise BadInput where something would be written into the shipped bundle.

    Args:
        advice: what to do instead
        options: the arguments for it, as in `SdrpnError`
    """
    if is_shipped(path):
        raise BadInput(
            f"{DEMO_NAME} is part of the installed package ({path}) and nothing is written there; {advice}",
            options=options,
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
            f"the checkpoint of {DEMO_NAME} does not ship with the installed package; get the repository and name both",
            options=(f"checkpoint {checkpoint}", f"rpn {rpn}"),
        )
    return CHECKPOINT, RPN
