"""PyTorch's `.bin` files: the numbers are those that torch.load gives, and nothing in a file is run."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdrpn.checkpoint.torch_file import TorchReader
from sdrpn.errors import BadCheckpoint

torch.manual_seed(0)


def save(path: Path, state: object, *, legacy: bool = False) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def repacked(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """As a tool for archives packs it again: smaller records."""
    out = path.with_suffix(".packed.bin")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w", method) as after:
        for record in before.infolist():
            after.writestr(record.filename, before.read(record.filename))
    return out


def require_same(reader: TorchReader, state: dict[str, torch.Tensor]) -> None:
    assert set(reader.tensors) == set(state)
    for name, tensor in state.items():
        array = reader.read(name)
        wide = tensor.detach().to(torch.float64) if tensor.dtype == torch.bfloat16 else tensor.detach()
        assert array.shape == tuple(tensor.shape)
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64) if tensor.dtype == torch.bfloat16 else array, wide)


def plain_state() -> dict[str, torch.Tensor]:
    base = torch.randn(6, 8)
    return {
        "f32": torch.randn(3, 5),
        "f16": torch.randn(4).half(),
        "bf16": torch.randn(4, 2).bfloat16(),
        "f64": torch.randn(2, 2, 2, dtype=torch.float64),
        "i64": torch.arange(7),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "transposed": base.t(),
        "part": base[2:4, 1::3],
        "expanded": torch.randn(1, 3).expand(5, 3),
        "tied": base,
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    }


class TestNumbers:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_every_type_view_and_parameter(self, tmp_path: Path, legacy: bool) -> None:
        state = plain_state()
        require_same(TorchReader(save(tmp_path / "a.bin", state, legacy=legacy)), state)

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
    def test_an_archive_that_was_packed_again(self, tmp_path: Path, method: int) -> None:
        state = plain_state()
        require_same(TorchReader(repacked(save(tmp_path / "a.bin", state), method)), state)

    def test_the_state_of_a_module_with_its_metadata(self, tmp_path: Path) -> None:
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        state = module.state_dict()
        assert isinstance(state, OrderedDict)
        require_same(TorchReader(save(tmp_path / "a.bin", state)), dict(state))

    def test_bytes_in_the_other_order(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.bin", {"w": torch.arange(4, dtype=torch.float32)})
        swapped = tmp_path / "b.bin"
        with zipfile.ZipFile(path) as before, zipfile.ZipFile(swapped, "w") as after:
            for record in before.infolist():
                content = before.read(record.filename)
                if record.filename.endswith("/byteorder"):
                    content = b"big"
                elif "/data/" in record.filename:
                    content = np.frombuffer(content, "<f4").astype(">f4").tobytes()
                after.writestr(record.filename, content)
        np.testing.assert_array_equal(TorchReader(swapped).read("w"), np.arange(4, dtype=np.float32))

    def test_a_tensor_maps_its_own_bytes(self, tmp_path: Path) -> None:
        array = TorchReader(save(tmp_path / "a.bin", {"w": torch.randn(64, 64)})).read("w")
        assert not array.flags.writeable
        assert not array.flags.owndata


def odd_entries() -> dict[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that are experimental, or about to be dropped
        return _odd_entries()


def _odd_entries() -> dict[Any, Any]:
    return {
        "quantised": torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
        "complex": torch.randn(2, dtype=torch.complex64),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
        "scales": torch.tensor([1, 2], dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "packed": torch.tensor([1, 2], dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "half complex": torch.zeros(2, dtype=torch.complex32),
        "bits": torch.zeros(2, dtype=torch.uint16),
        "sparse": torch.eye(3).to_sparse(),
        "rows": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, device="meta"),
        "nothing": None,
        "epoch": 3,
        "name": "x",
        "nested": {"a": [1, torch.zeros(1)]},
        3: torch.zeros(1),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", list(odd_entries()))
def test_odd_entries_beside_weights_stop_nothing(tmp_path: Path, key: Any, legacy: bool) -> None:
    weight = torch.randn(3, 2)
    try:
        path = save(tmp_path / "a.bin", {"before": weight, key: odd_entries()[key], "after": weight + 1}, legacy=legacy)
    except (RuntimeError, KeyError, TypeError):
        pytest.skip("PyTorch itself cannot write this one")
    reader = TorchReader(path)
    np.testing.assert_array_equal(reader.read("before"), weight)
    np.testing.assert_array_equal(reader.read("after"), weight + 1)


@pytest.mark.parametrize(
    ("key", "kind"),
    [("quantised", "quantised"), ("sparse", "sparse"), ("meta", "meta, without data")],
)
def test_one_without_plain_numbers_is_refused_when_it_is_asked_for(tmp_path: Path, key: str, kind: str) -> None:
    reader = TorchReader(save(tmp_path / "a.bin", {key: odd_entries()[key], "w": torch.zeros(1)}))
    with pytest.raises(BadCheckpoint, match=f"{key} is stored as {kind}, which has no plain numbers"):
        reader.read(key)


# Files that are damaged, or made to harm ----------------------------------------------------------------------------


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def archive(path: Path, pickled: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in records.items():
            file.writestr(f"a/data/{name}", content)
    return path


def read_all(path: Path) -> None:
    reader = TorchReader(path)
    for name in reader.tensors:
        reader.read(name)


def refused(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("function", [print, eval, Path, bytearray, torch.load, torch.hub.load])
def test_no_function_is_called(tmp_path: Path, function: Callable[..., object]) -> None:
    pickled = pickle.dumps({"w": Call(function, str(tmp_path / "proof"))}, protocol=2)
    assert "Python objects that are not tensors" in refused(archive(tmp_path / "a.bin", pickled))


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}q\x00",
        b"\x80\x02]q\x00.",
        b"\x80\x02}.",
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",  # BYTEARRAY8 of 8 GB
        b"\x80\x02}r\xff\xff\xff\xff.",  # the last place of a memo with four thousand million
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8f(K\x01\x90.",
        b"(" * 100_000 + b".",
        b"\x80\x02" + b"}q\x00" * 1000 + b".",
        b"L" + b"9" * 10_000 + b"L\n.",
        b"\x80\x02" + b"(" + b"K\x01" * 10 + b"t" + b"2\x86" * 64 + b"}" + b"q\x00" + b".",
    ],
)
def test_pickles_that_are_none_or_cost_without_end(tmp_path: Path, pickled: bytes) -> None:
    assert str(tmp_path / "a.bin") in refused(archive(tmp_path / "a.bin", pickled))


def test_a_key_that_takes_for_ever_to_hash(tmp_path: Path) -> None:
    nested = b"K\x01K\x02\x86" + b"2\x86" * 60  # a pair of itself, sixty times
    assert "keys of type tuple" in refused(archive(tmp_path / "a.bin", b"\x80\x02}" + nested + b"K\x01s."))


def test_a_name_that_occurs_twice(tmp_path: Path) -> None:
    pickled = b"\x80\x02}(X\x01\x00\x00\x00wK\x01X\x01\x00\x00\x00wK\x02u."
    assert "w occurs twice" in refused(archive(tmp_path / "a.bin", pickled))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_occurs_twice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.bin", {"w": torch.zeros(2)})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/data/0", b"12345678")
    assert "'a/data/0' occurs twice in the archive" in refused(path)


def test_records_over_each_other(tmp_path: Path) -> None:
    path = save(tmp_path / "a.bin", {"v": torch.ones(2), "w": torch.zeros(2)})
    with zipfile.ZipFile(path) as file:
        first, second = (file.getinfo(f"a/data/{key}").header_offset for key in (0, 1))
    content = path.read_bytes()
    at = content.rindex(second.to_bytes(4, "little"))  # in the directory
    path.write_bytes(content[:at] + (first + 1).to_bytes(4, "little") + content[at + 4 :])
    assert "overlap in the archive" in refused(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut(tmp_path: Path, legacy: bool, share: float) -> None:
    path = save(tmp_path / "a.bin", {"w": torch.randn(64, 64)}, legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "download it again" in refused(path)


def test_a_record_shorter_than_its_storage(tmp_path: Path) -> None:
    path = save(tmp_path / "a.bin", {"w": torch.randn(8)})
    out = tmp_path / "b.bin"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(out, "w") as after:
        for record in before.infolist():
            content = before.read(record.filename)
            after.writestr(record.filename, content[:-4] if "/data/" in record.filename else content)
    assert "has 28 bytes, the pickle says 32" in refused(out)


@pytest.mark.parametrize("state", [[torch.zeros(1)], torch.zeros(1), {}, {"a": 1}, {"a": {"b": torch.zeros(1)}}])
def test_what_is_no_dict_of_tensors(tmp_path: Path, state: object) -> None:
    assert "is not a dict of tensors" in refused(save(tmp_path / "a.bin", state))


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\x03\x04" + b"\0" * 100, b"\x80\x02" + b"\0" * 100])
def test_what_is_no_file_of_pytorch(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    assert "a.bin" in refused(tmp_path / "a.bin")
