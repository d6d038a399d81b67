"""A look at a checkpoint before libraries are loaded that take seconds: a refusal does not wait for them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sdrpn.host.libraries import importing_extra

if TYPE_CHECKING:
    from sdrpn.method.geometry import Fit

__all__ = ["look_at_checkpoint"]


def look_at_checkpoint(
    args: argparse.Namespace, extra: str, *, fit: Fit | None = None, template: str | None = None
) -> None:
    """Open the checkpoint of `args` as its verb is going to, configs and headers alone, and close it.

    Args:
        extra: what the verb needs installed
        fit: in place of the option --fit
        template: as given by the user, or by what is there already

    Raises: BadInput or BadCheckpoint, as `open_checkpoint` does; MissingDependency
    """
    with importing_extra(extra, f"sdrpn {args.verb}"):
        from sdrpn.checkpoint import open_checkpoint

    rpn = getattr(args, "rpn", None)
    open_checkpoint(
        args.checkpoint,
        vision_tower=args.vision_tower,
        rpn=rpn,
        base=args.base,
        projector=args.projector,
        fit=fit or getattr(args, "fit", None) or "pad",
        template=template,
    ).close()
