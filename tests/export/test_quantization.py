"""Codes and scales: the formula on its own, and its limits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.export.quantization import Blocks, dequantized, quantize
from sdrpn.export.quantized_weights import pack_nibbles


def matrix(outputs: int = 70, inputs: int = 256, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).standard_normal((outputs, inputs), np.float32).astype(dtype)


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_weight_is_within_half_a_step_or_cut_off(bits: Any, size: int, method: Any) -> None:
    weights, blocks = matrix(), Blocks(bits, size, method)
    codes, scales = quantize(weights, blocks)
    assert (codes.dtype.name, scales.dtype.name, scales.shape) == ("int8", "float16", (70, 256 // size))
    assert -blocks.largest - 1 <= codes.min() < 0 < codes.max() <= blocks.largest
    steps = np.repeat(scales.astype(np.float32), size, axis=1)
    error = np.abs(dequantized(codes, scales) - weights)
    inside = (codes > -blocks.largest - 1) & (codes < blocks.largest)
    assert (error[inside] <= 0.5001 * steps[inside]).all()


def test_rounding_to_nearest_by_hand() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :5] = [7.0, -7.0, 3.4, -0.6, 0.4]
    codes, scales = quantize(row, Blocks(4, 32))
    assert scales[0, 0] == 1.0
    assert codes[0, :6].tolist() == [7, -7, 3, -1, 0, 0]


def test_codes_suit_the_rounded_scale() -> None:
    """0.1 is not an fp16 number: codes must be chosen for the scale that is stored."""
    row = np.full((1, 32), 0.7, np.float32)
    codes, scales = quantize(row, Blocks(4, 32))
    assert scales[0, 0] == np.float16(np.float32(0.7) / 7)
    assert (codes == 7).all()


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("value", [0.0, 1e-9, 1000.0])
def test_constant_blocks(method: Any, value: float) -> None:
    codes, scales = quantize(np.full((3, 64), value, np.float32), Blocks(4, 64, method))
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    np.testing.assert_allclose(dequantized(codes, scales), value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_any_floating_point_type(dtype: Any) -> None:
    weights = matrix(dtype=dtype)
    for found, expected in zip(
        quantize(weights, Blocks(4)), quantize(weights.astype(np.float32), Blocks(4)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_hqq_leaves_less_error_than_rounding() -> None:
    """In the norm that it is made for, on weights with outliers."""
    weights = np.random.default_rng(1).standard_t(4, (300, 512)).astype(np.float32)

    def error(method: Any) -> float:
        return float((np.abs(dequantized(*quantize(weights, Blocks(4, 128, method))) - weights) ** 0.75).mean())

    assert error("hqq") < 0.97 * error("rtn")


def test_packing_is_that_of_onnx() -> None:
    codes = np.array([[1, -1, 7], [-8, 0, 5]], np.int8)
    expected = [0xF1, 0x87, 0x50]  # low half first, row after row
    assert pack_nibbles(codes).tolist() == expected
    assert pack_nibbles(codes[:, :1]).tolist() == [0x81]
    assert pack_nibbles(codes.reshape(-1)[:5]).tolist() == [0xF1, 0x87, 0x00]


def test_a_block_that_does_not_divide() -> None:
    with pytest.raises(
        BadInput, match=r"a matrix has 96 inputs, which blocks of 64 do not divide; choose blocks of 32$"
    ):
        quantize(matrix(inputs=96), Blocks(4, 64))
    with pytest.raises(BadInput, match=r"a matrix has 100 inputs, .* do not divide; export it in fp16$"):
        quantize(matrix(inputs=100), Blocks(4, 64))


@pytest.mark.parametrize(
    ("size", "method", "message"),
    [(8, "rtn", r"block size is 8; expected one of 16, 32, 64, 128"), (32, "awq", r"method 'awq' is unknown")],
)
def test_unknown_blocks(size: int, method: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Blocks(4, size, method)
