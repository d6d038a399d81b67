"""Model folders on the command line: hub names, and links. Imports no library."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdrpn.host.hub import model_folder
from sdrpn.host.links import allowing_links

__all__ = ["add_model_options", "found_model_folders"]


def add_model_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declare the options of the arguments `names`, each of which is a bundle or a checkpoint."""
    group = parser.add_argument_group("folders of models")
    group.add_argument(
        "--download",
        action="store_true",
        help="download what the local cache lacks of a model that is given by its name on Hugging Face's hub "
        "(ORGANISATION/MODEL or ORGANISATION/MODEL@REVISION)",
    )
    group.add_argument(
        "--allow-links",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="allow symbolic links to files below DIR, e.g. weights on another disk; links within the folder and into "
        "the blobs of the hub's cache are always allowed. Can be given several times",
    )
    parser.set_defaults(model_folders=names)


@contextmanager
def found_model_folders(args: argparse.Namespace) -> Iterator[None]:
    """Replace hub names in `args` by folders, and allow the links that --allow-links names."""
    for name in getattr(args, "model_folders", ()):
        value = getattr(args, name)
        if value is not None and (found := model_folder(str(value), download=args.download)) != Path(value):
            setattr(args, name, found)
    with allowing_links(getattr(args, "allow_links", ())):
        yield
