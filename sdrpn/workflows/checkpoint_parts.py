"""A checkpoint as it is named: its folder, and what is taken from elsewhere. Opens nothing before it is asked to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.host.hub import model_folder
from sdrpn.host.libraries import importing_extra

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.method.geometry import Fit

__all__ = ["CheckpointParts", "as_path"]


@dataclass(frozen=True)
class CheckpointParts:
    """What `sdrpn.checkpoint.open_checkpoint` opens, which explains each of these.

    path, vision_tower, base: folders; as a text also models of Hugging Face's hub
    rpn: an RPN of ours, folder or file
    projector: `mm_projector.bin` or its folder, in place of the checkpoint's own projector
    fit: how pictures become squares, "pad" or "crop"
    template: how questions are put, in place of the checkpoint's own way
    download: fetch what the local cache lacks of a model of the hub
    """

    path: Path | str
    vision_tower: Path | str | None = None
    rpn: Path | str | None = None
    base: Path | str | None = None
    projector: Path | str | None = None
    fit: Fit = "pad"
    template: str | None = None
    download: bool = False

    def found(self) -> CheckpointParts:
        """The same, with folders in place of names of the hub. Raises BadInput, as `model_folder` does."""

        def found(name: Path | str | None) -> Path | None:
            return None if name is None else model_folder(name, download=self.download)

        path = model_folder(self.path, download=self.download)
        return dataclasses.replace(self, path=path, vision_tower=found(self.vision_tower), base=found(self.base))

    def open(self) -> Checkpoint:
        """The checkpoint, to be closed again. Raises BadInput or BadCheckpoint, as `open_checkpoint` does."""
        from sdrpn.checkpoint import open_checkpoint

        parts = self.found()
        return open_checkpoint(
            parts.path,
            vision_tower=as_path(parts.vision_tower),
            rpn=as_path(parts.rpn),
            base=as_path(parts.base),
            projector=as_path(parts.projector),
            fit=parts.fit,
            template=parts.template,
        )

    def look(self, extra: str, purpose: str) -> None:
        """Open and close it, configs and headers alone: a refusal does not wait for what takes seconds to load.

        Args:
            extra, purpose: what needs to be installed, and for what, as in `importing_extra`
        """
        with importing_extra(extra, purpose):
            import sdrpn.checkpoint  # noqa: F401
        self.open().close()


def as_path(value: Path | str | None) -> Path | None:
    """A path that was given, perhaps as a text."""
    return None if value is None else Path(value)
