"""Types of arguments: from a text to names and numbers. A bad value is a usage error that says what is expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

__all__ = [
    "AUTO",
    "byte_count",
    "context_lengths",
    "device_number",
    "device_number_or_name",
    "names",
    "non_negative_number",
    "number_between",
    "number_or_auto",
    "port_number",
    "positive_int",
    "some_names",
    "whole_number",
]

AUTO = "auto"


def some_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, or none: who takes them knows what to say of that."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def names(text: str) -> tuple[str, ...]:
    """One name or more, separated by commas."""
    found = some_names(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; expected names with commas between them")
    return found


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


def device_number_or_name(text: str) -> int | str:
    """The number of a GPU, or a device's name, which has a letter in it."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "the device is empty (got ''); expected the number of a GPU, or a device's name"
        )
    return text if any(character.isalpha() for character in text) else device_number(text)


def byte_count(text: str) -> int:
    """A number of bytes: a whole number of at least 0."""
    value = whole_number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of bytes; expected at least 0")
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
