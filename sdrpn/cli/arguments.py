"""Types of command-line arguments that several verbs share: a bad value is a usage error that says what is expected."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sdrpn.bundle.shipped import DEFAULT_NAME, bundle_path
from sdrpn.terminal.output import warn

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
    "positive_int",
    "some_names",
    "whole_number",
]

Request = TypeVar("Request")
AUTO = "auto"
# The names of sdrpn.runtime.backends.registry, which is not imported for --help.
GRAPH_BACKENDS = ("onnxruntime", "onnxruntime-cuda")
BACKENDS = (AUTO, *GRAPH_BACKENDS, "tensorrt")
BUNDLE_HELP = f"folder that `sdrpn export` wrote, or {DEFAULT_NAME}: the small model that comes with this package"


def bundle_folder(text: str) -> Path:
    """A bundle's folder. `default` is the shipped one, also where a folder of that name is here: that is ./default."""
    if text == DEFAULT_NAME and Path(text).is_dir():
        warn(f"{DEFAULT_NAME} is the model that comes with sdrpn; for the folder of that name here, say ./{text}")
    return bundle_path(text)


def filled(kind: type[Request], args: argparse.Namespace, **given: object) -> Request:
    """A request (a dataclass) whose fields are the arguments of the same names, but for those that are given."""
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
    """Names with commas between them."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def context_lengths(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1 with commas between them, shortest first."""
    lengths = tuple(positive_int(part.strip()) for part in text.split(","))
    if len(set(lengths)) != len(lengths):
        raise argparse.ArgumentTypeError(f"{text!r} names a length twice")
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
        raise argparse.ArgumentTypeError(f"{text} is no device; expected a whole number of at least 0")
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


def add_fit_argument(parser: argparse.ArgumentParser) -> None:
    """How pictures become squares, for verbs that take a checkpoint."""
    parser.add_argument(
        "--fit",
        choices=("pad", "crop"),
        default="pad",
        help="how pictures become squares: pad: with borders, as LLaVA's own code and SD-RPN's training do it; crop: "
        "the ends of the longer side are cut off, as transformers' processor of llava-hf checkpoints does it "
        "(default: pad)",
    )
