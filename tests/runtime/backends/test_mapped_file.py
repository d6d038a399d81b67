"""TensorRT 10.3 asks for an engine in one piece: it gets a view of the file, not a second copy of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdrpn.runtime.backends.mapped_file import MappedFile
from sdrpn.runtime.backends.tensorrt_library import _reader

SIZE = 32 << 20


class StreamReader:
    """Base class of the bindings."""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "trunk.engine"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def test_reads_follow_each_other(engine: Path) -> None:
    with engine.open("rb") as stream:
        file = MappedFile(stream)
    assert bytes(file.read(3)) == b"\x00\x01\x02"
    assert bytes(file.read(2)) == b"\x03\x04"
    assert bytes(file.read(0)) == b""
    assert len(file.read(2 * SIZE)) == SIZE - 5
    assert bytes(file.read(1)) == b""


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as stream:
        assert bytes(MappedFile(stream).read(10)) == b""


def test_a_whole_engine_in_one_call_is_not_held(engine: Path) -> None:
    """What the bindings of 10.3 do: read(size), then copy as many bytes as the buffer has."""
    trt: Any = SimpleNamespace(IStreamReader=StreamReader)
    target = bytearray(SIZE)
    with engine.open("rb") as stream:
        reader = _reader(trt, stream)
        tracemalloc.start()
        buffer = reader.read(SIZE)
        memoryview(target)[: len(buffer)] = buffer
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
    assert target == engine.read_bytes()


def test_later_releases_read_in_pieces(engine: Path) -> None:
    trt: Any = SimpleNamespace(
        IStreamReaderV2=StreamReader, SeekPosition=SimpleNamespace(SET="set", CUR="current", END="end")
    )
    with engine.open("rb") as stream:
        reader = _reader(trt, stream)
        assert len(reader.read(1 << 40, 0)) <= SIZE
        assert reader.seek(0, "set")
        assert reader.read(2, 0) == b"\x00\x01"
