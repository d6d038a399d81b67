"""Prices of the operations of a template, in characters read and written. Knows the language, runs nothing.

A container costs the length of its text form, because that is what printing or comparing it takes, however often its
parts are shared. Operations that multiply (`*`, `**`, `join`, `replace`, the fields of a format) are priced by their
result; methods and filters that are not listed by the product of their arguments, where a number counts as its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from jinja2.utils import Namespace

__all__ = [
    "Meter",
    "OverBudget",
    "price_of_call",
    "price_of_filter",
    "price_of_format",
    "price_of_operator",
    "require_small_number",
]

OPERATION = 20  # the price of any operation, in characters
ELEMENT = 8  # the price of an element of a container
MAX_NUMBER_BITS = 4096
_UNKNOWN_LENGTH = 1000  # assumed for a generator; its elements are paid for one by one
_LARGE = 10**9  # above any budget

# Operations whose work and result are linear in their input.
_LINEAR_METHODS = {
    *("capitalize", "casefold", "copy", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isascii"),
    *("isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "items", "keys", "lower"),
    *("lstrip", "partition", "removeprefix", "removesuffix", "rstrip", "split", "splitlines", "startswith", "strip"),
    *("swapcase", "title", "upper", "values"),
}
_LINEAR_FILTERS = {
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "filesizeformat", "first"),
    *("float", "forceescape", "groupby", "items", "last", "length", "list", "lower", "map", "max", "min", "random"),
    *("reject", "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "string", "title", "truncate"),
    *("unique", "upper", "urlencode", "wordcount", "xmlattr"),
}
_WIDTH = re.compile(r"\d{4,}|\*")


_CONTAINERS: tuple[type, ...] = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))


class OverBudget(Exception):
    """A template needs more work than any prompt should."""


class Meter:
    """The remaining budget of one rendering."""

    def __init__(self, budget: int) -> None:
        self._left = budget

    def pay(self, price: int) -> None:
        """Subtract a price. Raises OverBudget where it exceeds the remaining budget."""
        self._left -= price + OPERATION
        if self._left < 0:
            raise OverBudget("it takes too many steps, or makes too much text")

    def size(self, *values: object) -> int:
        """The size of values as text, in characters and elements; stops counting above the remaining budget."""
        total, pending = 0, list(values)
        while pending and total <= self._left:
            value = pending.pop()
            if isinstance(value, (str, bytes, range)):
                total += len(value)
            else:
                total += ELEMENT
                pending.extend(_parts(value))
        return total


def _parts(value: Any) -> Iterable[object]:
    kind = type(value)
    if kind is dict:
        return [*value.keys(), *value.values()]
    if kind in _CONTAINERS:
        return list(value)
    if issubclass(kind, Namespace):
        return list(object.__getattribute__(value, "_Namespace__attrs").values())  # all that it shows
    return ()


def price_of_filter(meter: Meter, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The price of `args[0] | name(args[1:])`."""
    if name in _LINEAR_FILTERS or (name == "trim" and len(args) == 1):
        return meter.size(*args, *kwargs.values())
    if name == "replace" and len(args) == 3 and not kwargs:
        return _price_of_replace(meter, *args)
    if name == "join":
        return _price_of_join(meter, *args, *kwargs.values())
    if name == "format":
        return price_of_format(meter, args, kwargs)
    if name == "sum":  # a sum of lists copies each of them repeatedly
        return meter.size(*args) ** (2 if len(args) > 2 or kwargs else 1)
    return _product(meter, args, kwargs)


def price_of_call(meter: Meter, name: str, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The price of the method `name` of `owner`, or of a template's function, whose owner is not a Python value."""
    if not isinstance(owner, (str, bytes, int, float, list, tuple, dict)):  # macros, loops, functions of templates
        return meter.size(*args, *kwargs.values())
    if name in _LINEAR_METHODS and not (name in ("strip", "lstrip", "rstrip") and args):
        return meter.size(owner, *args, *kwargs.values())
    if name == "replace" and len(args) == 2:
        return _price_of_replace(meter, owner, *args)
    if name == "join":
        return _price_of_join(meter, *args, owner)
    return _product(meter, (owner, *args), kwargs)


def price_of_operator(meter: Meter, operator: str, left: Any, right: Any) -> int:
    """The price of `left operator right`."""
    if operator == "%" and isinstance(left, (str, bytes)):
        return price_of_format(meter, (left, right), {})
    if operator == "*" and not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
        return _product(meter, (left, right), {})
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and whole and left.bit_length() * abs(right) > MAX_NUMBER_BITS:
        raise OverBudget("it computes with numbers that are too large")
    return meter.size(left, right)


def _price_of_replace(meter: Meter, text: Any, old: Any, new: Any) -> int:
    found = text.count(old) if isinstance(text, str) and isinstance(old, str) else meter.size(text)
    return meter.size(text, old) + found * meter.size(new)


def _price_of_join(meter: Meter, values: Any = (), *others: Any) -> int:
    """The price of a join. A generator costs nothing more: its elements were paid for, so they are few enough."""
    between = len(values) if hasattr(values, "__len__") else _UNKNOWN_LENGTH
    return meter.size(values, *others) + between * meter.size(*others)


def price_of_format(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The price of a format: each field may stand for all arguments. Widths are refused rather than priced."""
    text = str(args[0])
    if _WIDTH.search(text) or re.search(r"\{[^{}]*\{", text):
        raise OverBudget("it pads text to a width that is computed, or of four digits")
    fields = 1 + text.count("%") + text.count("{")
    return len(text) + fields * meter.size(*args[1:], *kwargs.values())


def _product(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The product of all sizes. Numbers count as their value: they may be widths, counts or powers."""
    price = 1
    for value in (*args, *kwargs.values()):
        if isinstance(value, (int, float)):
            price *= 1 + (min(int(abs(value)), _LARGE) if math.isfinite(value) else _LARGE)
        else:
            price *= 1 + meter.size(value)
    return price


def require_small_number(value: Any) -> None:
    """Raises OverBudget for integers with more digits than any prompt needs."""
    if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
        raise OverBudget("it computes with numbers that are too large")
