"""The safetensors format, one tensor at a time. Knows nothing about models.

The safetensors library maps the whole file while it is open, and writes only from a complete dict. A 7B checkpoint is
13 GB: here every array maps only its own bytes, and the writer streams.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.model_file import MAX_JSON_BYTES, parsed_json, require_model_file, short
from sdrpn.checkpoint.stored_tensor import OPAQUE, StoredTensor, stored_tensor
from sdrpn.errors import BadCheckpoint

__all__ = ["SafetensorsReader", "SafetensorsWriter"]

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# The library accepts 100 MB; the header of the largest model is under 1 MB, and a parser needs many times its size.
MAX_HEADER_BYTES = MAX_JSON_BYTES
_MOST_DIMS = 32  # the limit of NumPy's arrays, in every release


class SafetensorsReader:
    """One .safetensors file: its header is read and checked at once, its tensors on demand.

    A tensor of an unknown type is an error only when it is read. Raises BadCheckpoint for a header that cannot be read,
    or whose tensors do not fill the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _read_header(path)

    def read(self, name: str) -> Array:
        """The tensor as a read-only array that maps only its own bytes of the file."""
        tensor = self.tensors[name]
        if tensor.is_opaque:
            raise BadCheckpoint(f"{self.path}: {short(name)} is stored as {tensor.stored_as}, which is not supported")
        if not tensor.size_bytes:  # nothing to map
            return np.empty(tensor.shape, tensor.dtype)
        mapped = np.memmap(self.path, dtype=tensor.dtype, mode="r", offset=tensor.begin, shape=tensor.shape)
        return mapped.view(np.ndarray)

    def close(self) -> None:
        """Does nothing: no file is open between reads."""


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = require_model_file(path)
    try:
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or header_size > size - 8:
                raise BadCheckpoint(
                    f"{path} is not a whole safetensors file: its header should take {header_size} bytes, "
                    f"the file has {size}; download it again"
                )
            if header_size > MAX_HEADER_BYTES:
                raise BadCheckpoint(
                    f"{path} has a header of {header_size} bytes; expected {MAX_HEADER_BYTES} at most: is it a "
                    f"safetensors file? Download it again"
                )
            content = file.read(header_size)
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read ({error.strerror or error})") from error
    header = parsed_json(content, f"{path} is not a safetensors file: its header", names_once=True)
    header.pop("__metadata__", None)
    first_byte = 8 + header_size
    extents = {name: _extent(path, name, entry) for name, entry in header.items()}
    _require_filled(path, extents, size - first_byte)
    return {name: extent.tensor(first_byte) for name, extent in extents.items()}


@dataclass(frozen=True)
class _Extent:
    """One entry of a header; byte offsets count from the end of the header."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def tensor(self, first_byte: int) -> StoredTensor:
        """The tensor with its place in the file."""
        return stored_tensor(DTYPES.get(self.code, OPAQUE), self.shape, first_byte + self.begin, self.code)


def _extent(path: Path, name: str, entry: object) -> _Extent:
    """Parse an entry. Raises BadCheckpoint where it is malformed, or its bytes do not match its shape."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise _damaged(path, f"{short(name)} has no dtype")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_whole(shape) or not _are_whole(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{short(name)} has no shape or data_offsets of whole numbers")
    extent = _Extent(entry["dtype"], tuple(shape), offsets[0], offsets[1])
    dtype = DTYPES.get(extent.code)
    if len(extent.shape) > _MOST_DIMS or extent.end < extent.begin:
        raise _damaged(path, f"{short(name)} has {len(extent.shape)} dimensions and bytes {offsets}")
    if dtype is not None and extent.end - extent.begin != math.prod(extent.shape) * dtype.itemsize:
        takes = math.prod(extent.shape) * dtype.itemsize
        raise _damaged(
            path,
            f"{short(name)} has bytes {extent.begin} to {extent.end}, but {extent.code} {short(list(shape))} takes "
            f"{takes}",
        )
    return extent


def _are_whole(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _require_filled(path: Path, extents: Mapping[str, _Extent], data_bytes: int) -> None:
    """Check that every byte belongs to exactly one tensor, as the format says."""
    end, before = 0, "the header"
    for name, extent in sorted(extents.items(), key=lambda item: (item[1].begin, item[1].end)):
        if extent.begin < end:
            raise _damaged(path, f"{short(name)} overlaps {short(before)}")
        if extent.begin > end:
            raise _damaged(path, f"{extent.begin - end} bytes before {short(name)} belong to no tensor")
        end, before = extent.end, name
    if end > data_bytes:
        raise BadCheckpoint(
            f"{path} is truncated: {short(before)} ends at byte {end} after the header, the file has {data_bytes}; "
            f"download it again"
        )
    if end < data_bytes:
        raise _damaged(path, f"{data_bytes - end} bytes at its end belong to no tensor")


def _damaged(path: Path, what: str) -> BadCheckpoint:
    return BadCheckpoint(f"{path}: {what}; the header is damaged, download the file again")


class SafetensorsWriter:
    """Write tensors in the order of `shapes`, after the header. A context manager.

    A file that is closed early is incomplete: write to a temporary name and rename it (`sdrpn.host.atomic`).
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        self._path = path
        self._pending = dict(shapes)
        self._dtype = dtype
        self._header = _header_bytes(shapes, dtype)

    def __enter__(self) -> SafetensorsWriter:
        self._file: BinaryIO = self._path.open("wb")
        self._file.write(self._header)
        return self

    def write(self, name: str, array: Array) -> None:
        """Write the next tensor. Raises ValueError where it is not the one that the header lists next."""
        expected_name, expected_shape = next(iter(self._pending.items()), ("nothing", ()))
        if (name, array.shape) != (expected_name, expected_shape):
            raise ValueError(
                f"{name} {array.shape} was written where {expected_name} {expected_shape} was expected; "
                f"write in the order of the shapes"
            )
        self._file.write(np.ascontiguousarray(array, dtype=self._dtype).view(np.uint8).data)
        del self._pending[name]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._pending:
            raise ValueError(f"{self._path.name} lacks {', '.join(self._pending)}; write every tensor of the shapes")


def _header_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without this
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, so that maps are aligned
    return len(text).to_bytes(8, "little") + text
