"""Tables of text as a page in Markdown or HTML; cells are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdrpn.errors import BadInput
from sdrpn.host.escaping import markdown_cell

__all__ = ["PAGES", "Table", "page_text"]

PAGES = (".md", ".html")
_FAILED = "FAILED"  # a row with a cell that begins with this is highlighted


@dataclass(frozen=True)
class Table:
    """Named columns and rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()  # columns of numbers, aligned right
    digests: Sequence[str] = ()  # columns of digests, which may be broken anywhere

    @property
    def failed(self) -> list[bool]:
        """Whether each row is highlighted."""
        return [any(cell.startswith(_FAILED) for cell in cells) for cells in self.rows]

    def css_class(self, column: str) -> str:
        """The CSS class of a column's cells."""
        return "number" if column in self.right else "digest" if column in self.digests else ""


def page_text(path: Path, title: str, tables: Sequence[Table]) -> str:
    """The page in the format of the file's extension. Raises BadInput for other extensions."""
    if path.suffix not in PAGES:
        raise BadInput(f"{path} is not a report's file name; expected one that ends in {' or '.join(PAGES)}")
    shown = [table for table in tables if table.rows]
    return _markdown(title, shown) if path.suffix == ".md" else _html(title, shown)


def _markdown(title: str, tables: Sequence[Table]) -> str:
    lines = [f"# {markdown_cell(title)}"]
    for table in tables:
        rule = ["---:" if column in table.right else "---" for column in table.columns]
        lines += [*(["", f"## {table.title}"] if table.title else []), ""]
        lines += [_line(table.columns), _line(rule), *map(_line, table.rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"


def _html(title: str, tables: Sequence[Table]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(title=title, tables=tables)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #8884; }
.number { text-align: right; white-space: nowrap; } .failed { background: #e4575640; }
.digest { font: 12px monospace; word-break: break-all; }
</style>
<h1>{{ title }}</h1>
{% for table in tables %}
{% if table.title %}
<h2>{{ table.title }}</h2>
{% endif %}
<table><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for cells in table.rows %}
<tr{% if table.failed[loop.index0] %} class="failed"{% endif %}>
{%- for cell in cells %}{% set kind = table.css_class(table.columns[loop.index0]) %}
<td{% if kind %} class="{{ kind }}"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
</html>
"""
