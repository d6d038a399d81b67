"""How far a model's 4-bit matrices are from its checkpoint, in blocks of one size or another. Writes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from sdrpn.export.options import ExportOptions
from sdrpn.export.quantization import Blocks, dequantized, quantize
from sdrpn.export.quantized_weights import TensorReader
from sdrpn.export.tables import Tables
from sdrpn.method.spec import ModelSpec

__all__ = ["block_errors"]


def block_errors(spec: ModelSpec, options: Iterable[ExportOptions], reader: TensorReader) -> tuple[float, ...]:
    """For each of the options, the error of all matrices in 4 bits: its root mean square over that of the weights.

    Matrices are read one at a time. Not for the method gptq, whose codes depend on the inputs.
    Raises: BadInput for blocks that do not divide a matrix
    """
    return tuple(_error(Tables(spec, each), reader) for each in options)


def _error(tables: Tables, reader: TensorReader) -> float:
    wrong, spread = 0.0, 0.0
    for weight, form in tables.quantized():
        if not isinstance(form, Blocks) or form.bits != 4:
            continue
        source = weight.of(reader)
        for name in weight.sources:
            matrix = np.asarray(source.read(name), np.float32)
            form.require_divides(name, matrix.shape[1])
            wrong += float(np.square(dequantized(*quantize(matrix, form)) - matrix, dtype=np.float64).sum())
            spread += float(np.square(matrix, dtype=np.float64).sum())
    return math.sqrt(wrong / spread) if spread else 0.0
