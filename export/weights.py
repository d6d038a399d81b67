"""The place of every weight of a bundle: file, bytes, and the checkpoint tensors that it is made from.

Places depend on the model and the precision only, not on the dialect, so that both dialects of a
precision use the same files. Tensors are converted and written one at a time.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.bundle.number_types import numpy_type
from sdrpn.bundle.numerics import NUMBER_TYPES, PRECISIONS, PrecisionName
from sdrpn.errors import RunFailed
from sdrpn.export.quantized_weights import (
    Calibration,
    Form,
    TensorReader,
    least_opset,
    parts_of,
    quantized_parts,
)
from sdrpn.host.progress import Grown

__all__ = [
    "QuantizedTensor",
    "Weight",
    "WeightTable",
    "matmul",
    "norm",
    "onnx_type",
    "plain",
]

Array = npt.NDArray[np.generic]
_ALIGNMENT_BYTES = 4096  # a page: files are memory-mapped


def onnx_type(name: str) -> ir.DataType:
    """The ONNX type of a name in NUMBER_TYPES."""
    return ir.DataType.from_numpy(numpy_type(name))


@dataclass(frozen=True)
class Weight:
    """One tensor of a bundle: made from `sources` (canonical checkpoint names) by `make`.

    padded: the shape up to which each source is first filled with zeros; None: sources stay as they are
    """

    name: str
    shape: tuple[int, ...]
    role: Literal["matrix", "plain", "norm"]  # norm: always fp32; only a matrix is ever quantised
    sources: tuple[str, ...]
    make: Callable[[Sequence[Array]], Array]
    padded: tuple[int, ...] | None = None

    def of(self, reader: TensorReader) -> TensorReader:
        """The reader of its sources."""
        return reader if self.padded is None else _Padding(reader, self.padded)


@dataclass(frozen=True)
class _Padding:
    """Reads tensors with zeros behind them, up to a shape."""

    reader: TensorReader
    shape: tuple[int, ...]

    def read(self, name: str, /) -> Array:
        """A copy, if it is smaller. Raises RunFailed for a larger one."""
        array = self.reader.read(name)
        if array.shape == self.shape:
            return array
        if len(array.shape) != len(self.shape) or any(map(operator.gt, array.shape, self.shape)):
            raise RunFailed(f"{name} has the shape {array.shape}, which cannot be padded to {self.shape}; report this")
        larger = np.zeros(self.shape, array.dtype)
        larger[tuple(map(slice, array.shape))] = array
        return larger


def matmul(
    name: str, sources: Sequence[str], inputs: int, outputs: int, padded: tuple[int, int] | None = None
) -> Weight:
    """A [K,N] weight: the (out, in) matrices of `sources`, packed along N."""
    return Weight(name, (inputs, outputs), "matrix", tuple(sources), _transposed_side_by_side, padded)


def plain(name: str, sources: Sequence[str], shape: tuple[int, ...], padded: tuple[int, ...] | None = None) -> Weight:
    """Tensors in the variant's precision, joined along their first axis (a packed bias, a table)."""
    return Weight(name, shape, "plain", tuple(sources), np.concatenate, padded)


def norm(name: str, source: str, shape: tuple[int, ...]) -> Weight:
    """A tensor that stays fp32 in every precision."""
    return Weight(name, shape, "norm", (source,), np.concatenate)


def _transposed_side_by_side(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.T for array in arrays], axis=1)


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantised matrix: codes [K,N], and block scales [K/block,N], one factor, or both."""

    codes: ir.ExternalTensor
    scales: ir.ExternalTensor | None
    factor: ir.ExternalTensor | None

    @property
    def block(self) -> int:
        """Inputs that share a scale; all inputs if there are no block scales."""
        inputs, blocks = (1 if tensor is None else tensor.shape.numpy()[0] for tensor in (self.codes, self.scales))
        return inputs // blocks


@dataclass(frozen=True)
class _Place:
    file: str
    dtype: ir.DataType
    offset: int
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Size in bytes; a half byte at the end is rounded up."""
        return math.ceil(math.prod(self.shape) * self.dtype.itemsize)

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.size_bytes

    def tensor(self, name: str) -> ir.ExternalTensor:
        """An external tensor for a graph."""
        return ir.ExternalTensor(
            self.file, self.offset, self.size_bytes, self.dtype, shape=ir.Shape(self.shape), name=name, base_dir=""
        )


class WeightTable:
    """Some weights (of a graph, of a layer, or shared) in one precision.

    Args:
        precision: of weights that are neither norms nor quantised
        others: tables whose weights this one also returns, without writing them
        form: how matrices are quantised; None: not at all
        input_factors: weight -> the factor for rounding its inputs to the weight's form
    """

    def __init__(
        self,
        group: str,
        precision: PrecisionName,
        weights: Iterable[Weight],
        *others: WeightTable,
        form: Form | None = None,
        input_factors: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.input_factors = input_factors
        self.files: dict[str, int] = {}  # path inside the bundle -> size in bytes
        self._places: dict[str, tuple[_Place, ...]] = {}  # of a quantised matrix: codes, scales, factor
        self._forms: dict[str, Form] = {}
        self._own = {weight.name: weight for weight in weights}
        for weight in self._own.values():
            if form is not None and weight.role == "matrix":
                self._place_quantized(group, weight, form)
            elif weight.role == "norm":
                self._place_dense(f"{group}.norm.fp32", "fp32", weight)
            else:
                self._place_dense(f"{group}{'.plain' if form else ''}.{precision}", precision, weight)
        for other in others:
            self._places.update(other._places)
            self._forms.update(other._forms)

    def _place_dense(self, stem: str, precision: PrecisionName, weight: Weight) -> None:
        self._places[weight.name] = (self._append(stem, onnx_type(PRECISIONS[precision].computes), weight.shape),)

    def _place_quantized(self, group: str, weight: Weight, form: Form) -> None:
        inputs, outputs = weight.shape
        self._places[weight.name] = tuple(
            self._append(f"{group}.{form.label}{part.suffix}", part.dtype, part.shape)
            for part in parts_of(form, weight.name, inputs, outputs)
        )
        self._forms[weight.name] = form

    def _append(self, stem: str, dtype: ir.DataType, shape: tuple[int, ...]) -> _Place:
        file = f"weights/{stem}.bin"
        offset = -(-self.files.get(file, 0) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        place = _Place(file, dtype, offset, shape)
        self.files[file] = place.end
        return place

    def external_tensor(self, name: str) -> ir.ExternalTensor:
        """An external ONNX tensor in the table's file; for a quantised matrix see `quantized_tensor`."""
        (place,) = self._places[name]
        return place.tensor(name)

    def quantized_tensor(self, name: str) -> QuantizedTensor | None:
        """The tensors of a quantised matrix; None if the weight is not quantised."""
        if name not in self._forms:
            return None
        codes, *others = self._places[name]
        scales = [place.tensor(f"{name}.scale") for place in others if place.shape]
        factor = [place.tensor(f"{name}.factor") for place in others if not place.shape]
        return QuantizedTensor(codes.tensor(name), scales[0] if scales else None, factor[0] if factor else None)

    def forms(self) -> Iterator[tuple[str, str, Form]]:
        """Quantised weights of this table: name, first source tensor, and form."""
        return (
            (name, weight.sources[0], self._forms[name]) for name, weight in self._own.items() if name in self._forms
        )

    def quantized(self) -> Iterator[tuple[Weight, Form]]:
        """Quantised weights of this table, and how."""
        return ((weight, self._forms[name]) for name, weight in self._own.items() if name in self._forms)

    @property
    def least_opset(self) -> int:
        """The opset that the types and blocks of its matrices need; 0: any."""
        return max(map(least_opset, self._forms.values()), default=0)

    def write(
        self,
        bundle_dir: Path,
        reader: TensorReader,
        skip: frozenset[str],
        advance: Grown,
        finished: Callable[[tuple[str, ...]], None] = lambda files: None,
        calibration: Calibration | None = None,
    ) -> None:
        """Write this table's own files under `bundle_dir`, one tensor at a time, except those in `skip`.

        `advance` is called with the bytes written, `finished` with completed files. Raises RunFailed for a value that
        fp16 cannot hold.
        """
        for files, weights in self._written_together().items():
            if not skip.issuperset(files):
                for file in skip.intersection(files):  # a pair is written again if only one of its files is there
                    (bundle_dir / file).unlink(missing_ok=True)
                with ExitStack() as stack:
                    streams = [stack.enter_context(_new_file(bundle_dir / file)) for file in files]
                    self._write_weights(streams, weights, reader, calibration, advance)
                finished(files)

    def _written_together(self) -> dict[tuple[str, ...], list[Weight]]:
        """The weights of each file; codes and scales come from one computation, so their files are a pair."""
        groups: dict[tuple[str, ...], list[Weight]] = {}
        for weight in self._own.values():
            groups.setdefault(tuple(place.file for place in self._places[weight.name]), []).append(weight)
        return groups

    def _write_weights(
        self,
        streams: list[IO[bytes]],
        weights: list[Weight],
        reader: TensorReader,
        calibration: Calibration | None,
        advance: Grown,
    ) -> None:
        ends = [0] * len(streams)
        for weight in weights:
            for index, (place, array) in enumerate(self._stored(weight, reader, calibration)):
                streams[index].seek(place.offset)
                streams[index].write(array.reshape(-1).view(np.uint8).data)
                advance(place.end - ends[index])
                ends[index] = place.end

    def _stored(
        self, weight: Weight, reader: TensorReader, calibration: Calibration | None
    ) -> Iterator[tuple[_Place, Array]]:
        """The places of a weight with their data."""
        places = self._places[weight.name]
        form = self._forms.get(weight.name)
        if form is None:
            yield places[0], _converted(weight, places[0].dtype, weight.of(reader))
        else:
            source = weight.of(reader)
            parts = quantized_parts(weight.name, weight.sources, weight.shape, form, source, calibration)
            yield from zip(places, parts, strict=True)


def _new_file(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _converted(weight: Weight, dtype: ir.DataType, reader: TensorReader) -> Array:
    array = weight.make([reader.read(source) for source in weight.sources])
    if array.size != math.prod(weight.shape):
        raise _wrong_shape(weight, array.shape)
    with np.errstate(over="ignore"):  # detected below
        stored = np.ascontiguousarray(array.reshape(weight.shape), dtype=dtype.numpy())
    if dtype == ir.DataType.FLOAT16 and not np.isfinite(stored).all():
        largest = float(np.abs(array.astype(np.float32)).max())
        raise RunFailed(
            f"{weight.name} holds {largest:.4g}, fp16 ends at {NUMBER_TYPES['float16'].largest:.0f}; export in "
            "bf16 or fp32",
            options=("precision",),
        )
    return stored


def _wrong_shape(weight: Weight, shape: tuple[int, ...]) -> RunFailed:
    return RunFailed(
        f"{weight.name}: made {shape} from {', '.join(weight.sources)}, expected {weight.shape}; report this"
    )
