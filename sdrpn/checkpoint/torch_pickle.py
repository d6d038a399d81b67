"""Read the tensors described by a PyTorch pickle without running the functions that it names. Knows no files.

A pickle is a program. Here it may build dicts, lists and tuples, and name a fixed set of functions, each replaced by a
stub that only records its arguments. Anything else is refused, and so are operations of unbounded cost.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, ClassVar

from sdrpn.errors import BadCheckpoint

__all__ = ["ForeignObject", "NotATensor", "Storage", "TensorView", "read_pickle", "storage_from_id"]

_MOST_DIMS = 64  # the limit of NumPy and PyTorch
# Opcodes that no tensor needs: they allocate memory by a number in the file, hash built objects, or look up classes.
_LEFT_OUT = (
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.EMPTY_SET,
    pickle.ADDITEMS,
    pickle.FROZENSET,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
)
# Type of storage -> type and bytes per value. In the last two, several values share a byte, which counts as one value.
_STORAGES = {
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "UntypedStorage": ("uint8", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
}


class ForeignObject(Exception):
    """The pickle names something that is not part of a tensor."""


@dataclass(frozen=True)
class Storage:
    """A flat array of values, shared by the tensors that are views of it."""

    key: str
    dtype: str
    item_bytes: int
    count: int

    @property
    def size_bytes(self) -> int:
        """The size of the whole storage."""
        return self.count * self.item_bytes


@dataclass(frozen=True)
class TensorView:
    """A tensor in its storage; offset and strides count values."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class NotATensor:
    """A tensor without plain values: sparse, quantised, or without data."""

    kind: str


def read_pickle(file: IO[bytes], storages: Callable[[Any], Storage] | None = None) -> Any:
    """Read the next object of `file`.

    Args:
        storages: resolves the persistent id of a storage; None: the object has no tensors
    Raises ForeignObject for an object that is not made of tensors, and any Exception for a file that is not a pickle.
    """
    return _Unpickler(file, storages).load()


def storage_from_id(value: Any) -> Storage:
    """The storage of a persistent id: ("storage", type, key, device, count, ...)."""
    word, dtype, key, _, count = value[:5]
    if word != "storage" or not isinstance(dtype, _StorageType) or not isinstance(key, str):
        raise ValueError("a storage without a name or a type")
    return Storage(key, dtype.dtype, dtype.item_bytes, _whole(count))


class _Unpickler(pickle._Unpickler):
    """The standard library's pure Python unpickler: its memo grows with the file only, and opcodes can be removed."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: IO[bytes], storages: Callable[[Any], Storage] | None) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """A stub, never the named object itself."""
        if name in _STORAGES and module in ("torch", "torch.cuda", "torch.storage"):
            return _StorageType(*_STORAGES[name])
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if module == "torch" and name.isidentifier() and name.islower():
            return _Word(name)  # a dtype, a layout or a quantisation scheme
        raise ForeignObject(f"{module[:40]}.{name[:40]}")

    def persistent_load(self, value: Any) -> Storage:
        """Resolve a storage: it is outside the pickle, which refers to it by a tuple."""
        if self._storages is None:
            raise ValueError("a storage where none is expected")
        return self._storages(value)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        _put(self.stack[-1], items)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _StandIn):
            raise ForeignObject("a call of an object that is not a function")
        self.append(function(*arguments))

    def _build(self) -> None:
        """Ignore the state of a module's dict and of tensors with attributes: no weight needs it."""
        self.stack.pop()

    dispatch: ClassVar[dict[int, Any]] = {
        code: function for code, function in pickle._Unpickler.dispatch.items() if bytes([code]) not in _LEFT_OUT
    } | {
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict,
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.BUILD[0]: _build,
    }


def _put(target: Any, items: list[Any]) -> None:
    """Add items to a dict with plain keys: nested tuples could take for ever to hash. No name may occur twice."""
    if not isinstance(target, dict):
        raise ValueError("an item set on an object that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int, type(None))):
            raise ForeignObject(f"a dict with keys of type {type(key).__name__}")
        if key in target:
            raise BadCheckpoint(f"{str(key)[:80]} occurs twice")
        target[key] = value


@dataclass(frozen=True)
class _StandIn:
    """Stub for a function that the pickle names."""

    make: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)


@dataclass(frozen=True)
class _StorageType:
    dtype: str
    item_bytes: int


@dataclass(frozen=True)
class _Word:
    text: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorView:
    return _view(storage, storage.dtype, offset, shape, strides)


def _tensor_of_type(storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    """A tensor of a newer type; these share one storage type, of bytes."""
    if not isinstance(dtype, _Word):
        raise ValueError("a tensor without a type")
    return _view(storage, dtype.text, offset, shape, strides)


def _view(storage: Any, dtype: str, offset: Any, shape: Any, strides: Any) -> TensorView:
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > _MOST_DIMS:
        raise ValueError("a tensor without a storage, or with strides that do not match its dimensions")
    return TensorView(storage, dtype, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, strides)))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _typed(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with custom attributes, or of a subclass."""
    if not isinstance(function, _StandIn):
        raise ForeignObject("a tensor of an unknown class")
    return function(*arguments)


def _no_numbers(kind: str) -> _StandIn:
    return _StandIn(lambda *arguments: NotATensor(kind))


def _ordered_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    """An OrderedDict, empty or from a list of pairs, as Python 2 wrote it."""
    found: OrderedDict[Any, Any] = OrderedDict()
    for pairs in arguments[:1]:
        _put(found, [part for pair in pairs for part in pair])
    return found


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError("a size, an offset or a stride that is not a whole number from 0")
    return value


_UTILS, _TENSOR = "torch._utils", "torch._tensor"
_STAND_INS: dict[tuple[str, str], _StandIn] = {
    ("collections", "OrderedDict"): _StandIn(_ordered_dict),
    ("torch", "Size"): _StandIn(lambda sizes=(): sizes),
    ("torch", "device"): _StandIn(lambda *name: name),
    ("torch.serialization", "_get_layout"): _StandIn(lambda name: name),
    (_UTILS, "_rebuild_tensor"): _StandIn(_tensor),
    (_UTILS, "_rebuild_tensor_v2"): _StandIn(_tensor),
    (_UTILS, "_rebuild_tensor_v3"): _StandIn(_tensor_of_type),
    (_UTILS, "_rebuild_parameter"): _StandIn(_parameter),
    (_UTILS, "_rebuild_parameter_with_state"): _StandIn(_parameter),
    (_TENSOR, "_rebuild_from_type"): _StandIn(_typed),
    (_TENSOR, "_rebuild_from_type_v2"): _StandIn(_typed),
    ("torch.nn.parameter", "Parameter"): _StandIn(_parameter),
    (_TENSOR, "Tensor"): _StandIn(_parameter),
    ("torch", "Tensor"): _StandIn(_parameter),
    (_UTILS, "_rebuild_sparse_tensor"): _no_numbers("sparse"),
    (_UTILS, "_rebuild_sparse_csr_tensor"): _no_numbers("sparse"),
    (_UTILS, "_rebuild_qtensor"): _no_numbers("quantised"),
    (_UTILS, "_rebuild_nested_tensor"): _no_numbers("nested"),
    (_UTILS, "_rebuild_meta_tensor_no_storage"): _no_numbers("meta, without data"),
}
