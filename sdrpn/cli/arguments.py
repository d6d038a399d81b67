"""Argument types that several verbs share. A bad value is a usage error that says what is expected."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdrpn.bundle.shipped import DEMO_BUNDLE, DEMO_NAME, bundle_path, is_former_name
from sdrpn.terminal.output import warn, warn_of_former_name

__all__ = [
    "AUTO",
    "BUNDLE_HELP",
    "add_fit_argument",
    "add_threads_argument",
    "bundle_folder",
    "context_lengths",
    "device_number",
    "filled",
    "non_negative_number",
    "number_between",
    "number_or_auto",
    "port_number",
    "positive_int",
    "some_names",
    "whole_number",
]

Request = TypeVar("Request")
AUTO = "auto"
# The names of sdrpn.runtime.backends.registry, which is not imported for --help.
GRAPH_BACKENDS = ("onnxruntime", "onnxruntime-cuda")
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


def add_threads_argument(group: argparse._ActionsContainer) -> None:
    """With how many threads a verb computes on the CPU."""
    group.add_argument(
        "--threads",
        metavar="N",
        type=positive_int,
        help="CPU threads (default: one per free core; a single one for small models)",
    )


def some_names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def context_lengths(text: str) -> tuple[int, ...]:
    """Integers of at least 1, separated by commas, in ascending order."""
    lengths = tuple(positive_int(part.strip()) for part in text.split(","))
    if len(set(lengths)) != len(lengths):
        raise argparse.ArgumentTypeError(f"{text!r} lists a length twice")
    return tuple(sorted(lengths))


def whole_number(text: str) -> int:
    """Any whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def device_number(text: str) -> int:
    """The number of a GPU: a whole number of at least 0."""
    value = whole_number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a device number; expected an integer of at least 0")
    return value


def port_number(text: str) -> int:
    """A port to listen on; 0: any free one."""
    value = whole_number(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; expected an integer from 0 to 65535")
    return value


def non_negative_number(text: str) -> float:
    """A finite number of at least 0."""
    return number_between(0, math.inf)(text)


def number_between(low: float, high: float) -> Callable[[str], float]:
    """Finite numbers from `low` to `high`, both included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and low <= value <= high:
            return value
        expected = f"a number of at least {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")

    return parse


def number_or_auto(low: float, high: float) -> Callable[[str], float | str]:
    """Numbers as in `number_between`, or the word auto."""
    number = number_between(low, high)

    def parse(text: str) -> float | str:
        if text == AUTO:
            return AUTO
        try:
            return number(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or {AUTO}") from None

    return parse


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
