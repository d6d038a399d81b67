"""Arguments that several verbs share, and requests made of them. Imports no library."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdrpn.bundle.shipped import DEMO_BUNDLE, DEMO_NAME, bundle_path, is_former_name
from sdrpn.errors import BadInput
from sdrpn.host.part import Part, part_from_text, part_of_launcher
from sdrpn.terminal.argument_types import AUTO, positive_int
from sdrpn.terminal.output import warn, warn_of_former_name

__all__ = [
    "BACKENDS",
    "BUNDLE_HELP",
    "GRAPH_BACKENDS",
    "add_fit_argument",
    "add_former_name",
    "add_shard_argument",
    "add_threads_argument",
    "bundle_folder",
    "changed",
    "filled",
    "take_part",
]

Request = TypeVar("Request")
# The names of sdrpn.runtime.backends.registry, which is not imported for --help.
GRAPH_BACKENDS = ("onnxruntime", "openvino", "onnxruntime-cuda")
BACKENDS = (AUTO, *GRAPH_BACKENDS, "tensorrt")
BUNDLE_HELP = f"folder that `sdrpn export` wrote, or {DEMO_NAME}: the small model that comes with this package"


def bundle_folder(text: str) -> Path:
    """A bundle's folder. `demo` is the shipped bundle, even if the working directory has a folder ./demo."""
    if is_former_name(text):
        warn_of_former_name(
            f"{text} is {DEMO_NAME} now; the old name goes with the next version (a folder of that name is ./{text})"
        )
        return DEMO_BUNDLE
    if text == DEMO_NAME and Path(text).is_dir():
        warn(f"{DEMO_NAME} is the model that comes with sdrpn; for the folder of that name here, write ./{text}")
    return bundle_path(text)


def filled(kind: type[Request], args: argparse.Namespace, **given: object) -> Request:
    """Make a request (a dataclass) from the arguments of the same names; `given` replaces some of them."""
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
    named = {field.name: getattr(args, field.name) for field in fields if hasattr(args, field.name)}
    return kind(**(named | given))


def changed(preset: Request, args: argparse.Namespace, **given: object) -> Request:
    """A preset (a dataclass) with the arguments of the same names, and with `given`; None is not given."""
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(preset)  # type: ignore[arg-type]
    asked = {field.name: getattr(args, field.name, None) for field in fields} | given
    changes = {name: value for name, value in asked.items() if value is not None}
    return dataclasses.replace(preset, **changes)  # type: ignore[type-var]


def add_shard_argument(group: argparse._ActionsContainer) -> None:
    """Which part of a job this process does."""
    group.add_argument(
        "--shard",
        metavar="I/N",
        type=_part,
        help="do part I of N: one of several processes, on any machines, that share --out; the last one combines the "
        "parts (default: as accelerate launch or torchrun say by RANK and WORLD_SIZE, else everything)",
    )


def take_part(args: argparse.Namespace) -> None:
    """Set `part` to that of --shard, else of the launcher that started this process, and `device` to its own.

    Raises BadInput.
    """
    args.part = args.shard if args.shard is not None else part_of_launcher(os.environ)
    args.device = args.part.device(args.device)


def _part(text: str) -> Part:
    try:
        return part_from_text(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_threads_argument(group: argparse._ActionsContainer) -> None:
    """With how many threads a verb computes on the CPU."""
    group.add_argument(
        "--threads",
        metavar="N",
        type=positive_int,
        help="CPU threads (default: one per free core; a single one for small models)",
    )


class _FormerName(argparse.Action):
    """Warn that an option has a new name, and set the same value."""

    def __init__(self, *args: Any, now: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._now = now

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """As argparse calls it where the option is given."""
        warn_of_former_name(f"{option_string} is {self._now} now; the old name goes with the next version")
        setattr(namespace, self.dest, values)


def add_former_name(group: argparse._ActionsContainer, former: str, now: str, *, choices: Sequence[str]) -> None:
    """Accept an option's name of the previous release; it is not shown in the help."""
    group.add_argument(
        former,
        action=_FormerName,
        now=now,
        dest=now.removeprefix("--").replace("-", "_"),
        default=argparse.SUPPRESS,
        choices=choices,
        help=argparse.SUPPRESS,
    )


def add_fit_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --fit, for verbs that take a checkpoint."""
    parser.add_argument(
        "--fit",
        choices=("pad", "crop"),
        default="pad",
        help="how pictures become squares: pad: with borders, as LLaVA's own code and SD-RPN's training do it; crop: "
        "the ends of the longer side are cut off, as transformers' processor of llava-hf checkpoints does it "
        "(default: pad)",
    )
