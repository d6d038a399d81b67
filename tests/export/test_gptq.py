"""Codes chosen for the inputs that a matrix multiplies."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.errors import BadInput, RunFailed
from sdrpn.export.gptq import quantize_for_inputs
from sdrpn.export.quantization import Blocks, dequantized, quantize

BLOCKS = Blocks(4, 32, "gptq")
OUTPUTS, INPUTS = 48, 128


def matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)


def correlated_inputs(rows: int = 512) -> np.ndarray:
    """A few directions hold most of them, as with real activations; some channels are large."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, 12)) @ rng.standard_normal((12, INPUTS)) + 0.3 * rng.standard_normal((rows, INPUTS))
    x[:, ::17] *= 8
    return x.astype(np.float32)


def moment(x: np.ndarray) -> np.ndarray:
    return np.asarray(x.T @ x / len(x), np.float32)


def test_products_are_nearer_than_with_rounding() -> None:
    weights, x = matrix(), correlated_inputs()
    exact = x @ weights.T

    def error(found: tuple[np.ndarray, np.ndarray]) -> float:
        return float(np.square(x @ dequantized(*found).T - exact).mean() / np.square(exact).mean())

    rounded, fitted = error(quantize(weights, Blocks(4, 32))), error(quantize_for_inputs(weights, moment(x), BLOCKS))
    assert fitted < 0.4 * rounded, f"{fitted:.2e} against {rounded:.2e}"


def test_codes_and_scales_have_the_form_of_the_other_methods() -> None:
    codes, scales = quantize_for_inputs(matrix(), moment(correlated_inputs()), BLOCKS)
    assert (codes.dtype.name, scales.dtype.name) == ("int8", "float16")
    assert (codes.shape, scales.shape) == ((OUTPUTS, INPUTS), (OUTPUTS, INPUTS // 32))
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert (scales > 0).all()


def test_inputs_that_know_nothing_of_each_other_leave_nothing_to_make_up_for() -> None:
    """Then every column is rounded to nearest, for a scale that suits the block."""
    weights = matrix()
    codes, scales = quantize_for_inputs(weights, np.eye(INPUTS, dtype=np.float32), BLOCKS)
    steps = np.repeat(scales.astype(np.float32), 32, axis=1)
    np.testing.assert_array_equal(codes, np.clip(np.rint(weights / steps), -8, 7))


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_inputs_than_channels(rows: int) -> None:
    codes, scales = quantize_for_inputs(matrix(), moment(correlated_inputs(rows)), BLOCKS)
    assert np.isfinite(dequantized(codes, scales)).all()


def test_inputs_that_are_all_zero() -> None:
    codes, scales = quantize_for_inputs(matrix(), np.zeros((INPUTS, INPUTS), np.float32), BLOCKS)
    assert np.abs(dequantized(codes, scales) - matrix()).max() < 0.5


def test_the_matrix_stays_as_it_is() -> None:
    weights = matrix()
    quantize_for_inputs(weights, moment(correlated_inputs()), BLOCKS)
    np.testing.assert_array_equal(weights, matrix())


def test_moments_that_are_not_finite() -> None:
    with pytest.raises(RunFailed, match="moments that are not finite"):
        quantize_for_inputs(matrix(), np.full((INPUTS, INPUTS), np.nan, np.float32), BLOCKS)


def test_blocks_that_do_not_divide() -> None:
    with pytest.raises(BadInput, match="a matrix has 100 inputs, which blocks of 64 do not divide"):
        quantize_for_inputs(matrix()[:, :100], np.eye(100, dtype=np.float32), Blocks(4, 64, "gptq"))
