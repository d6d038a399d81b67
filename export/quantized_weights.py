"""The tensors of one quantised matrix, and how they are made from a checkpoint. Knows no files and no graphs.

A form is how numbers are stored: blocks of integers, or small floating-point numbers. Matrices are [K,N] here, as in a
bundle; a packed one is made from several sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from sdrpn.errors import RunFailed
from sdrpn.export.float_formats import FP4_BLOCK, Float4, Float8, largest_of
from sdrpn.export.gptq import quantize_for_inputs
from sdrpn.export.quantization import Blocks, quantize

__all__ = ["Calibration", "Form", "Part", "TensorReader", "least_opset", "pack_nibbles", "parts_of", "quantized_parts"]

Array = npt.NDArray[Any]
Form: TypeAlias = Blocks | Float8 | Float4

_INTEGERS = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


class TensorReader(Protocol):
    """The part of a checkpoint that the export reads."""

    def read(self, name: str, /) -> Array:
        """The tensor in the checkpoint's own floating-point type."""
        ...


class Calibration(Protocol):
    """Statistics of the inputs of matrices."""

    @property
    def digest(self) -> str:
        """A short digest of everything that decides it, besides the checkpoint."""
        ...

    def second_moment(self, name: str, /) -> npt.NDArray[np.float32]:
        """(K,K): the mean of x x^T over the inputs x of a canonical matrix. Called layer by layer, from the first
        on."""
        ...

    def largest(self, name: str, /) -> float:
        """The largest absolute value among the inputs of a canonical matrix. Called in any order."""
        ...


@dataclass(frozen=True)
class Part:
    """One of the tensors of a quantised matrix; `suffix` distinguishes its file."""

    suffix: str
    dtype: ir.DataType
    shape: tuple[int, ...]


def least_opset(form: Form) -> int:
    """The first opset with the form's types, and blocks in DequantizeLinear."""
    return 23 if isinstance(form, Float4) else 21


def parts_of(form: Form, name: str, inputs: int, outputs: int) -> tuple[Part, ...]:
    """Codes, block scales and factor of a matrix [K,N], as far as the form has them.

    Raises: BadInput if blocks do not divide K
    """
    if isinstance(form, Float8):
        codes = Part("", ir.DataType.FLOAT8E4M3FN, (inputs, outputs))
        return codes, Part(".factor", ir.DataType.FLOAT16, ())
    form.require_divides(name, inputs)
    if isinstance(form, Float4):
        codes = Part("", ir.DataType.FLOAT4E2M1, (inputs, outputs))
        scales = Part(".scale", ir.DataType.FLOAT8E4M3FN, (inputs // FP4_BLOCK, outputs))
        return codes, scales, Part(".factor", ir.DataType.FLOAT16, ())
    codes = Part("", _INTEGERS[form.bits], (inputs, outputs))
    return codes, Part(".scale", ir.DataType.FLOAT16, (inputs // form.size, outputs))


def quantized_parts(
    name: str,
    sources: Sequence[str],
    shape: tuple[int, ...],
    form: Form,
    reader: TensorReader,
    calibration: Calibration | None,
) -> tuple[Array, ...]:
    """The data of `parts_of`, packed where two codes share a byte. Sources are in memory as floats one at a time.

    Raises: RunFailed for values that are not finite, or sources of another shape
    """
    inputs, outputs = shape
    parts = parts_of(form, name, inputs, outputs)
    arrays = [np.empty(part.shape, part.dtype.numpy()) for part in parts]
    if not isinstance(form, Blocks):
        arrays[-1][...] = form.factor(largest_of(reader.read(source) for source in sources))
    column = 0
    for matrix in _matrices(sources, form, reader):
        found = _quantized(matrix, sources, form, calibration, arrays)
        columns = slice(column, column := column + len(matrix))
        for array, piece in zip(arrays, found, strict=False):  # the factor is already set
            array[..., columns] = piece.T
    if column != outputs:
        raise RunFailed(f"{name}: made {column} outputs from {', '.join(sources)}, expected {outputs}; report this")
    if not all(_finite(array) for array in (arrays[1:] if isinstance(form, Blocks) else arrays)):
        raise RunFailed(f"{name} has values that are not finite; repair the checkpoint")
    codes = pack_nibbles(arrays[0]) if parts[0].dtype.itemsize < 1 else arrays[0]
    return (codes, *arrays[1:])


def _finite(array: Array) -> bool:
    """Whether all values are finite; 4-bit codes always are."""
    return array.dtype == ml_dtypes.float4_e2m1fn or bool(np.isfinite(array.astype(np.float32)).all())


def _quantized(
    matrix: Array, sources: Sequence[str], form: Form, calibration: Calibration | None, arrays: Sequence[Array]
) -> tuple[Array, ...]:
    if not isinstance(form, Blocks):
        return form.quantize(matrix, float(arrays[-1]))
    if form.method == "gptq":
        assert calibration is not None
        # All sources of a packed matrix have the same inputs.
        return quantize_for_inputs(matrix, calibration.second_moment(sources[0]), form)
    return quantize(matrix, form)


def _matrices(sources: Sequence[str], form: Form, reader: TensorReader) -> Iterator[Array]:
    """The sources (N,K); together if their inputs need an expensive computation."""
    if isinstance(form, Blocks) and form.method == "gptq":
        yield np.concatenate([np.asarray(reader.read(source), np.float32) for source in sources])
    else:
        yield from (reader.read(source) for source in sources)


def pack_nibbles(codes: Array) -> npt.NDArray[np.uint8]:
    """Two 4-bit codes per byte in row order, the first in the lower half; an odd last one is followed by zero."""
    flat = codes.reshape(-1).view(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    pairs = flat.reshape(-1, 2)
    packed: npt.NDArray[np.uint8] = pairs[:, 0] & np.uint8(15)
    packed |= pairs[:, 1] << np.uint8(4)
    return packed
