"""The 4-bit matrices of a bundle in blocks of another size, made again from its checkpoint in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.bundle.bundle import Bundle, Variant, open_bundle
from sdrpn.errors import BadInput
from sdrpn.host.libraries import importing_extra
from sdrpn.workflows.checkpoint_parts import CheckpointParts, as_path

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint

__all__ = ["Reblocked", "reblocked", "same_checkpoint"]

# As much as other blocks may add to the error of the matrices. With normally distributed weights, 128 in place of 32
# add a quarter; weights among which some are far larger than others pay more.
_MOST_ADDED = 1.4


@dataclass(frozen=True)
class Reblocked:
    """What was asked for and done. Errors are root mean squares over those of the weights."""

    block: int
    own_block: int
    error: float
    own_error: float

    @property
    def done(self) -> bool:
        """Whether the matrices are in the blocks that were asked for."""
        return self.error <= _MOST_ADDED * self.own_error

    @property
    def text(self) -> str:
        """One line for people."""
        errors = f"{self.error:.2%} of the weights' spread off, {self.own_error:.2%} in blocks of {self.own_block}"
        if self.done:
            return f"4-bit matrices in blocks of {self.block}, made again from the checkpoint: {errors}"
        return f"4-bit matrices stay as exported: in blocks of {self.block} they would be {errors}"


@contextmanager
def reblocked(
    bundle: Bundle, variant: Variant, parts: CheckpointParts, block: int
) -> Iterator[tuple[Reblocked, Bundle]]:
    """What blocks of that size cost, and a bundle with them, which is there until the end; the same bundle where they
    cost too much.

    Raises: BadInput for a variant without such matrices, or with calibrated ones; for blocks that do not divide them;
        and for another checkpoint than the bundle's
    """
    own = _own_block(bundle, variant, block)
    with importing_extra("export", "sdrpn optimize --block"):
        from sdrpn.export import ExportOptions, export_bundle
        from sdrpn.export.block_error import block_errors

    options = ExportOptions.of_variant(variant, block)
    parts = parts.found()
    with same_checkpoint(bundle, parts) as source:
        error, own_error = block_errors(bundle.spec, (options, ExportOptions.of_variant(variant)), source)
    found = Reblocked(block, own, error, own_error)
    if not found.done or block == own:
        yield found, bundle
        return
    with tempfile.TemporaryDirectory(dir=bundle.path, prefix=".blocks-") as folder:
        out = Path(folder) / bundle.path.name
        rpn = bundle.spec.rpn
        export_bundle(
            Path(parts.path),
            out,
            options,
            rpn=as_path(parts.rpn),
            template=bundle.manifest.given_template,
            scheme="auto" if rpn is None else rpn.scheme,
        )
        yield found, open_bundle(out)


@contextmanager
def same_checkpoint(bundle: Bundle, parts: CheckpointParts) -> Iterator[Checkpoint]:
    """The checkpoint that a bundle was exported from, open. Raises: BadInput for another one"""
    with parts.open() as source:
        if source.digest() != bundle.manifest.source.get("sha256"):
            raise BadInput(
                f"{parts.path} is not what {bundle.path} was exported from; name that checkpoint, with its RPN if that "
                "is in a file of its own",
                options=("checkpoint", "rpn"),
            )
        yield source


def _own_block(bundle: Bundle, variant: Variant, block: int) -> int:
    """The blocks of its matrices. Raises BadInput where there are none to make again."""
    how = variant.quantization or {}
    if how.get("bits") != 4:
        raise BadInput(f"{variant.name} has no matrices in blocks of 4 bits; leave the blocks out", options=("block",))
    if how.get("calibration") is not None:
        raise BadInput(
            f"the codes of {variant.name} were calibrated; export {bundle.path} again in blocks of {block}",
            options=("block",),
        )
    return int(how["block"])
