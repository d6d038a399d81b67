"""The safetensors format, one tensor at a time. Knows nothing about models.

The library of that name maps a whole file for as long as it is open, and writes only from a complete dict. A 7B
checkpoint is 13 GB: here every array maps its own bytes and nothing else, and the writer streams.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sdrpn.errors import BadCheckpoint

__all__ = ["SafetensorsReader", "SafetensorsWriter", "StoredTensor"]

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
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class StoredTensor:
    """What a header says about one tensor; `begin` counts from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsReader:
    """One .safetensors file: its header is read and checked at once, its tensors when asked for.

    Raises BadCheckpoint for a header that cannot be read or that promises more bytes than the file has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _read_header(path)

    def read(self, name: str) -> Array:
        """The tensor as a read-only array that maps its own bytes of the file and keeps nothing else alive."""
        tensor = self.tensors[name]
        if not tensor.size_bytes:  # nothing to map
            return np.empty(tensor.shape, tensor.dtype)
        mapped = np.memmap(self.path, dtype=tensor.dtype, mode="r", offset=tensor.begin, shape=tensor.shape)
        return mapped.view(np.ndarray)

    def close(self) -> None:
        """Nothing is held open between reads."""


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or header_size > min(size - 8, MAX_HEADER_BYTES):
                raise BadCheckpoint(
                    f"{path} is not a whole safetensors file: its header should take {header_size} bytes, "
                    f"the file has {size}; download it again"
                )
            header = json.loads(file.read(header_size))
            return {
                name: _stored_tensor(path, name, entry, first_byte=8 + header_size, file_size=size)
                for name, entry in header.items()
                if name != "__metadata__"
            }
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, BadCheckpoint):
            raise
        raise BadCheckpoint(
            f"{path} has a header that is not safetensors ({_one_line(error)}); download it again"
        ) from error


def _stored_tensor(path: Path, name: str, entry: dict[str, Any], *, first_byte: int, file_size: int) -> StoredTensor:
    code = entry["dtype"]
    if code not in DTYPES:
        raise BadCheckpoint(f"{path}: {name} is stored as {code}; expected one of {', '.join(DTYPES)}")
    shape = tuple(int(extent) for extent in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    tensor = StoredTensor(DTYPES[code], shape, first_byte + begin)
    if min((begin, *shape)) < 0 or end - begin != tensor.size_bytes:
        raise BadCheckpoint(
            f"{path}: {name} has bytes {begin} to {end}, but {code} {list(shape)} takes {tensor.size_bytes}; "
            f"the header is damaged, download the file again"
        )
    if first_byte + end > file_size:
        raise BadCheckpoint(
            f"{path} is truncated: {name} ends at byte {first_byte + end}, the file has {file_size}; download it again"
        )
    return tensor


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class SafetensorsWriter:
    """Write tensors one after the other, in the order of `shapes`; the header goes first. A context manager.

    A file that was left early is not whole: write to a temporary name and rename it (`sdrpn.atomic`).
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
        """The next tensor; raises ValueError for another one than the header promises."""
        expected_name, expected_shape = next(iter(self._pending.items()), ("nothing", ()))
        if (name, array.shape) != (expected_name, expected_shape):
            raise ValueError(
                f"{name} {array.shape} was written where {expected_name} {expected_shape} should come; "
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
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8, so that it can be mapped aligned
    return len(text).to_bytes(8, "little") + text
