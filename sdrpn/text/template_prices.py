"""What the operations of a template cost, in characters read and made. Knows the language, runs nothing.

A container costs what it would take written out, because that is what printing or comparing it takes, however often
its parts are shared. What multiplies (`*`, `**`, `join`, `replace`, the fields of a format) is priced by its result; a
method or a filter that is not known here by the product of its arguments, where a number counts as what it says.
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

OPERATION = 20  # what anything costs, in characters
ELEMENT = 8  # what an element of a container costs
MAX_NUMBER_BITS = 4096
_UNKNOWN_LENGTH = 1000  # of what a generator yields; its elements are paid for one by one
_LARGE = 10**9  # more than anybody can pay

# Whose work and result grow with what they are given, and not faster.
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
    """A template asked for more work than a prompt takes."""


class Meter:
    """What is left of one rendering's budget."""

    def __init__(self, budget: int) -> None:
        self._left = budget

    def pay(self, price: int) -> None:
        """Raises OverBudget where it cannot be paid."""
        self._left -= price + OPERATION
        if self._left < 0:
            raise OverBudget("it takes too many steps, or makes too much text")

    def size(self, *values: object) -> int:
        """Characters and elements of values, written out; gives up behind what is left of the budget."""
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
        return list(object.__getattribute__(value, "_Namespace__attrs").values())  # it shows nothing but these
    return ()


def price_of_filter(meter: Meter, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """What `args[0] | name(args[1:])` costs."""
    if name in _LINEAR_FILTERS or (name == "trim" and len(args) == 1):
        return meter.size(*args, *kwargs.values())
    if name == "replace" and len(args) == 3 and not kwargs:
        return _price_of_replace(meter, *args)
    if name == "join":
        return _price_of_join(meter, *args, *kwargs.values())
    if name == "format":
        return price_of_format(meter, args, kwargs)
    if name == "sum":  # of lists, each is copied again and again
        return meter.size(*args) ** (2 if len(args) > 2 or kwargs else 1)
    return _product(meter, args, kwargs)


def price_of_call(meter: Meter, name: str, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """What the method `name` of `owner` costs, or a function of the template's, whose owner is none of Python's."""
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
    """What `left operator right` costs."""
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
    """Of a generator nothing is known: its elements were paid for, and are few enough to be joined."""
    between = len(values) if hasattr(values, "__len__") else _UNKNOWN_LENGTH
    return meter.size(values, *others) + between * meter.size(*others)


def price_of_format(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Each field of the text may stand for all of the arguments; widths are refused instead of reckoned with."""
    text = str(args[0])
    if _WIDTH.search(text) or re.search(r"\{[^{}]*\{", text):
        raise OverBudget("it pads text to a width that is computed, or of four digits")
    fields = 1 + text.count("%") + text.count("{")
    return len(text) + fields * meter.size(*args[1:], *kwargs.values())


def _product(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Numbers count as what they say: they may be widths, counts or powers."""
    price = 1
    for value in (*args, *kwargs.values()):
        if isinstance(value, (int, float)):
            price *= 1 + (min(int(abs(value)), _LARGE) if math.isfinite(value) else _LARGE)
        else:
            price *= 1 + meter.size(value)
    return price


def require_small_number(value: Any) -> None:
    """Raises OverBudget for whole numbers of more digits than any prompt has use for."""
    if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
        raise OverBudget("it computes with numbers that are too large")
