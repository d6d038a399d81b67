"""Files that are shorter than their containers say, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrpn.frames.cut_off import what_is_missing

EBML = bytes.fromhex("1a45dfa3 84 00000000")
PACKET = bytes([0x47]) + bytes(187)
TIMED_PACKET = bytes(4) + PACKET


def matroska(size: bytes, content: int) -> bytes:
    return EBML + bytes.fromhex("18538067") + size + bytes(content)


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b"", None),
        (b"\x1a\x45", None),
        (EBML, None),
        (matroska(b"\x85", 5), None),
        (matroska(b"\x85", 4), "it has 18 of 19 bytes"),
        (matroska(b"\x85", 9), None),  # what follows a segment is not its own
        (matroska(b"\x40\x05", 4), "it has 19 of 20 bytes"),
        (matroska(b"\x01\x00\x00\x00\x00\x00\x03\xe8", 999), "it has 1,020 of 1,021 bytes"),
        (matroska(b"\x01\xff\xff\xff\xff\xff\xff\xff", 9), None),  # unknown: it was written as it came
        (matroska(b"\xff", 9), None),
        (matroska(b"\x00", 9), None),
        (3 * PACKET, None),
        (4 * PACKET[:188] + PACKET[:20], "it ends in the middle of a packet"),
        (4 * TIMED_PACKET, None),
        (4 * TIMED_PACKET + b"\0", "it ends in the middle of a packet"),
        (2 * PACKET + b"x" * 500, None),
    ],
)
def test_what_is_missing(tmp_path: Path, content: bytes, missing: str | None) -> None:
    (tmp_path / "video").write_bytes(content)
    assert what_is_missing(tmp_path / "video") == missing
