"""Tables of positions of any kind; that frequencies equal transformers' is in tests/export/test_rope.py."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.method.rope import RotaryFrequencies

THREE = RotaryFrequencies((1.0, 0.5, 0.25), amplitude=2.0)


def test_cosines_are_those_of_float32_angles_times_the_amplitude() -> None:
    third = float(np.float32(1 / 3))
    cos, sin = RotaryFrequencies((third,), amplitude=1.5).tables(np.array([0, 1, 32_767]))
    angles = (np.array([0, 1, 32_767], np.float32) * np.float32(third)).astype(np.float64)[:, None]
    np.testing.assert_array_equal(cos, np.cos(angles).astype(np.float32) * np.float32(1.5))
    np.testing.assert_array_equal(sin, np.sin(angles).astype(np.float32) * np.float32(1.5))
    assert cos.dtype == sin.dtype == np.float32


def test_fractions_are_positions_too() -> None:
    whole, _ = THREE.tables(np.arange(4))
    half, _ = THREE.tables(np.arange(0, 4, 0.5))
    np.testing.assert_array_equal(half[::2], whole)
    assert half[1, 0] == np.float32(np.cos(0.5)) * 2


@pytest.mark.parametrize("axis_of", [[0, 1, 2], [2, 1, 0], [0, 0, 2]])
def test_each_pair_of_channels_turns_by_its_axis(axis_of: list[int]) -> None:
    positions = np.array([[0, 1, 2, 9], [5, 6, 7, 8], [3, 3, 3, 3]])
    cos, sin = THREE.tables(positions, np.array(axis_of))
    assert cos.shape == (4, 3)
    for pair, axis in enumerate(axis_of):
        alone = THREE.tables(positions[axis])
        np.testing.assert_array_equal(cos[:, pair], alone[0][:, pair])
        np.testing.assert_array_equal(sin[:, pair], alone[1][:, pair])


def test_equal_positions_on_all_axes_are_a_position() -> None:
    positions = np.arange(6)
    plain = THREE.tables(positions)
    for found, expected in zip(THREE.tables(np.stack([positions] * 3), np.array([1, 0, 2])), plain, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_shape_of_positions_is_told() -> None:
    with pytest.raises(BadInput, match=r"positions have the shape \(2, 4\); expected \(S,\)"):
        THREE.tables(np.zeros((2, 4)))
    with pytest.raises(BadInput, match=r"positions have the shape \(4,\); expected \(axes,S\)"):
        THREE.tables(np.zeros(4), np.array([0, 0, 0]))


@pytest.mark.parametrize("frequency", [0.0, -1.0, float("inf"), float("nan"), 0.1])
def test_a_frequency_is_a_float32_above_0(frequency: float) -> None:
    with pytest.raises(BadInput, match=r"is not a rotary frequency; expected a float32 above 0"):
        RotaryFrequencies((1.0, frequency))


@pytest.mark.parametrize("amplitude", [0.0, float("nan"), float("inf")])
def test_an_amplitude_is_above_0(amplitude: float) -> None:
    with pytest.raises(BadInput, match=r"the amplitude of rotary tables is .*; expected a number above 0"):
        RotaryFrequencies((1.0,), amplitude)
