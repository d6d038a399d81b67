"""A checkpoint by its folder and the parts taken from elsewhere. Opens nothing by itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.host.field_types import CheckedFields
from sdrpn.host.hub import model_folder
from sdrpn.host.libraries import importing_extra

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.method.geometry import Fit
    from sdrpn.method.spec import AskedScheme

__all__ = ["CheckpointParts", "as_path"]


@dataclass(frozen=True)
class CheckpointParts(CheckedFields):
    """The arguments of `sdrpn.checkpoint.open_checkpoint`, which explains each of them.

    path, vision_tower, base: folders; a str can also name a model on Hugging Face's hub
    rpn: an RPN that `train_rpn` wrote, folder or file
    projector: `mm_projector.bin` or its folder, instead of the checkpoint's projector
    fit: how pictures become squares, "pad" or "crop"
    template: prompt template, instead of the checkpoint's own
    scheme: of the RPN: "auto", "sd-rpn" or "q-zoom"
    download: download what the local cache lacks of a model on the hub
    """

    path: Path | str
    vision_tower: Path | str | None = None
    rpn: Path | str | None = None
    base: Path | str | None = None
    projector: Path | str | None = None
    fit: Fit = "pad"
    template: str | None = None
    download: bool = False
    scheme: AskedScheme = "auto"

    def found(self) -> CheckpointParts:
        """The same, with hub names replaced by folders. Raises BadInput, as `model_folder` does."""

        def found(name: Path | str | None) -> Path | None:
            return None if name is None else model_folder(name, download=self.download)

        path = model_folder(self.path, download=self.download)
        return dataclasses.replace(self, path=path, vision_tower=found(self.vision_tower), base=found(self.base))

    def open(self) -> Checkpoint:
        """Open the checkpoint; the caller closes it. Raises BadInput or BadCheckpoint, as `open_checkpoint` does."""
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
            scheme=parts.scheme,
        )

    def look(self, extra: str, purpose: str) -> None:
        """Open and close it, reading configs and headers only, so that errors come before slow imports.

        Args:
            extra, purpose: the extra that must be installed, and what for, as in `importing_extra`
        """
        with importing_extra(extra, purpose):
            import sdrpn.checkpoint  # noqa: F401
        self.open().close()


def as_path(value: Path | str | None) -> Path | None:
    """The Path of a path or text; None stays None."""
    return None if value is None else Path(value)
