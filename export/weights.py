"""Where every weight of a bundle lies: which file, which bytes, and from which checkpoint tensors it is made.

The places depend on the model and the precision alone, never on the dialect, so that both dialects of a
precision point into the same files. Tensors are converted and written one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.errors import RunFailed

__all__ = ["PRECISIONS", "Precision", "TensorReader", "Weight", "WeightTable", "matmul", "norm", "plain"]

Array = npt.NDArray[np.generic]
Precision = Literal["fp32", "fp16"]

PRECISIONS: dict[Precision, ir.DataType] = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
_ALIGNMENT_BYTES = 4096  # a page: files are memory-mapped
_FP16_MAX = 65504.0


class TensorReader(Protocol):
    """What the export needs from a checkpoint."""

    def read(self, name: str, /) -> Array:
        """The tensor in the checkpoint's own floating-point type."""
        ...


@dataclass(frozen=True)
class Weight:
    """One tensor of a bundle: made from `sources` (canonical checkpoint names) by `make`."""

    name: str
    shape: tuple[int, ...]
    role: Literal["matmul", "norm"]  # matmul: in the variant's precision; norm: always fp32
    sources: tuple[str, ...]
    make: Callable[[Sequence[Array]], Array]


def matmul(name: str, sources: Sequence[str], inputs: int, outputs: int) -> Weight:
    """A [K,N] weight: the (out, in) matrices of `sources`, packed along N."""
    return Weight(name, (inputs, outputs), "matmul", tuple(sources), _transposed_side_by_side)


def plain(name: str, sources: Sequence[str], shape: tuple[int, ...]) -> Weight:
    """Tensors in the variant's precision, joined along their first axis (a packed bias, a table)."""
    return Weight(name, shape, "matmul", tuple(sources), np.concatenate)


def norm(name: str, source: str, shape: tuple[int, ...]) -> Weight:
    """A tensor that stays fp32 in every precision."""
    return Weight(name, shape, "norm", (source,), np.concatenate)


def _transposed_side_by_side(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.T for array in arrays], axis=1)


@dataclass(frozen=True)
class _Place:
    file: str
    dtype: ir.DataType
    offset: int
    size_bytes: int
    weight: Weight

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.size_bytes


class WeightTable:
    """The weights of one graph (or of a shared group such as the rotary tables) in one precision."""

    def __init__(self, group: str, precision: Precision, weights: Iterable[Weight], *others: WeightTable) -> None:
        self._places: dict[str, _Place] = {}
        self.files: dict[str, int] = {}  # path inside the bundle -> size in bytes
        for weight in weights:
            self._append(group, precision, weight)
        self._own = tuple(self._places)
        for other in others:
            self._places.update(other._places)

    def _append(self, group: str, precision: Precision, weight: Weight) -> None:
        stored: Precision = precision if weight.role == "matmul" else "fp32"
        file = f"weights/{group}.{stored}.bin" if weight.role == "matmul" else f"weights/{group}.norm.fp32.bin"
        dtype = PRECISIONS[stored]
        offset = -(-self.files.get(file, 0) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        place = _Place(file, dtype, offset, int(math.prod(weight.shape) * dtype.itemsize), weight)
        self._places[weight.name] = place
        self.files[file] = place.end

    def external_tensor(self, name: str) -> ir.ExternalTensor:
        """An ONNX tensor that points into the table's file."""
        place = self._places[name]
        return ir.ExternalTensor(
            place.file,
            place.offset,
            place.size_bytes,
            place.dtype,
            shape=ir.Shape(place.weight.shape),
            name=name,
            base_dir="",
        )

    def write(
        self, bundle_dir: Path, reader: TensorReader, skip: frozenset[str], advance: Callable[[int], None]
    ) -> None:
        """Write this table's own files under `bundle_dir`, one tensor at a time, except those in `skip`.

        `advance` is told the bytes by which a file has grown. Raises RunFailed for a value that fp16 cannot hold.
        """
        for file in (file for file in self.files if file not in skip):
            path = bundle_dir / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                size_bytes = 0
                for place in (self._places[name] for name in self._own if self._places[name].file == file):
                    stream.seek(place.offset)
                    stream.write(_converted(place, reader).view(np.uint8).data)
                    advance(place.end - size_bytes)
                    size_bytes = place.end


def _converted(place: _Place, reader: TensorReader) -> Array:
    weight = place.weight
    array = weight.make([reader.read(source) for source in weight.sources])
    if array.size != math.prod(weight.shape):
        raise RunFailed(
            f"{weight.name}: made {array.shape} from {', '.join(weight.sources)}, expected {weight.shape}; report this"
        )
    with np.errstate(over="ignore"):  # found right below
        stored = np.ascontiguousarray(array.reshape(weight.shape), dtype=place.dtype.numpy())
    if place.dtype == ir.DataType.FLOAT16 and not np.isfinite(stored).all():
        largest = float(np.abs(array.astype(np.float32)).max())
        raise RunFailed(
            f"{weight.name} holds {largest:.4g}, fp16 ends at {_FP16_MAX:.0f}; export with --precision fp32"
        )
    return stored


class ArrayReader:
    """A `TensorReader` over arrays that are computed rather than read: rotary tables."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def read(self, name: str, /) -> Array:
        """The array under `name`."""
        return self._arrays[name]
