"""Read PyTorch's `.bin` files without running code that they contain, and without PyTorch.

Since PyTorch 1.6 they are zip archives: a pickle that says which tensors are views of which storages, and one record
per storage. Before, pickles and storages followed each other. Either way a tensor maps only its own bytes of the file;
in a compressed archive, the record is unpacked whenever one of its tensors is read.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from sdrpn.checkpoint.model_file import require_model_file
from sdrpn.checkpoint.stored_tensor import OPAQUE, StoredTensor, stored_tensor
from sdrpn.checkpoint.torch_pickle import (
    ForeignObject,
    NotATensor,
    Storage,
    TensorView,
    read_pickle,
    storage_from_id,
)
from sdrpn.errors import BadCheckpoint

__all__ = ["TorchReader"]

Array = NDArray[Any]

# A tensor takes about 200 bytes of a pickle; no shard of a language model has 10,000 tensors.
_MOST_PICKLE_BYTES = 2 * 1024 * 1024
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER_BYTES = 30
_DTYPES = {
    **{kind: np.dtype(kind) for kind in ("float64", "float32", "float16", "complex64", "complex128", "bool")},
    **{kind: np.dtype(kind) for kind in ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}


class TorchReader:
    """One `.bin` file: its table of tensors is read and checked at once, its tensors on demand.

    Entries that are not tensors are skipped. Raises BadCheckpoint for a file that is not a dict of tensors, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require_model_file(path)
        with _reading(path):
            self._content = _open(path)
        self.tensors = {name: _stored_tensor(view) for name, view in self._content.views.items()}

    def read(self, name: str) -> Array:
        """The tensor: a read-only map of its bytes where they are contiguous in the file, else a copy.

        Raises BadCheckpoint for one of an unknown type.
        """
        view = self._content.views[name]
        if self.tensors[name].is_opaque or isinstance(view, NotATensor):
            raise BadCheckpoint(
                f"{self.path}: {name} is stored as {self.tensors[name].stored_as}, which has no plain numbers; "
                f"expected float32, float16 or bfloat16"
            )
        with _reading(self.path):
            return _array(self._content, view, self.tensors[name].dtype)

    def close(self) -> None:
        """Nothing is held open between reads."""


class _Content(Protocol):
    """The tensors of one file, and the bytes of their storages."""

    @property
    def views(self) -> Mapping[str, TensorView | NotATensor]:
        """The tensors by name."""

    @property
    def big_endian(self) -> bool:
        """Whether the values are big-endian."""

    def stored_bytes(self, storage: Storage) -> int:
        """How many bytes of a storage the file has."""

    def read(self, storage: Storage, begin: int, end: int) -> NDArray[np.uint8]:
        """A range of bytes of a storage."""


def _open(path: Path) -> _Content:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    return _Archive(path) if is_zip else _LegacyFile(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error of a damaged file into one line; a damaged pickle or zip can raise anything."""
    try:
        yield
    except ForeignObject as error:
        raise BadCheckpoint(
            f"{path} holds Python objects that are not tensors ({error}), and is not opened because they could run "
            f"code; convert it to .safetensors where you trust it"
        ) from error
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{path}: {error}; download it again") from error
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadCheckpoint(f"{path} cannot be read as a PyTorch file ({reason}); download it again") from error


def _tensors_of(value: Any) -> dict[str, TensorView | NotATensor]:
    if not isinstance(value, dict):
        raise BadCheckpoint("is not a dict of tensors, expected a model's state dict")
    views = {name: view for name, view in value.items() if isinstance(view, (TensorView, NotATensor))}
    found = {name: view for name, view in views.items() if isinstance(name, str)}
    if not found:
        raise BadCheckpoint("is not a dict of tensors, expected a model's state dict")
    return found


def _stored_tensor(view: TensorView | NotATensor) -> StoredTensor:
    if isinstance(view, NotATensor):
        return stored_tensor(OPAQUE, (), 0, view.kind)
    return stored_tensor(_DTYPES.get(view.dtype, OPAQUE), view.shape, 0, view.dtype)


def _array(content: _Content, view: TensorView, dtype: np.dtype[Any]) -> Array:
    """The values of a view. Raises ValueError where it exceeds its storage, or the storage its record."""
    if 0 in view.shape:
        return np.empty(view.shape, dtype)
    last = view.offset + sum((extent - 1) * stride for extent, stride in zip(view.shape, view.strides, strict=True))
    begin, end = view.offset * dtype.itemsize, (last + 1) * dtype.itemsize
    held = content.stored_bytes(view.storage)
    if not end <= view.storage.size_bytes == held:
        raise ValueError(
            f"storage {view.storage.key[:20]} has {held} bytes, the pickle says {view.storage.size_bytes}, "
            f"and a tensor ends at {end}"
        )
    flat = content.read(view.storage, begin, end).view(dtype)
    if content.big_endian:
        flat = flat.view(f"u{dtype.itemsize}").byteswap().view(dtype) if dtype.itemsize > 1 else flat
    if view.strides == _contiguous(view.shape):
        return flat.reshape(view.shape)
    strides_bytes = [stride * dtype.itemsize for stride in view.strides]
    return np.array(as_strided(flat, view.shape, strides_bytes, writeable=False))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


# The format since PyTorch 1.6 ---------------------------------------------------------------------------------------


class _Archive:
    """A zip archive: FOLDER/data.pkl, FOLDER/data/KEY, and FOLDER/byteorder in newer ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            self._records = _records(archive)
            self._folder = _folder(self._records)
            pickled = self._text(archive, "data.pkl")
            order = self._text(archive, "byteorder") if f"{self._folder}byteorder" in self._records else b"little"
        self.big_endian = order.strip() == b"big"
        self.views = _tensors_of(read_pickle(io.BytesIO(pickled), storage_from_id))

    def _text(self, archive: zipfile.ZipFile, name: str) -> bytes:
        with archive.open(self._folder + name) as file:
            content = file.read(_MOST_PICKLE_BYTES + 1)
        if len(content) > _MOST_PICKLE_BYTES:
            raise BadCheckpoint(f"{name} has more than {_MOST_PICKLE_BYTES} bytes")
        return content

    def stored_bytes(self, storage: Storage) -> int:
        """See `_Content`."""
        return self._record(storage).file_size

    def read(self, storage: Storage, begin: int, end: int) -> NDArray[np.uint8]:
        """See `_Content`."""
        record = self._record(storage)
        if record.compress_type == zipfile.ZIP_STORED:
            return _mapped(self._path, _data_offset(self._path, record) + begin, end - begin)
        with zipfile.ZipFile(self._path) as archive, archive.open(record.filename) as file:
            # Read to the end, so that the archive's checksum is verified.
            return np.frombuffer(file.read(), np.uint8)[begin:end]

    def _record(self, storage: Storage) -> zipfile.ZipInfo:
        record = self._records.get(f"{self._folder}data/{storage.key}")
        if record is None:
            raise BadCheckpoint(f"storage {storage.key[:20]} is missing")
        return record


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The records by name. Raises BadCheckpoint where two have the same name, or overlap."""
    records: dict[str, zipfile.ZipInfo] = {}
    end, name_before = 0, ""
    for record in sorted(archive.infolist(), key=lambda record: record.header_offset):
        if record.filename in records:
            raise BadCheckpoint(f"{record.filename[:80]!r} occurs twice in the archive")
        if record.header_offset < end:
            raise BadCheckpoint(f"{record.filename[:80]!r} and {name_before[:80]!r} overlap in the archive")
        if record.flag_bits & 1:
            raise BadCheckpoint(f"{record.filename[:80]!r} is encrypted")
        records[record.filename] = record
        end, name_before = record.header_offset + _LOCAL_HEADER_BYTES + record.compress_size, record.filename
    return records


def _folder(records: Mapping[str, zipfile.ZipInfo]) -> str:
    """The top folder, with its slash; it is named after the file as it was saved."""
    folders = [name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise BadCheckpoint("is a zip archive without a data.pkl in one folder, expected what torch.save writes")
    return folders[0]


def _data_offset(path: Path, record: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin: after its local header, whose size the central directory does not give."""
    with path.open("rb") as file:
        file.seek(record.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise BadCheckpoint(f"{record.filename[:80]!r} has no header at the place given by the archive's directory")
    name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return record.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes


def _mapped(path: Path, offset: int, size_bytes: int) -> NDArray[np.uint8]:
    mapped = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(size_bytes,))
    return mapped.view(np.ndarray)


# The format before PyTorch 1.6 ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """The place of a storage in a legacy file."""

    offset: int
    size_bytes: int


class _LegacyFile:
    """Pickles one after the other (magic number, version, machine, tensors, keys of storages), then the storages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._storages: dict[str, Storage] = {}
        with path.open("rb") as file:
            head = io.BytesIO(file.read(_MOST_PICKLE_BYTES))
            if head.getvalue()[:1] != pickle.PROTO:
                raise BadCheckpoint("is neither a zip archive nor a pickle, expected what torch.save writes")
            if (read_pickle(head), read_pickle(head)) != (_LEGACY_MAGIC, _LEGACY_VERSION):
                raise BadCheckpoint("is not a PyTorch file, expected what torch.save writes")
            machine = read_pickle(head)
            self.views = _tensors_of(read_pickle(head, self._storage))
            keys = read_pickle(head)
            file.seek(head.tell())
            self._places = self._find_places(file, path.stat().st_size, keys)
        self.big_endian = machine.get("little_endian") is False

    def _storage(self, value: Any) -> Storage:
        if len(value) > 5 and value[5] is not None:
            raise ForeignObject("a view of a storage, as PyTorch wrote it before 0.4")
        storage = storage_from_id(value)
        if self._storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key[:20]} is described in two ways")
        return storage

    def _find_places(self, file: IO[bytes], file_bytes: int, keys: Any) -> dict[str, _Place]:
        places = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            begin, size_bytes = file.tell(), self._storages[key].item_bytes * count
            if begin + size_bytes > file_bytes:
                raise BadCheckpoint(f"is truncated: storage {key[:20]} ends at byte {begin + size_bytes}")
            places[key] = _Place(begin, size_bytes)
            file.seek(begin + size_bytes)
        return places

    def stored_bytes(self, storage: Storage) -> int:
        """See `_Content`."""
        return self._places[storage.key].size_bytes

    def read(self, storage: Storage, begin: int, end: int) -> NDArray[np.uint8]:
        """See `_Content`."""
        return _mapped(self._path, self._places[storage.key].offset + begin, end - begin)
