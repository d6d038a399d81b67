"""What a verb prints: results to stdout, as tables for people or JSON for machines; warnings to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sdrpn.host.escaping import json_text, one_line, terminal_text
from sdrpn.reports.text import Text

__all__ = [
    "FORMAT_VERSION",
    "begin_output",
    "has_printed",
    "print_document",
    "print_json",
    "print_json_line",
    "print_piece",
    "print_report",
    "print_table",
    "print_text",
    "remark",
    "versioned",
    "warn",
    "warn_of_former_name",
]

# Of the JSON of every verb. Entries are added without a new version; one that goes or changes its meaning needs one.
FORMAT_VERSION = 1

_printed = False


def has_printed() -> bool:
    """Whether this command line wrote anything to stdout."""
    return _printed


def begin_output() -> None:
    """A new command line begins."""
    _mark_printed(False)


def _mark_printed(printed: bool = True) -> None:
    global _printed
    _printed = printed


def print_document(document: str) -> None:
    """Print a file's worth of text, whose author already made it safe to read, as it is."""
    _mark_printed()
    sys.stdout.write(document)


def versioned(value: object) -> dict[str, object]:
    """A dataclass or mapping as a JSON object whose first entry is `format_version`: its own, or FORMAT_VERSION.

    Raises: TypeError for anything else, such as a list, which has no room for a version
    """
    entries = value if isinstance(value, Mapping) else _plain(value)
    if not isinstance(entries, Mapping):
        raise TypeError(f"the JSON of a verb is an object; got {type(value).__name__}")
    return {"format_version": FORMAT_VERSION, **entries}


def print_json(value: object) -> None:
    """Print one JSON object; see `versioned`. Dataclasses become objects and paths strings; NaN is refused.

    Raises: TypeError or ValueError for values that JSON cannot express
    """
    # In an encoding that cannot write it, a character is escaped the JSON way.
    escape = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    document = json.dumps(versioned(value), indent=2, ensure_ascii=escape, allow_nan=False, default=_plain)
    print_document(f"{json_text(document)}\n")


def print_json_line(value: object) -> None:
    """Print one object as one line of JSON, with its version, and flush: the reader may wait for it. As
    `print_json`."""
    escape = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    line = json.dumps(versioned(value), ensure_ascii=escape, allow_nan=False, default=_plain)
    print_document(f"{json_text(line)}\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows of text under column names, where there are any; cells are never read as markup.

    Into a pipe or a file every row is one line, however long, for grep and cut.
    """
    if sys.stdout.isatty():
        _print_rich_table(columns, rows, title)
    else:
        if title is not None:
            print_text(title)
        _print_aligned([columns, *rows] if any(columns) else list(rows))


def print_report(report: Text) -> None:
    """Print lines and tables, one after the other."""
    for part in report:
        if isinstance(part, str):
            print_text(part)
        else:
            print_table(part.columns, part.rows, title=part.title or None)


def print_text(text: str) -> None:
    """Print one piece of text and a line end."""
    print_document(f"{terminal_text(text)}\n")


def print_piece(text: str) -> None:
    """Print the next part of a text that is still being made."""
    print_document(terminal_text(text))
    sys.stdout.flush()


def warn(message: str) -> None:
    """Tell the user, on stderr and in one line, something that does not stop the work."""
    remark(f"warning: {message}")


def warn_of_former_name(message: str) -> None:
    """As `warn`, to a person at a terminal: a script that uses a former name still gets at most one line of error."""
    if sys.stderr.isatty():
        warn(message)


def remark(message: str) -> None:
    """Tell the user, on stderr and in one line, what else was done, such as a file that was written."""
    sys.stderr.write(f"sdrpn: {one_line(message)}\n")
    sys.stderr.flush()


def _print_rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", show_header=any(columns))
    table.title = None if title is None else Text(terminal_text(title), style="bold")
    for column in columns:
        table.add_column(Text(column, style="bold"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(terminal_text(cell)) for cell in row))
    _mark_printed()
    Console(file=sys.stdout, highlight=False).print(table)


def _print_aligned(rows: Sequence[Sequence[str]]) -> None:
    shown = [[terminal_text(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*shown, strict=True)]
    for row in shown:
        print_text("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
