"""What a verb prints: results to stdout, as tables for people or JSON for machines; warnings to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["print_json", "print_table", "print_text", "warn"]


def print_json(value: object) -> None:
    """Print one JSON document. Dataclasses become objects and paths strings; NaN and infinity are refused.

    Raises: TypeError or ValueError for what JSON cannot say
    """
    # In an encoding that cannot write it, a character is escaped the JSON way.
    escape = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print_text(json.dumps(value, indent=2, ensure_ascii=escape, allow_nan=False, default=_plain))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows of text under column names; cells are never read as markup.

    Into a pipe or a file every row is one line, however long, for grep and cut.
    """
    if sys.stdout.isatty():
        _print_rich_table(columns, rows, title)
    else:
        if title is not None:
            print_text(title)
        _print_aligned([columns, *rows])


def print_text(text: str) -> None:
    """Print one piece of text and a line end."""
    sys.stdout.write(f"{text}\n")


def warn(message: str) -> None:
    """Tell the user, on stderr and in one line, something that does not stop the work."""
    sys.stderr.write(f"sdrpn: warning: {' '.join(message.split())}\n")


def _print_rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = None if title is None else Text(title, style="bold")
    for column in columns:
        table.add_column(Text(column, style="bold"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)


def _print_aligned(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print_text("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
