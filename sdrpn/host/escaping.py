"""Escape untrusted text for where it is shown: terminals, JSON, CSV, Markdown. HTML has `html.escape`.

Names of files, manifests and answers may contain characters that control a terminal: escape sequences move the cursor
and set titles, bidirectional overrides reverse a name. Knows nothing about what is printed.
"""

from __future__ import annotations

import re

__all__ = ["csv_cell", "json_text", "markdown_cell", "one_line", "terminal_text"]

# C0, DEL and C1; marks, overrides and isolates of writing directions; Unicode's own line and paragraph ends.
_OBEYED = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[{_OBEYED}]")
_CONTROL_BUT_LAYOUT = re.compile(f"(?![\\n\\t])[{_OBEYED}]")
# What a spreadsheet reads as the start of a formula, also after spaces.
_FORMULA = re.compile(r"\s*[=+\-@|%\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# Markdown characters that begin markup inside a line. An underscore inside a word does not.
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def terminal_text(text: str) -> str:
    """Escape control characters as Python does, `\\x1b`, `\\u202e`; newlines and tabs are kept."""
    return _CONTROL_BUT_LAYOUT.sub(_python_escape, text)


def one_line(text: object) -> str:
    """Text as one line for a terminal: any white space becomes one space, other control characters are escaped."""
    return terminal_text(" ".join(str(text).split()))


def json_text(document: str) -> str:
    """A JSON document with all control characters in its strings escaped: the same values, other spelling."""
    return _CONTROL_BUT_LAYOUT.sub(lambda found: f"\\u{ord(found.group()):04x}", document)


def csv_cell(text: str) -> str:
    """A cell that a spreadsheet shows as text: an apostrophe is put before anything that looks like a formula.

    Numbers are unchanged, also with a sign.
    """
    shown = _CONTROL.sub(_python_escape, text)
    formula = _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None
    return f"'{shown}" if formula else shown


def markdown_cell(text: object) -> str:
    """Text for a line or a table cell of Markdown: markup and HTML are escaped, newlines removed."""
    marked = _MARKUP.sub(lambda found: f"\\{found.group()}", one_line(text))
    return re.sub("[&<>]", lambda found: _HTML[found.group()], marked)


def _python_escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
