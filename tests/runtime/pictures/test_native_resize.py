"""The native resize against Pillow: random and extreme pictures, boxes and sizes."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.recipe import PLAIN_MEAN, PLAIN_STD, Agreement, Box, Bytes, recipe

native: Any = pytest.importorskip("sdrpn._native", exc_type=ImportError)

GREY = (122, 116, 104)
THREADS = min(2, native.cores())


def noise(width: int, height: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prepared(
    picture: Bytes,
    boxes: list[Box],
    size_hw: tuple[int, int],
    *,
    filter: str = "bicubic",
    colour: tuple[int, ...] | None = None,
    dtype: str = "float32",
    **options: Any,
) -> npt.NDArray[Any]:
    out = np.full((len(boxes), 3, *size_hw), np.nan, dtype)
    options = {"mean": PLAIN_MEAN, "std": PLAIN_STD, "threads": THREADS, **options}
    native.prepare(picture, np.array(boxes, np.int64), out, filter=filter, colour=colour, **options)
    return out


def random_box(rng: np.random.Generator, width: int, height: int, outside: bool) -> Box:
    """Often one pixel wide, at a border, or all of the picture."""

    def side(size: int) -> tuple[int, int]:
        first = int(rng.choice([0, size - 1, int(rng.integers(0, size))]))
        last = int(rng.choice([first + 1, size, int(rng.integers(first, size)) + 1]))
        reach = int(rng.integers(0, 2 * size + 8)) if outside else 0
        return first - int(rng.integers(0, reach + 1)), last + int(rng.integers(0, reach + 1))

    (x1, x2), (y1, y2) = side(width), side(height)
    return x1, y1, x2, y2


@pytest.mark.parametrize("plain", [False, True], ids=["vectors", "as the GPU"])
def test_a_thousand_random_pictures_boxes_and_sizes(plain: bool) -> None:
    rng, agreement = np.random.default_rng(5), Agreement()
    for number in range(1000):
        width, height = (int(size) for size in rng.integers(1, 180, 2))
        size_hw = int(rng.integers(1, 90)), int(rng.integers(1, 90))
        filter_name, colour = ("bilinear", "bicubic")[number % 2], (None, GREY)[number // 2 % 2]
        box = random_box(rng, width, height, outside=colour is not None)
        picture = noise(width, height, number)
        found = prepared(picture, [box], size_hw, filter=filter_name, colour=colour, plain=plain)
        agreement.add(found[0], recipe(picture, box, size_hw, filter_name, colour))
    agreement.require()


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1, 1), (0, 0, 1, 1)),
        ((1, 10_000), (-4999, 0, 5001, 10_000)),
        ((10_000, 1), (0, -4999, 10_000, 5001)),
        ((1, 10_000), (0, 0, 1, 10_000)),
        ((8192, 8192), (0, 0, 8192, 8192)),
        ((8192, 8192), (8191, 8191, 8192, 8192)),
        ((2000, 1500), (0, -250, 2000, 1750)),
    ],
)
def test_extreme_pictures(size: tuple[int, int], box: Box, filter_name: str) -> None:
    picture, agreement = noise(*size), Agreement()
    found = prepared(picture, [box], (336, 336), filter=filter_name, colour=GREY)
    agreement.add(found[0], recipe(picture, box, (336, 336), filter_name, GREY))
    agreement.require()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_hypothesis_finds(data: st.DataObject) -> None:
    width, height = (data.draw(st.integers(1, 60)) for _ in range(2))
    colour = data.draw(st.none() | st.tuples(*[st.integers(0, 255)] * 3))
    filter_name = data.draw(st.sampled_from(["bilinear", "bicubic"]))
    reach = data.draw(st.integers(0, 100)) if colour is not None else 0

    def side(size: int) -> tuple[int, int]:
        first = data.draw(st.integers(-reach, size - 1))
        return first, data.draw(st.integers(max(first, 0) + 1, size + reach))

    (x1, x2), (y1, y2) = side(width), side(height)
    size_hw = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    picture, agreement = noise(width, height, data.draw(st.integers(0, 9))), Agreement()
    found = prepared(picture, [(x1, y1, x2, y2)], size_hw, filter=filter_name, colour=colour)
    agreement.add(found[0], recipe(picture, (x1, y1, x2, y2), size_hw, filter_name, colour))
    agreement.require()


def test_the_plain_loops_and_the_vectors_give_the_same() -> None:
    picture, boxes = noise(301, 203), [(0, 0, 301, 203), (3, 5, 40, 9), (-50, -50, 351, 253)]
    fast, plain = (prepared(picture, boxes, (47, 53), colour=GREY, plain=plain) for plain in (False, True))
    np.testing.assert_array_equal(fast, plain)


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
def test_narrow_pictures(filter_name: str) -> None:
    """Where vectors just fit into a row or just do not: they may not read beyond the picture, as the sanitizers see."""
    for width in range(1, 34):
        picture = noise(width, 5, width)
        for side in (1, 2, 3, 5, 8, 13):
            boxes, size_hw = [(0, 0, width, 5), (width // 2, 4, width, 5)], (4, side)
            fast, plain = (
                prepared(picture, boxes, size_hw, filter=filter_name, plain=plain) for plain in (False, True)
            )
            np.testing.assert_array_equal(fast, plain, err_msg=f"{width} px to {side}")


def test_many_boxes_equal_single_ones() -> None:
    picture = noise(640, 480)
    boxes = [random_box(np.random.default_rng(i), 640, 480, outside=False) for i in range(40)]
    together = prepared(picture, boxes, (96, 64), filter="bilinear")
    for box, found in zip(boxes, together, strict=True):
        np.testing.assert_array_equal(found, prepared(picture, [box], (96, 64), filter="bilinear", threads=1)[0])


def test_rows_of_a_wider_array_are_read_in_place() -> None:
    wide = noise(100, 60)
    view = wide[10:50:2, 20:70]
    assert not view.flags.c_contiguous
    box = (0, 0, 50, 20)
    expected = prepared(np.ascontiguousarray(view), [box], (31, 33))
    np.testing.assert_array_equal(prepared(view, [box], (31, 33)), expected)


def test_read_only_pictures() -> None:
    picture = noise(9, 7)
    picture.flags.writeable = False
    assert np.isfinite(prepared(picture, [(0, 0, 9, 7)], (4, 4))).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_normalisation_is_numpys(dtype: str) -> None:
    """Every byte: a picture of them, not resized."""
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 1e-7)
    found = prepared(picture, [(0, 0, 16, 16)], (16, 16), mean=mean, std=std, dtype=dtype)[0]
    values = (picture.transpose(2, 0, 1) / 255).astype(np.float32)
    expected = (values - np.array(mean, np.float32)[:, None, None]) / np.array(std, np.float32)[:, None, None]
    with np.errstate(over="ignore"):  # the smallest deviation leaves float16's range, as it must
        np.testing.assert_array_equal(found, expected.astype(dtype))


def test_float16_rounds_as_numpy_does() -> None:
    """Tiny values too: subnormal numbers and those that become 0."""
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for exponent in range(-2, 30):
        std = (2.0**exponent, 3.0**exponent, 1.7**exponent)
        found = prepared(picture, [(0, 0, 16, 16)], (16, 16), std=std, dtype="float16")[0]
        exact = prepared(picture, [(0, 0, 16, 16)], (16, 16), std=std)[0]
        np.testing.assert_array_equal(found, exact.astype(np.float16))


@pytest.mark.skipif(THREADS < 2, reason="needs two cores")
def test_calls_from_several_threads() -> None:
    """Together they ask for more threads than there are."""
    picture, box = noise(1200, 900), (0, 0, 1200, 900)
    expected = prepared(picture, [box], (96, 64), threads=1)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: prepared(picture, [box], (96, 64)), range(12)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(THREADS < 2, reason="needs two cores")
def test_a_fork_does_no_harm() -> None:
    """A child has none of its parent's threads, and starts its own."""
    code = """
import os, sys
import numpy as np
from sdrpn import _native as native
picture, boxes = np.full((900, 1200, 3), 7, np.uint8), np.array([[0, 0, 1200, 900]])
out = np.empty((1, 3, 96, 64), np.float32)
def prepare():
    native.prepare(picture, boxes, out, filter="bicubic", colour=None, mean=(0, 0, 0), std=(1, 1, 1), threads=2)
prepare()
child = os.fork()
for _ in range(3):
    prepare()
if child == 0:
    os._exit(0 if np.allclose(out * 255, 7) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_signal_ends_a_call() -> None:
    class Rung(Exception):
        pass

    def ring(number: int, frame: FrameType | None) -> None:
        raise Rung

    picture = np.zeros((4000, 6000, 3), np.uint8)

    def until_rung() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        for _ in range(1000):
            prepared(picture, [(0, 0, 6000, 4000)], (336, 336), plain=True)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Rung):
            until_rung()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.isfinite(prepared(noise(9, 7), [(0, 0, 9, 7)], (4, 4))).all()
