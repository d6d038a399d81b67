"""TensorRT-RTX's listing of kernels in the form of plain TensorRT's: constants are inputs, and there are no strides.

Knows nothing of this package: it is copied beside the stand-in for TensorRT.
"""

from __future__ import annotations

import re

__all__ = ["as_listed"]

_SIDES = re.compile(r"Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs: ")
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: (\[[-\d,]*\]), Strides: .*?, Datatype: (\w+), Format: [^}]*\}")


def as_listed(line: str) -> str:
    """A line in TensorRT's form; any other line as it is."""
    return _TENSOR.sub(r"{ Name: \1, Dimensions: \2, Format/Datatype: \3 }", _SIDES.sub(_joined, line))


def _joined(found: re.Match[str]) -> str:
    tensors = ",".join(part for part in found.groups() if part.strip())
    return f"Inputs: [{tensors}], Outputs: "
