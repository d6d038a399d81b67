"""The table of precisions against what libraries say of the types, and against tables that have a row for each."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from sdrpn.bundle.bundle import Variant
from sdrpn.bundle.number_types import numpy_type
from sdrpn.bundle.numerics import CACHE_FORMS, NUMBER_TYPES, PRECISIONS, cache_form, precision_named
from sdrpn.bundle.tolerances import CACHE_TOLERANCES, TOLERANCES
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions
from sdrpn.export.weights import onnx_type
from sdrpn.model.dtypes import torch_dtype


def variant(precision: str, ending: str = "") -> Variant:
    return Variant(f"fused-{precision}{ending}", "fused", precision, 24, {}, "weights/embed.bin", "float32")


@pytest.mark.parametrize("name", NUMBER_TYPES)
def test_types_are_as_numpy_has_them(name: str) -> None:
    row, numpy = NUMBER_TYPES[name], numpy_type(name)
    assert (numpy.name, numpy.itemsize) == (row.name, row.size_bytes)
    assert np.dtype(row.held_as).itemsize == row.size_bytes
    assert onnx_type(name).numpy() == numpy
    if row.largest is not None:
        assert float(ml_dtypes.finfo(numpy).max) == row.largest  # type: ignore[no-untyped-call]


def test_what_precisions_compute_in() -> None:
    found = {name: row.computes for name, row in PRECISIONS.items()}
    assert found == {
        "fp32": "float32",
        "fp16": "float16",
        "bf16": "bfloat16",
        "int8": "float16",
        "fp8": "float16",
        "int4": "float16",
        "nvfp4": "float16",
    }
    assert (torch_dtype("bf16"), torch_dtype("fp16"), torch_dtype("fp32")) == (
        torch.bfloat16,
        torch.float16,
        torch.float32,
    )
    assert onnx_type(PRECISIONS["bf16"].computes) == ir.DataType.BFLOAT16


@pytest.mark.parametrize(
    ("precision", "ending", "half", "range_of_float32"),
    [
        ("fp32", "", False, True),
        ("fp16", "", True, False),
        ("bf16", "", True, True),  # half as wide as float32, and as far
        ("int8", "", True, False),
        ("int8", "-cpu", False, True),
        ("int4", "-cpu", False, True),
        ("fp8", "", True, False),
        ("nvfp4", "", True, False),
    ],
)
def test_width_and_range_of_activations(precision: str, ending: str, half: bool, range_of_float32: bool) -> None:
    found = variant(precision, ending)
    assert found.computes_in_half is half
    assert found.computes_in.has_range_of_float32 is range_of_float32


def test_every_precision_has_limits() -> None:
    assert TOLERANCES.keys() == PRECISIONS.keys()
    assert CACHE_TOLERANCES.keys() == CACHE_FORMS.keys()


def test_only_integers_have_a_form_for_cpus() -> None:
    for name, row in PRECISIONS.items():
        calibration = "digest" if row.calibration == "required" else None
        variants = ExportOptions(name, calibration=calibration).variants  # type: ignore[arg-type]
        assert list(variants) == [f"fused-{name}-cpu", f"fused-{name}"][0 if name in ("int8", "int4") else 1 :]


def test_what_is_not_quantised_is_stored_as_it_is_computed_with() -> None:
    assert {name: row.dense for name, row in PRECISIONS.items()} == {
        name: name if name in ("fp32", "fp16", "bf16") else "fp16" for name in PRECISIONS
    }


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="precision 'int3' is unknown; expected one of fp32, fp16, bf16"):
        precision_named("int3")
    with pytest.raises(BadInput, match="caches in 'int4' are unknown; expected one of int8, fp8, or none"):
        cache_form("int4")
    with pytest.raises(BadInput, match="precision 'int3' is unknown"):
        variant("int3")
