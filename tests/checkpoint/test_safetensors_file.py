"""The file format, against the library that defines it."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from sdrpn.checkpoint.safetensors_file import SafetensorsReader, SafetensorsWriter
from sdrpn.errors import BadCheckpoint


def some_arrays() -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(0)
    return {
        "matrix": draw.standard_normal((3, 5), dtype=np.float32),
        "half": draw.standard_normal(7).astype(np.float16),
        "brain": draw.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(3, np.int64),
        "empty": np.empty((0, 4), np.float32),
    }


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    arrays = some_arrays()
    save_file(arrays, tmp_path / "a.safetensors")
    reader = SafetensorsReader(tmp_path / "a.safetensors")
    assert reader.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert reader.read(name).dtype == array.dtype
        np.testing.assert_array_equal(reader.read(name), array)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(0.5, np.float32),
        "c": np.empty((0, 2)),
    }
    path = tmp_path / "a.safetensors"
    shapes = {name: array.shape for name, array in arrays.items()}
    with SafetensorsWriter(path, shapes, np.dtype(np.float16)) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array.astype(np.float16))


def test_an_array_maps_its_own_bytes_alone(tmp_path: Path) -> None:
    save_file({"large": np.zeros(1 << 20, np.float32), "small": np.ones(10, np.float32)}, tmp_path / "a.safetensors")
    array = SafetensorsReader(tmp_path / "a.safetensors").read("small")
    owner: Any = array
    while not isinstance(owner, mmap.mmap):
        owner = owner.base
    assert len(owner) < 2 * mmap.ALLOCATIONGRANULARITY
    assert not array.flags.writeable


def test_the_writer_takes_the_promised_tensors_only(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "a", {"a": (2,), "b": (3,)}, np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"b \(3,\) was written where a \(2,\) was expected"), writer:
        writer.write("b", np.zeros(3))
    writer = SafetensorsWriter(tmp_path / "a", {"a": (2,), "b": (3,)}, np.dtype(np.float32))
    with pytest.raises(ValueError, match="a lacks b"), writer:
        writer.write("a", np.zeros(2))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_arrays(), path)
    whole = path.read_bytes()
    for kept in (0, 5, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(BadCheckpoint, match=r"a\.safetensors (is|has).*download"):
            SafetensorsReader(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([1, 2], "is not a safetensors file: its header is not a JSON object"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "a has no shape or data_offsets of whole numbers"),
        ({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}, "a has no shape or data_offsets"),
        ({"a": {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 8]}}, "a has no shape or data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, "a has no shape or data_offsets"),
        ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, "a has no shape or data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, "a has no shape or data_offsets"),
        ({"a": {"dtype": 3, "shape": [2], "data_offsets": [0, 8]}}, "a has no dtype"),
        ({"a": 3}, "a has no dtype"),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [8, 0]}}, "a has 1 dimensions and bytes"),
        ({"a": {"dtype": "F32", "shape": [1] * 33, "data_offsets": [0, 4]}}, "a has 33 dimensions"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "4 bytes at its end belong to no tensor"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "4 bytes before a belong to no tensor"),
        ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 16]}}, "is truncated: a ends at byte"),
        ({"a" * 5000: 3}, r"a\.\.\. \(5000 characters\) has no dtype"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, r"bytes 0 to 8, but F32 \[3\] takes 12"),
        ({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, "header is damaged"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "header is damaged"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "is truncated: a ends at byte"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: object, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        SafetensorsReader(raw_file(tmp_path / "a.safetensors", header, bytes(8)))


def test_bytes_that_are_not_a_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((4).to_bytes(8, "little") + b"\xff\xfe{}")
    with pytest.raises(BadCheckpoint, match="is not a safetensors file: its header is not JSON") as caught:
        SafetensorsReader(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadCheckpoint, match="is a folder; expected a file"):
        SafetensorsReader(tmp_path)


def test_tensors_over_each_other_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2]}
    for offsets in ([0, 8], [4, 12]):
        header = {"a": {**entry, "data_offsets": [0, 8]}, "b": {**entry, "data_offsets": offsets}}
        with pytest.raises(BadCheckpoint, match="b overlaps a; the header is damaged"):
            SafetensorsReader(raw_file(tmp_path / "a.safetensors", header, bytes(12)))


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = f'{{"a":{entry % (0, 4)},"a":{entry % (4, 8)}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(BadCheckpoint, match="a occurs twice"):
        SafetensorsReader(tmp_path / "a.safetensors")


def test_a_header_without_end_is_not_parsed(tmp_path: Path) -> None:
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little"))
        file.truncate(100_000_000)
    with pytest.raises(BadCheckpoint, match="has a header of 90000000 bytes; expected 4194304 at most"):
        SafetensorsReader(tmp_path / "a.safetensors")


@pytest.mark.parametrize("code", ["C64", "F8_E8M0", "F8_E4M3FNUZ", "F4", "F6_E2M3", "F6_E3M2", "I4", "UNKNOWN"])
def test_a_type_that_nobody_reads_stops_nothing(tmp_path: Path, code: str) -> None:
    odd = {"dtype": code, "shape": [1], "data_offsets": [8, 16 if code == "C64" else 9]}
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "odd": odd}
    content = np.ones(2, np.float32).tobytes() + bytes(8 if code == "C64" else 1)
    reader = SafetensorsReader(raw_file(tmp_path / "a.safetensors", header, content))
    np.testing.assert_array_equal(reader.read("w"), np.ones(2))
    assert reader.tensors["odd"].shape == (1,)
    if code in ("F4", "F6_E2M3", "F6_E3M2", "I4", "UNKNOWN"):
        with pytest.raises(BadCheckpoint, match=f"odd is stored as {code}, which is not supported"):
            reader.read("odd")
