"""Weights: the same places in both dialects, page-aligned, converted one tensor at a time, and never infinite."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from sdrpn.errors import RunFailed
from sdrpn.export.weights import WeightTable, matmul, norm, plain

PAGE_BYTES = 4096
NOTHING: frozenset[str] = frozenset()


class ArrayReader:
    """A reader of tensors that are arrays."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self._arrays = arrays

    def read(self, name: str, /) -> Any:
        return self._arrays[name]


def told_nothing(size_bytes: int) -> None:
    """Progress that is not shown."""


def table(precision: Any = "fp32") -> WeightTable:
    return WeightTable(
        "group",
        precision,
        [
            norm("norm.weight", "n", (3,)),
            matmul("packed.weight", ["a", "b"], 2, 5),
            plain("bias", ["c", "d"], (4,)),
            norm("other.weight", "m", (1, 2)),
        ],
    )


def reader(**changes: Any) -> ArrayReader:
    arrays: dict[str, Any] = {
        "n": np.array([1.0, 2.0, 3.0], np.float32),
        "m": np.array([4.0, 5.0], np.float32),
        "a": np.arange(6, dtype=np.float32).reshape(3, 2),
        "b": -np.arange(4, dtype=np.float32).reshape(2, 2),
        "c": np.array([0.5], np.float32),
        "d": np.array([1.5, 2.5, 3.5], np.float32),
    }
    return ArrayReader(arrays | changes)


def stored(weights: WeightTable, folder: Path, name: str) -> Any:
    """The tensor as a reader of the ONNX file finds it."""
    tensor = weights.external_tensor(name)
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name, base_dir=folder
    ).numpy()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_written_is_what_the_graph_points_to(tmp_path: Path, precision: str) -> None:
    weights = table(precision)
    weights.write(tmp_path, reader(), NOTHING, told_nothing)
    packed = stored(weights, tmp_path, "packed.weight")
    assert packed.dtype == (np.float32 if precision == "fp32" else np.float16)
    np.testing.assert_array_equal(packed, [[0, 2, 4, 0, -2], [1, 3, 5, -1, -3]])  # (in, out): columns are outputs
    np.testing.assert_array_equal(stored(weights, tmp_path, "bias"), [0.5, 1.5, 2.5, 3.5])
    assert stored(weights, tmp_path, "norm.weight").dtype == np.float32  # whatever the precision
    np.testing.assert_array_equal(stored(weights, tmp_path, "other.weight"), [[4, 5]])


def test_tensors_start_on_pages_and_sizes_are_as_planned(tmp_path: Path) -> None:
    weights = table()
    weights.write(tmp_path, reader(), NOTHING, told_nothing)
    for name in ("norm.weight", "packed.weight", "bias", "other.weight"):
        assert (weights.external_tensor(name).offset or 0) % PAGE_BYTES == 0
    assert {file: (tmp_path / file).stat().st_size for file in weights.files} == weights.files


def test_norms_lie_in_a_file_that_all_precisions_share() -> None:
    single, half = table("fp32"), table("fp16")
    assert set(single.files) & set(half.files) == {"weights/group.norm.fp32.bin"}
    shared = [weights.external_tensor("norm.weight") for weights in (single, half)]
    assert shared[0].offset == shared[1].offset


def test_tensors_of_other_tables_are_pointed_to_but_not_written(tmp_path: Path) -> None:
    shared = WeightTable("embed", "fp32", [plain("embed.weight", ["c"], (1,))])
    weights = WeightTable("trunk", "fp32", [norm("norm.weight", "n", (3,))], shared)
    weights.write(tmp_path, reader(), NOTHING, told_nothing)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["trunk.norm.fp32.bin"]
    assert weights.external_tensor("embed.weight").location == "weights/embed.fp32.bin"


def test_files_that_are_there_are_skipped_and_never_overwritten(tmp_path: Path) -> None:
    weights = table()
    weights.write(tmp_path, reader(), frozenset({"weights/group.fp32.bin"}), told_nothing)
    assert not (tmp_path / "weights" / "group.fp32.bin").exists()
    with pytest.raises(FileExistsError):
        weights.write(tmp_path, reader(), NOTHING, told_nothing)


def test_progress_adds_up_to_the_files_sizes(tmp_path: Path) -> None:
    weights, pieces = table(), list[int]()
    weights.write(tmp_path, reader(), NOTHING, pieces.append)
    assert sum(pieces) == sum(weights.files.values())
    assert len(pieces) == 4


class TestConversion:
    def write(self, folder: Path, array: Any, precision: Any = "fp16") -> Any:
        weights = WeightTable("group", precision, [plain("llm.embed.weight", ["x"], (2, 2))])
        weights.write(folder, ArrayReader({"x": array}), NOTHING, told_nothing)
        return stored(weights, folder, "llm.embed.weight")

    @pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_every_source_type(self, tmp_path: Path, precision: str, kind: Any) -> None:
        values = np.array([[1.0, -2.5], [0.15625, 65280.0]])  # exact in all of them
        found = self.write(tmp_path, values.astype(kind), precision)
        assert found.dtype == (np.float32 if precision == "fp32" else np.float16)
        np.testing.assert_array_equal(found, values)

    def test_bfloat16_keeps_every_bit_in_fp32(self, tmp_path: Path) -> None:
        values = np.array([[1e-38, 3e38], [-0.0, 1 / 3]]).astype(ml_dtypes.bfloat16)
        found = self.write(tmp_path, values, "fp32")
        np.testing.assert_array_equal(found.view(np.uint32) >> 16, values.view(np.uint16))

    def test_small_values_become_subnormal_or_zero_in_fp16(self, tmp_path: Path) -> None:
        found = self.write(tmp_path, np.array([[1e-7, 1e-9], [6e-5, -1e-30]], np.float32))
        np.testing.assert_array_equal(found, np.array([[1e-7, 0], [6e-5, 0]], np.float16))

    @pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16, np.float64])
    @pytest.mark.parametrize("value", [65536.0, -70000.0, 1e30, np.inf, np.nan])
    def test_what_fp16_cannot_hold_is_refused_by_name(self, tmp_path: Path, value: float, kind: Any) -> None:
        array = np.array([[1.0, 2.0], [value, 3.0]], kind)
        message = r"llm\.embed\.weight holds [\w.+]+, fp16 ends at 65504; export in bf16 or fp32"
        with pytest.raises(RunFailed, match=message) as error:
            self.write(tmp_path, array)
        assert "\n" not in str(error.value)
        np.testing.assert_array_equal(self.write(tmp_path / "again", array, "fp32"), array.astype(np.float32))

    def test_the_largest_fp16_value_passes(self, tmp_path: Path) -> None:
        array = np.array([[65504.0, -65504.0], [0, 1]], np.float32)
        np.testing.assert_array_equal(self.write(tmp_path, array), array)

    def test_a_source_of_another_shape_is_our_own_mistake(self, tmp_path: Path) -> None:
        with pytest.raises(RunFailed, match=r"llm\.embed\.weight: made \(3,\) from x, expected \(2, 2\); report this"):
            self.write(tmp_path, np.zeros(3, np.float32))


class FreshReader:
    """Makes each array when asked for it, and keeps none."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def read(self, name: str, /) -> Any:
        return np.full(self.shape, 0.5, np.float32)


def many_layers(side: int) -> Iterator[Any]:
    for layer in range(12):
        yield matmul(f"layers.{layer}.qkv", [f"{layer}.{part}" for part in "qkv"], side, 3 * side)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_memory_is_that_of_a_few_tensors_whatever_the_number_of_layers(tmp_path: Path, precision: Any) -> None:
    side = 256
    weights = WeightTable("group", precision, many_layers(side))
    packed_bytes = 3 * side * side * 4
    tracemalloc.start()
    try:
        weights.write(tmp_path, FreshReader((side, side)), NOTHING, told_nothing)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(weights.files.values()) >= 6 * packed_bytes
    assert peak_bytes <= 3.5 * packed_bytes, f"{peak_bytes / packed_bytes:.1f} times the largest packed tensor"
