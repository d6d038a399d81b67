"""Rows in 8 bits: their error, also at the limits of the types, and which scale belongs to which row."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.bundle.cache_codes import LEAST_SCALE, ROW_CODES, decoded_caches, row_codes
from sdrpn.errors import BadInput

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [0.0, 1e-7, 3e-4, 0.01, 1.0, 3e4])
def test_int8_is_within_half_a_step_whatever_the_size(size: float, scale_dtype: str) -> None:
    rows = (size * RNG.uniform(-1, 1, (2, 3, 5, 64))).astype(np.float32)
    codes, scales = ROW_CODES["int8"].encoded(rows, scale_dtype)
    assert (codes.dtype.name, codes.shape, scales.shape) == ("int8", rows.shape, (2, 3, 5, 1))
    assert np.isfinite(scales).all()
    assert scales.min() >= LEAST_SCALE
    error = np.abs(ROW_CODES["int8"].decoded(codes, scales) - rows)
    # A scale in fp16 may be too small by 2^-11, which the largest entries of a row feel.
    assert (error <= scales.astype(np.float32) * (0.5 + 127 * 2.0**-11)).all()


def test_fp8_keeps_four_bits_of_every_number() -> None:
    rows = RNG.standard_normal((1, 2, 4, 64)).astype(np.float32)
    codes, scales = ROW_CODES["fp8"].encoded(rows, "float32")
    assert codes.dtype == np.uint8  # NumPy has no such type
    error = np.abs(ROW_CODES["fp8"].decoded(codes, scales) - rows)
    assert (error <= np.maximum(np.abs(rows) / 16, scales * 2.0**-10) + 1e-7).all()


@pytest.mark.parametrize("name", ROW_CODES)
def test_the_largest_entry_has_the_largest_code_and_rows_do_not_feel_each_other(name: str) -> None:
    rows = np.array([[1e-2, -5e-3], [100.0, 25.0]], np.float32)
    codes, scales = ROW_CODES[name].encoded(rows, "float32")
    np.testing.assert_allclose(scales[:, 0] * ROW_CODES[name].largest, [1e-2, 100.0], rtol=1e-6)
    alone = ROW_CODES[name].encoded(rows[:1], "float32")
    assert np.array_equal(codes[:1], alone[0])
    assert np.array_equal(scales[:1], alone[1])


def test_caches_are_read_with_their_scales_and_others_are_left() -> None:
    rows, tap = RNG.standard_normal((1, 2, 3, 8)).astype(np.float32), np.ones((1, 3, 8), np.float32)
    codes, scales = ROW_CODES["int8"].encoded(rows, "float16")
    tensors = {"tap": tap, "value_cache.1_out": codes, "value_scale_cache.1_out": scales, "key_cache.0": rows}
    scales_of = {"value_cache.1_out": "value_scale_cache.1_out", "value_cache.1": "value_scale_cache.1"}
    found = decoded_caches(ROW_CODES["int8"], tensors, scales_of)
    assert found.keys() == {"tap", "value_cache.1_out", "key_cache.0"}
    assert found["key_cache.0"] is rows
    assert np.array_equal(found["value_cache.1_out"], ROW_CODES["int8"].decoded(codes, scales))


def test_names() -> None:
    assert row_codes(None) is None
    assert row_codes("fp8") is ROW_CODES["fp8"]
    with pytest.raises(BadInput, match="caches in 'int4' are unknown; expected one of int8, fp8, or none"):
        row_codes("int4")
