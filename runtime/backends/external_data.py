"""Find and rename the files of an ONNX graph's external weights in its bytes: protocol buffers without a library.

ONNX Runtime refuses weights in symbolic links that leave the graph's folder. A graph that names the real files instead,
by absolute path, is loaded normally, with mapped weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sdrpn.errors import BadBundle

__all__ = ["external_files", "graph_with_real_files", "require_files", "with_files"]

# From onnx.proto: for each kind of message, the fields with messages that may contain a tensor.
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
# Libraries take the offset of a file with such a name as an address of this process.
_IN_MEMORY = "_ORT_MEM_ADDR_"
# Without this word no entry below names a file: most nodes of a graph need not be read.
_LOCATION = re.compile(rb"location")
_VARINT, _EIGHT_BYTES, _COUNTED, _FOUR_BYTES = 0, 1, 2, 5
_DEEPEST = 32  # a subgraph in an attribute adds three levels

_Rename = Callable[[str], str]


def external_files(content: bytes) -> frozenset[str]:
    """The names of a model's external weight files. Raises BadBundle for bytes that are not a model."""
    found: set[str] = set()

    def keep(name: str) -> str:
        found.add(name)
        return name

    with_files(content, keep)
    return frozenset(found)


def require_files(path: Path, content: bytes, weights: Sequence[str], library: str) -> None:
    """Check that a graph takes its weights from listed files only, and not from addresses in memory.

    Args:
        weights: the only files that they may be in: those that were verified
        library: what is to load the graph, for messages
    Raises: BadBundle
    """
    try:
        names = external_files(content)
    except BadBundle as error:
        raise BadBundle(f"{library} cannot load {path}: {error}") from error
    if any(_IN_MEMORY in name for name in names):  # even where a file of that name is listed
        raise BadBundle(
            f"{path} takes weights from an address in memory ({_IN_MEMORY}), not from a file; export the bundle again"
        )
    others = sorted(names - {*weights})
    if others:
        raise BadBundle(
            f"{path} takes weights from {others[0]!r}, which is not listed as a file of this graph; export the bundle "
            "again"
        )


def with_files(content: bytes, rename: _Rename) -> bytes:
    """The model with renamed weight files. Raises BadBundle for bytes that are not a model."""
    try:
        return _rewritten(memoryview(content), "model", rename, depth=0)
    except (IndexError, ValueError) as error:
        raise BadBundle(f"the graph is not an ONNX model ({error}); export the bundle again") from error


def graph_with_real_files(content: bytes, folder: Path) -> tuple[bytes, Path] | None:
    """Replace links by real files in a graph whose weight names are relative to `folder`.

    Returns: the graph with the names of the real files, and the folder that these are relative to; None where no file
        is a link
    """
    real_folder = os.path.realpath(folder)
    names = external_files(content)
    if all(os.path.realpath(folder / name) == os.path.join(real_folder, name) for name in names):  # noqa: PTH118
        return None
    root = os.path.commonpath([real_folder, *(os.path.dirname(os.path.realpath(folder / name)) for name in names)])  # noqa: PTH120
    return with_files(content, lambda name: os.path.relpath(os.path.realpath(folder / name), root)), Path(root)


def _rewritten(message: memoryview, kind: str, rename: _Rename, depth: int) -> bytes:
    if depth > _DEEPEST:
        raise ValueError("graphs are nested too deeply")
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
    """A key and value entry: only the value of `location` is a file name."""
    entry = {number: bytes(payload) for number, wire_type, _, payload in _fields(message) if wire_type == _COUNTED}
    if entry.get(_KEY) != _LOCATION.pattern:
        return bytes(message)
    name = rename(entry.get(_VALUE, b"").decode("utf-8")).encode("utf-8")
    return _counted(_KEY, _LOCATION.pattern) + _counted(_VALUE, name)


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Number, wire type, all bytes and the value's own bytes of each field. Raises ValueError for a truncated field."""
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
            raise ValueError("a field is truncated")
        yield number, wire_type, message[start:at], message[begin:at]


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next byte is."""
    value = 0
    for place in range(10):
        if at + place >= len(message):
            raise ValueError("a number is truncated")
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
