"""Read JSON and JSON Lines as people have them: with a byte-order mark, with either line end, one list for many lines.

Lines end at a line feed alone: U+2028 and its like may stand inside a text. Knows nothing about what is in the files.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput

__all__ = ["differing_keys", "read_json", "read_json_object", "read_numbered_objects", "read_text", "text_encoding"]

# Mark -> the codec that drops it; that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_encoding(path: Path) -> str:
    """The encoding that a file's byte-order mark names; UTF-8 without one. Raises BadInput."""
    try:
        with path.open("rb") as file:
            return _encoding(file.read(4))
    except OSError as error:
        raise _unreadable(path, error) from error


def read_text(path: Path) -> str:
    """All of a file, without its byte-order mark. Raises BadInput."""
    try:
        content = path.read_bytes()
        return content.decode(_encoding(content[:4]))
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason}); expected JSON") from error


def read_json(path: Path) -> Any:
    """One document. Raises BadInput."""
    return _parsed(read_text(path), str(path), "download it again")


def read_json_object(path: Path, advice: str) -> dict[str, Any]:
    """A document that is an object, such as a stage writes about its work. Raises BadInput with `advice`."""
    value = _parsed(read_text(path), str(path), advice)
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds {type(value).__name__}; expected an object: {advice}")
    return value


def read_numbered_objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Objects with where each stands ("qa.jsonl line 3"), one a line, empty lines skipped, or of one list.

    Raises BadInput, which names the line or the entry.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return _objects(_entries(text, path))
    lines = enumerate(text.split("\n"), start=1)
    numbered = ((f"{path} line {number}", line) for number, line in lines if line.strip())
    return _objects((where, _parsed(line, where, "expected one object a line")) for where, line in numbered)


def differing_keys(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys whose values differ, by name; one that is missing counts as null."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _encoding(start: bytes) -> str:
    return next((codec for mark, codec in _MARKS.items() if start.startswith(mark)), "utf-8")


def _entries(text: str, path: Path) -> Iterable[tuple[str, Any]]:
    values = _parsed(text, str(path), "expected one object a line, or one list of objects")
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
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else _one_line(error)
        raise BadInput(f"{where} is not JSON ({reason}); {advice}") from error


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(f"{path} cannot be read ({error.strerror or _one_line(error)}); name a file that you may open")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
