"""Files that an ONNX graph's weights lie in, found and renamed in its bytes: protocol buffers, read without a library.

ONNX Runtime refuses weights behind links that leave the graph's folder. A graph that names the real files instead, from
the root of the file system, is loaded as any other: the weights stay mapped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sdrpn.errors import BadBundle

__all__ = ["external_files", "graph_with_real_files", "with_files"]

# Of onnx.proto: for each kind of message the fields that hold messages which may lead to a tensor.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry
# Without this word no entry below names a file: most nodes of a graph need not be read.
_LOCATION = re.compile(rb"location")
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5
_DEEPEST = 32  # a graph in an attribute of a graph counts three

_Rename = Callable[[str], str]


def external_files(content: bytes) -> frozenset[str]:
    """The files that the weights of a model are read from, as it names them. Raises BadBundle for what is no model."""
    found: set[str] = set()

    def keep(name: str) -> str:
        found.add(name)
        return name

    with_files(content, keep)
    return frozenset(found)


def with_files(content: bytes, rename: _Rename) -> bytes:
    """The same model with other names of these files. Raises BadBundle for what is no model."""
    try:
        return _rewritten(memoryview(content), "model", rename, depth=0)
    except (IndexError, ValueError) as error:
        raise BadBundle(f"the graph is not an ONNX model ({error}); export the bundle again") from error


def graph_with_real_files(content: bytes, folder: Path) -> tuple[bytes, Path] | None:
    """For a graph whose weights' names are relative to `folder`.

    Returns: the graph with the files that links lead to, and the folder that their names are relative to; None where no
        link is in the way
    """
    real_folder = os.path.realpath(folder)
    names = external_files(content)
    if all(os.path.realpath(folder / name) == os.path.join(real_folder, name) for name in names):  # noqa: PTH118
        return None
    root = Path(real_folder).anchor
    return with_files(content, lambda name: os.path.relpath(os.path.realpath(folder / name), root)), Path(root)


def _rewritten(message: memoryview, kind: str, rename: _Rename, depth: int) -> bytes:
    if depth > _DEEPEST:
        raise ValueError("graphs are nested too deep")
    if kind == "entry":
        return _rewritten_entry(message, rename)
    below = _FIELDS[kind]
    pieces: list[bytes | memoryview] = []
    for number, wire_type, whole, payload in _fields(message):
        if number in below and wire_type == _COUNTED and _LOCATION.search(payload):
            pieces.append(_counted(number, _rewritten(payload, below[number], rename, depth + 1)))
        else:
            pieces.append(whole)
    return b"".join(pieces)


def _rewritten_entry(message: memoryview, rename: _Rename) -> bytes:
    """key and value: only that of `location` is a file."""
    entry = {number: bytes(payload) for number, wire_type, _, payload in _fields(message) if wire_type == _COUNTED}
    if entry.get(_KEY) != _LOCATION.pattern:
        return bytes(message)
    name = rename(entry.get(_VALUE, b"").decode("utf-8")).encode("utf-8")
    return _counted(_KEY, _LOCATION.pattern) + _counted(_VALUE, name)


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Number, wire type, all bytes and the value's own bytes of each field. Raises ValueError where one is cut."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            begin = at
            _, at = _read_varint(message, at)
        elif wire_type == _COUNTED:
            count, begin = _read_varint(message, at)
            at = begin + count
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            begin = at
            at += 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if at > len(message):
            raise ValueError("a field is cut")
        yield number, wire_type, message[start:at], message[begin:at]


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next byte is."""
    value = 0
    for place in range(10):
        if at + place >= len(message):
            raise ValueError("a number is cut")
        byte = message[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number is longer than 64 bits")


def _counted(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _COUNTED) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
