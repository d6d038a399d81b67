"""Memory that goes back to the system: pages of mapped files."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from sdrpn.host.freed_memory import drop_file_pages, trim_heap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped on Linux alone")
SIZE = 1 << 20


def resident_bytes(path: Path) -> int:
    """How much of a file's mappings is in memory, as Linux lists it."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    total = 0
    for line in lines:
        if line.endswith(str(path)):
            total += 1024 * int(next(other for other in lines if other.startswith("Rss:")).split()[1])
    return total


def test_pages_of_a_file_are_dropped_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
        assert sum(mapped[::4096]) == 0
        assert resident_bytes(path) == SIZE
        assert drop_file_pages([tmp_path / "another.bin"]) == 0
        assert resident_bytes(path) == SIZE
        assert drop_file_pages([path]) == SIZE
        assert resident_bytes(path) == 0
        assert mapped[4095] == 255


def test_what_was_changed_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as mapped:
        mapped[7] = 1
        assert drop_file_pages([path]) == 0
        assert mapped[7] == 1


def test_the_heap_can_be_trimmed() -> None:
    trim_heap()
