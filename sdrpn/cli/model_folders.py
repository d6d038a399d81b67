"""Folders of models on the command line: names of the hub, and links. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdrpn.host.hub import model_folder
from sdrpn.host.links import allowing_links

__all__ = ["add_model_options", "found_model_folders"]


def add_model_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declare what goes for the arguments `names`, each of which is a bundle or a checkpoint."""
    group = parser.add_argument_group("folders of models")
    group.add_argument(
        "--download",
        action="store_true",
        help="where a folder is named like a model of Hugging Face's hub (ORGANISATION/MODEL, or "
        "ORGANISATION/MODEL@REVISION), fetch what the local cache lacks",
    )
    group.add_argument(
        "--allow-links",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="files may be links to below DIR, e.g. weights on another disk; those into the folder itself and into the "
        "blobs of its cache always may. Can be given several times",
    )
    parser.set_defaults(model_folders=names)


@contextmanager
def found_model_folders(args: argparse.Namespace) -> Iterator[None]:
    """Names of the hub become folders in `args`, and links are allowed as it says."""
    for name in getattr(args, "model_folders", ()):
        value = getattr(args, name)
        if value is not None and (found := model_folder(str(value), download=args.download)) != Path(value):
            setattr(args, name, found)
    with allowing_links(getattr(args, "allow_links", ())):
        yield
