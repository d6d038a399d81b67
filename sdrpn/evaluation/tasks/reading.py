"""Shared by the readers of data sets: entries of the right type, and reading of all rows."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence

from sdrpn.errors import BadInput
from sdrpn.evaluation.files import Row
from sdrpn.evaluation.sample import Sample

__all__ = ["OPTION_LETTERS", "SHORT_ANSWER", "entry", "given_options", "listed_texts", "read_rows", "text_list"]

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OPTION_LETTERS = "ABCD"


def entry(row: Row, *names: str) -> str:
    """The first of these entries, as text. Raises KeyError."""
    for name in names:
        value = row.get(name)
        if value is not None and value == value:  # a table's missing number is NaN
            return str(value)
    raise KeyError(names[0])


def given_options(row: Row) -> dict[str, str]:
    """The options of a question by letter, without empty ones."""
    values = {letter: row.get(letter) for letter in OPTION_LETTERS}
    return {
        letter: str(value) for letter, value in values.items() if value is not None and value == value and value != ""
    }


def text_list(value: object) -> tuple[str, ...]:
    """One text or a list of texts, as a tuple. Raises TypeError."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise TypeError(f"expected text or a list of texts, got {type(value).__name__}")


def listed_texts(value: object) -> tuple[str, ...]:
    """`text_list` for a cell that may contain a Python list as text, such as "['12', 'twelve']"."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            return text_list(ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return (value,)  # an answer in brackets
    return text_list(value)


def read_rows(where: object, rows: Iterable[object], read: Callable[[Row], Sample]) -> Sequence[Sample]:
    """One sample per row. Raises BadInput, which names the first bad row, and where there are no rows."""
    samples = []
    for number, row in enumerate(rows, start=1):
        try:
            if not isinstance(row, dict):
                raise TypeError(f"expected an object, got {type(row).__name__}")
            samples.append(read(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BadInput):
                raise
            lack = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            raise BadInput(f"{where}: question {number} {lack}; expected the official file") from error
    if not samples:
        raise BadInput(f"{where} holds no question; expected the official file")
    return samples
