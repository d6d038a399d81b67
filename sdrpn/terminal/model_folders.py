"""Model folders on the command line: hub names, and links. Imports no library."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdrpn.host.hub import model_folder
from sdrpn.host.links import allowing_links
from sdrpn.terminal.arguments import BUNDLE_HELP, bundle_folder

__all__ = ["add_bundle_argument", "add_model_options", "found_model_folders", "name_model_folders"]

# In the defaults of a verb's arguments: which of them are folders of models.
_NAMES = "model_folders"


def add_bundle_argument(parser: argparse.ArgumentParser, *others: str) -> None:
    """Declare the bundle of a verb. Args: others: further arguments that are folders of models"""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    name_model_folders(parser, "bundle", *others)


def name_model_folders(parser: argparse.ArgumentParser, *names: str) -> None:
    """Say which arguments are a bundle or a checkpoint."""
    parser.set_defaults(**{_NAMES: names})


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of such arguments, behind all others, for a verb that has some."""
    if not parser.get_default(_NAMES):
        return
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


@contextmanager
def found_model_folders(args: argparse.Namespace) -> Iterator[None]:
    """Replace hub names in `args` by folders, and allow the links that --allow-links names."""
    with allowing_links(getattr(args, "allow_links", ())):  # refuses what does not exist, before a download
        for name in getattr(args, _NAMES, ()):
            value = getattr(args, name)
            if value is not None and (found := model_folder(str(value), download=args.download)) != Path(value):
                setattr(args, name, found)
        yield
