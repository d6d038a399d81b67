"""Products and attention of decode steps: right, the same in every bit with all instructions, and what they refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.tolerances import STEP_ATTENTION_ABS, STEP_PRODUCT_RELATIVE

native: Any = pytest.importorskip("sdrpn._native_steps", exc_type=ImportError)
INSTRUCTIONS = ("plain", "avx2", "avx512")
ROW_COUNTS = (1, 2, 3, 4, 5, 8)


def available() -> Iterator[str]:
    matrix = native.PackedMatrix.half(np.zeros((1, 1), np.uint16))
    for name in INSTRUCTIONS:
        try:
            matrix.multiply(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), instructions=name)
        except ValueError:
            continue
        yield name


HERE = tuple(available())


def test_the_best_ones_are_chosen() -> None:
    assert native.instructions() == HERE[-1]


class Coded:
    """A random matrix in 4 or 8 bits, and its numbers."""

    def __init__(self, bits: int, inputs: int, columns: int, block: int) -> None:
        rng = np.random.default_rng(inputs + columns)
        most = 1 << (bits - 1)
        codes = rng.integers(-most, most, (inputs, columns)).astype(np.int8)
        self.block = block
        self.scales = rng.random((inputs // block, columns)).astype(np.float16)
        blocks = codes.reshape(-1, block, columns) * self.scales[:, None].astype(np.float64)
        self.numbers = blocks.reshape(inputs, columns)
        raw = codes.view(np.uint8).reshape(-1)
        if bits == 4:
            halves = np.append(raw & 15, np.zeros(raw.size % 2, np.uint8))
            raw = halves[0::2] | halves[1::2] << 4
        self.packed = native.PackedMatrix.coded(
            raw, self.scales.view(np.uint16), bits=bits, inputs=inputs, columns=columns
        )

    def product(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """With rows in blocks of 8 bits."""
        blocks = rows.reshape(len(rows), -1, self.block)
        most = np.abs(blocks).max(axis=2, keepdims=True)
        codes = np.rint(blocks * (np.float32(127) / most))
        rounded = codes * (most / np.float32(127)).astype(np.float64)
        product: np.ndarray[Any, Any] = rounded.reshape(rows.shape) @ self.numbers
        return product


def multiplied(matrix: Any, rows: np.ndarray[Any, Any], columns: int, **options: Any) -> np.ndarray[Any, Any]:
    out = np.full((len(rows), columns), np.nan, np.float32)
    matrix.multiply(rows, out, **options)
    return out


SHAPES = [(4, 256, 70, 32), (4, 640, 33, 128), (4, 48, 17, 16), (4, 8, 1, 8), (8, 192, 40, 32), (8, 20, 3, 20)]


@pytest.mark.parametrize(("bits", "inputs", "columns", "block"), SHAPES)
def test_products_with_codes(bits: int, inputs: int, columns: int, block: int) -> None:
    matrix = Coded(bits, inputs, columns, block)
    for count in ROW_COUNTS:
        rows = np.random.default_rng(count).standard_normal((count, inputs)).astype(np.float32)
        plain = multiplied(matrix.packed, rows, columns, instructions="plain")
        expected = matrix.product(rows)
        assert np.abs(plain - expected).max() <= STEP_PRODUCT_RELATIVE * np.abs(expected).max()
        for name in HERE:
            for threads in range(1, min(2, native_cores()) + 1):
                same = multiplied(matrix.packed, rows, columns, instructions=name, threads=threads)
                np.testing.assert_array_equal(same, plain, err_msg=f"{name}, {threads} threads")


def native_cores() -> int:
    from sdrpn._native import cores

    return int(cores())


@pytest.mark.parametrize(("inputs", "columns"), [(515, 37), (64, 16), (1, 1), (3, 90)])
def test_products_with_float16(inputs: int, columns: int) -> None:
    rng = np.random.default_rng(inputs)
    numbers = rng.standard_normal((inputs, columns)).astype(np.float16)
    numbers.flat[0] = 6e-8  # subnormal
    matrix = native.PackedMatrix.half(numbers.view(np.uint16))
    assert matrix.nbytes == -(-columns // 16) * 16 * inputs * 2
    for count in ROW_COUNTS:
        rows = rng.standard_normal((count, inputs)).astype(np.float32)
        plain = multiplied(matrix, rows, columns, instructions="plain")
        expected = rows.astype(np.float64) @ numbers.astype(np.float64)
        assert np.abs(plain - expected).max() <= STEP_PRODUCT_RELATIVE * max(1, np.abs(expected).max())
        for name in HERE:
            np.testing.assert_array_equal(multiplied(matrix, rows, columns, instructions=name), plain)


def test_threads_that_ask_at_once_and_a_child_process() -> None:
    """One has the helpers, others work alone; after a fork there are helpers again."""
    threads = min(2, native_cores())
    matrix = Coded(4, 256, 512, 32)
    rows = np.random.default_rng(0).standard_normal((1, 256)).astype(np.float32)
    expected = multiplied(matrix.packed, rows, 512)

    def asked(_: int) -> bool:
        return all(np.array_equal(multiplied(matrix.packed, rows, 512, threads=threads), expected) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(asked, range(8)))
    child = os.fork()
    if child == 0:
        os._exit(0 if asked(0) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_zeros_and_of_what_is_no_number(bits: int) -> None:
    matrix = Coded(bits, 96, 20, 32)
    rows = np.zeros((4, 96), np.float32)
    rows[1, 40] = np.nan
    rows[2, 40] = -np.inf
    rows[3] = 1e-38
    for name in HERE:
        out = multiplied(matrix.packed, rows, 20, instructions=name)
        np.testing.assert_array_equal(out[[0, 3]], 0)
        assert np.isnan(out[[1, 2]]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "codes have 3 bits; expected 4 or 8"),
        ({"inputs": 48}, "expected 192"),
        ({"inputs": 36, "codes": np.zeros(144, np.uint8)}, "expected blocks of 8, or several times as many"),
        ({"scales": np.zeros((2, 7), np.uint16)}, r"scales have another shape; expected \(blocks, 8\)"),
        ({"columns": 0}, r"a matrix of \(64, 0\); expected sides of 1 to"),
    ],
    ids=["bits", "codes", "blocks", "scales", "columns"],
)
def test_matrices_that_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"codes": np.zeros(256, np.uint8), "scales": np.zeros((2, 8), np.uint16)}
    given |= {"bits": 4, "inputs": 64, "columns": 8} | change
    codes, scales = given.pop("codes"), given.pop("scales")
    with pytest.raises(ValueError, match=message):
        native.PackedMatrix.coded(codes, scales, **given)


@pytest.mark.parametrize(
    ("rows", "out", "options", "message"),
    [
        ((1, 7), (1, 4), {}, "rows have 7 numbers; expected 8"),
        ((2, 8), (1, 4), {}, r"the result has the shape \(1, 4\); expected \(2, 4\)"),
        ((1, 8), (1, 4), {"threads": 0}, "threads is 0; expected 1 to"),
        ((1, 8), (1, 4), {"instructions": "neon9"}, "has no instructions neon9"),
    ],
)
def test_products_that_are_refused(
    rows: tuple[int, int], out: tuple[int, int], options: dict[str, Any], message: str
) -> None:
    matrix = native.PackedMatrix.half(np.zeros((8, 4), np.uint16))
    with pytest.raises(ValueError, match=message):
        matrix.multiply(np.zeros(rows, np.float32), np.zeros(out, np.float32), **options)


class Caches:
    """Random pages, NaN where there is no row, and one new row of each sequence."""

    def __init__(self, batch: int, heads: int, kv_heads: int, width: int, blocks: int, dtype: Any) -> None:
        rng = np.random.default_rng(heads * width)
        self.heads, self.width, self.blocks, self.dtype = heads, width, blocks, dtype
        shape = (batch * blocks, kv_heads, native.PAGE_ROWS, width)
        self.keys, self.values = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        self.past = rng.integers(0, blocks * native.PAGE_ROWS, batch).astype(np.int32)
        self.past[0] = blocks * native.PAGE_ROWS - 1
        for pages in (self.keys, self.values):
            for sequence, past in enumerate(self.past):
                block, row = divmod(int(past), native.PAGE_ROWS)
                own = pages[sequence * blocks : (sequence + 1) * blocks]
                own[block, :, row:] = np.nan
                own[block + 1 :] = np.nan
        self.queries, self.new_keys, self.new_values = (
            rng.standard_normal((batch, count * width)).astype(np.float32) for count in (heads, kv_heads, kv_heads)
        )

    def attend(self, window: int, **options: Any) -> tuple[np.ndarray[Any, Any], ...]:
        keys, values, out = self.keys.copy(), self.values.copy(), np.full_like(self.queries, np.nan)
        numbers = np.uint16 if self.dtype == np.float16 else np.float32
        pages = (keys.view(numbers), values.view(numbers))
        new = (self.queries, self.new_keys, self.new_values)
        native.attend(*new, *pages, self.past, out, scale=self.width**-0.5, window=window, **options)
        return out, keys, values

    def expected(self, window: int, keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        kv_heads = keys.shape[1]
        out = np.empty((len(self.past), self.heads, self.width))
        for sequence, past in enumerate(self.past):
            first = max(0, past + 1 - window) if window else 0
            own = [
                pages[sequence * self.blocks : (sequence + 1) * self.blocks]
                .swapaxes(0, 1)
                .reshape(kv_heads, -1, self.width)[:, first : past + 1]
                .astype(np.float64)
                for pages in (keys, values)
            ]
            for head in range(self.heads):
                of = head * kv_heads // self.heads
                query = self.queries[sequence, head * self.width :][: self.width].astype(np.float64)
                scores = own[0][of] @ query * self.width**-0.5
                weights = np.exp(scores - scores.max())
                out[sequence, head] = weights / weights.sum() @ own[1][of]
        return out.reshape(self.queries.shape)


ATTENTIONS = [
    (1, 4, 4, 64, 3, 0, np.float16),
    (2, 8, 2, 128, 4, 0, np.float16),
    (1, 6, 2, 32, 5, 40, np.float32),
    (3, 4, 1, 16, 2, 7, np.float16),
    (1, 2, 2, 80, 2, 0, np.float32),
    (3, 4, 2, 64, 13, 0, np.float16),
    (2, 2, 1, 48, 11, 200, np.float32),
]


@pytest.mark.parametrize(("batch", "heads", "kv_heads", "width", "blocks", "window", "dtype"), ATTENTIONS)
def test_attention(batch: int, heads: int, kv_heads: int, width: int, blocks: int, window: int, dtype: Any) -> None:
    caches = Caches(batch, heads, kv_heads, width, blocks, dtype)
    plain, keys, values = caches.attend(window, instructions="plain")
    assert np.abs(plain - caches.expected(window, keys, values)).max() <= STEP_ATTENTION_ABS
    for sequence, past in enumerate(caches.past):
        block, row = divmod(int(past), native.PAGE_ROWS)
        for pages, new in ((keys, caches.new_keys), (values, caches.new_values)):
            there = pages[sequence * blocks + block, :, row]
            np.testing.assert_array_equal(there, new[sequence].reshape(kv_heads, width).astype(dtype))
    for name in HERE:
        for threads in range(1, min(2, native_cores()) + 1):
            found = caches.attend(window, instructions=name, threads=threads)
            for got, same in zip(found, (plain, keys, values), strict=True):
                np.testing.assert_array_equal(got, same, err_msg=f"{name}, {threads} threads")


def test_numbers_become_float16_as_numpy_rounds_them() -> None:
    """All exponents, ties between two neighbours, numbers that are too large or next to nothing."""
    halves = np.arange(0, 0x7C00, 7, dtype=np.uint16).view(np.float16).astype(np.float32)
    following = (halves.astype(np.float16).view(np.uint16) + 1).view(np.float16).astype(np.float32)
    ties = (halves + following) / 2
    numbers = np.concatenate([halves, ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf), [7e4, 1e-9, 65519.99]])
    numbers = np.concatenate([numbers, -numbers]).astype(np.float32)
    numbers = numbers[: len(numbers) // 16 * 16]
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16)
    for row in numbers.reshape(-1, 16):
        caches = np.zeros((2, 1, 1, native.PAGE_ROWS, 16), np.uint16)
        flat = row.reshape(1, 16)
        native.attend(flat, flat, flat, *caches, np.zeros(1, np.int32), np.zeros((1, 16), np.float32), scale=0.0)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(caches[0, 0, 0, 0].view(np.float16), row.astype(np.float16))
    assert np.isinf(expected).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"past": np.array([64], np.int32)}, "64 rows before the new one; expected 0 to 63"),
        ({"past": np.array([-1], np.int32)}, "-1 rows before the new one"),
        ({"keys": np.zeros((2, 1, 31, 16), np.float32)}, "different shapes"),
        ({"keys": np.zeros((2, 1, 32, 16), np.uint16)}, "caches have other types"),
        ({"queries": np.zeros((1, 24), np.float32)}, "rows have other shapes"),
        ({"window": -1}, "window is -1; expected at least 0"),
        ({"threads": 10_000}, "threads is 10000; expected 1 to"),
    ],
)
def test_attention_that_is_refused(change: dict[str, Any], message: str) -> None:
    row = np.zeros((1, 16), np.float32)
    given: dict[str, Any] = {"queries": row, "new_keys": row, "new_values": row}
    given |= {"keys": np.zeros((2, 1, 32, 16), np.float32), "values": np.zeros((2, 1, 32, 16), np.float32)}
    given |= {"past": np.zeros(1, np.int32), "out": np.zeros((1, 16), np.float32), "scale": 1.0} | change
    with pytest.raises(ValueError, match=message):
        native.attend(**given)
