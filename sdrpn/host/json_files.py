"""Read JSON and JSON Lines leniently: with a byte-order mark, with LF or CRLF, as a list instead of lines.

Only a line feed ends a line: U+2028 and the like may occur inside a text. Knows nothing about the content.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput

__all__ = ["differing_keys", "read_json", "read_json_object", "read_numbered_objects", "read_text", "text_encoding"]

# Byte-order mark -> the codec that drops it; that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_encoding(path: Path) -> str:
    """The encoding indicated by a file's byte-order mark; UTF-8 without one. Raises BadInput."""
    try:
        with path.open("rb") as file:
            return _encoding(file.read(4))
    except OSError as error:
        raise _unreadable(path, error) from error


def read_text(path: Path) -> str:
    """The text of a file, without its byte-order mark. Raises BadInput."""
    try:
        content = path.read_bytes()
        return content.decode(_encoding(content[:4]))
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason}); expected JSON") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises BadInput."""
    return _parsed(read_text(path), str(path), "download it again")


def read_json_object(path: Path, advice: str) -> dict[str, Any]:
    """The object of a JSON file, e.g. one that a stage wrote about its work. Raises BadInput with `advice`."""
    value = _parsed(read_text(path), str(path), advice)
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds {type(value).__name__}; expected an object: {advice}")
    return value


def read_numbered_objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Objects and their places ("qa.jsonl line 3"), one per line, skipping empty lines, or from one list.

    Raises BadInput, which names the line or the entry.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return _objects(_entries(text, path))
    lines = enumerate(text.split("\n"), start=1)
    numbered = ((f"{path} line {number}", line) for number, line in lines if line.strip())
    return _objects((where, _parsed(line, where, "expected one object per line")) for where, line in numbered)


def differing_keys(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The keys whose values differ, sorted; a missing key counts as null."""
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _encoding(start: bytes) -> str:
    return next((codec for mark, codec in _MARKS.items() if start.startswith(mark)), "utf-8")


def _entries(text: str, path: Path) -> Iterable[tuple[str, Any]]:
    values = _parsed(text, str(path), "expected one object per line, or one list of objects")
    return [(f"{path} entry {number}", value) for number, value in enumerate(values, start=1)]


def _objects(numbered: Iterable[tuple[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for where, value in numbered:
        if not isinstance(value, dict):
            raise BadInput(f"{where} is {type(value).__name__}; expected an object")
        found.append((where, value))
    return found


def _parsed(text: str, where: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for a number with thousands of digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else _one_line(error)
        raise BadInput(f"{where} is not JSON ({reason}); {advice}") from error


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(f"{path} cannot be read ({error.strerror or _one_line(error)}); name a file that you can read")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
