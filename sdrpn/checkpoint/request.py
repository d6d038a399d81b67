"""What is opened as one checkpoint: its folder, and what is taken from elsewhere. Knows no layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sdrpn.checkpoint.adapter import ADAPTER_CONFIG_NAME
from sdrpn.checkpoint.model_file import require_model_file
from sdrpn.checkpoint.rpn_file import RPN_CONFIG_NAME, RpnFile, read_rpn
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.host.links import AllowLinks
from sdrpn.method.geometry import Fit
from sdrpn.method.spec import AskedScheme

__all__ = [
    "CheckpointRequest",
    "config_files",
    "has_tokenizer",
    "require_checkpoint_folder",
    "require_tokenizer_files",
    "rpn_file_of",
    "text_folders",
]

_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model")
# The files besides the weights that determine the export.
_CONFIG_NAMES = (
    "config.json",
    ADAPTER_CONFIG_NAME,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class CheckpointRequest:
    """See `sdrpn.checkpoint.open_checkpoint`; all are folders or files on this machine."""

    folder: Path
    vision_tower: Path | None = None
    rpn: Path | None = None
    base: Path | None = None
    projector: Path | None = None
    allow_links: AllowLinks = ()
    fit: Fit = "pad"
    template: str | None = None
    scheme: AskedScheme = "auto"

    @property
    def places(self) -> tuple[Path | None, ...]:
        """Everything that was named."""
        return self.folder, self.base, self.vision_tower, self.rpn, self.projector

    def require_without(self, *names: str) -> None:
        """Raise BadInput where something is put beside a checkpoint whose family has no place for it."""
        named = [name for name in names if getattr(self, name) is not None]
        if named:
            raise BadInput(
                f"{self.folder} is a whole model of its own family, which has no place for {named[0]}; leave it out",
                options=named[:1],
            )


def text_folders(folder: Path, base: Path | None) -> list[Path]:
    """Folders to search for the template and special tokens: the folder whose tokenizer is used comes first."""
    folders = [folder] if base is None else [folder, base]
    return sorted(folders, key=lambda path: not has_tokenizer(path))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a file that a tokenizer can be read from."""
    return any((folder / name).is_file() for name in _TOKENIZER_NAMES)


def require_tokenizer_files(*folders: Path | None) -> None:
    """Raise for a tokenizer file that cannot be read, such as a pipe or a git-lfs pointer: it is not merely missing."""
    for folder in folders:
        present = [folder / name for name in _TOKENIZER_NAMES] if folder is not None else []
        for path in filter(os.path.lexists, present):
            require_model_file(path)


def config_files(*folders: Path | None) -> tuple[Path, ...]:
    """The files besides the weights that determine the export."""
    paths = [Path(folder) / name for folder in folders if folder is not None for name in _CONFIG_NAMES]
    return tuple(path for path in paths if path.is_file())


def require_checkpoint_folder(folder: Path) -> None:
    """Raise BadCheckpoint for a folder without a config."""
    if not folder.is_dir():
        raise BadCheckpoint(f"{folder} is not a folder; expected a checkpoint's folder, with config.json and weights")
    if (folder / "config.json").is_file():
        return
    if (folder / RPN_CONFIG_NAME).is_file():
        raise BadCheckpoint(
            f"{folder} holds only an RPN; open its base checkpoint and give this folder as its RPN", options=("rpn",)
        )
    raise BadCheckpoint(f"{folder} has no config.json; expected a checkpoint's folder")


def rpn_file_of(folder: Path, given: Path | None) -> RpnFile | None:
    """The RPN that was named, or the one beside a checkpoint's weights. Raises BadCheckpoint."""
    if given is not None:
        return read_rpn(Path(given))
    return read_rpn(folder) if (folder / RPN_CONFIG_NAME).is_file() else None
