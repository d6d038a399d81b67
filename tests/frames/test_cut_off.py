"""Files that are shorter than their containers say, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrpn.frames.cut_off import what_is_missing

EBML = bytes.fromhex("1a45dfa3 84 00000000")
PACKET = bytes([0x47]) + bytes(187)
TIMED_PACKET = bytes(4) + PACKET


SHORT = b"\xa3\x83ab"  # a block that lacks a byte
UNKNOWN = b"\xff"
CLUSTER, BLOCK, VOID = b"\x1f\x43\xb6\x75", b"\xa3", b"\xec"
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(14)


def matroska(size: bytes, content: int | bytes) -> bytes:
    return EBML + bytes.fromhex("18538067") + size + (content if isinstance(content, bytes) else bytes(content))


def asf(size: int, flags: int) -> bytes:
    """Up to the flags in the properties of a file."""
    properties = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365") + bytes(24) + size.to_bytes(8, "little") + bytes(40)
    return ASF + properties + flags.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b"", None),
        (b"\x1a\x45", None),
        (EBML, None),
        (matroska(b"\x85", 5), None),
        (matroska(b"\x85", 4), "it has 18 of at least 19 bytes"),
        (matroska(b"\x85", 9), None),  # what follows a segment is not its own
        (matroska(b"\x40\x05", 4), "it has 19 of at least 20 bytes"),
        (matroska(b"\x01\x00\x00\x00\x00\x00\x03\xe8", 999), "it has 1,020 of at least 1,021 bytes"),
        (matroska(b"\x01\xff\xff\xff\xff\xff\xff\xff", 9), None),  # unknown: it was written as it came
        (matroska(b"\xff", 9), None),
        (matroska(b"\x00", 9), None),
        (matroska(UNKNOWN, VOID + b"\x82ab"), None),
        (matroska(UNKNOWN, VOID + b"\x82ab" + CLUSTER + b"\x85abcd"), "it has 27 of at least 28 bytes"),
        (matroska(UNKNOWN, VOID + b"\x82ab" + CLUSTER + b"\x85"), "it has 23 of at least 28 bytes"),
        (matroska(UNKNOWN, CLUSTER + UNKNOWN + BLOCK + b"\x83abc" + BLOCK + b"\x83abc"), None),
        (
            matroska(UNKNOWN, CLUSTER + UNKNOWN + BLOCK + b"\x83abc" + BLOCK + b"\x83ab"),
            "it has 28 of at least 29 bytes",
        ),
        (matroska(UNKNOWN, CLUSTER + UNKNOWN + BLOCK + b"\x40"), "it has 21 of at least 22 bytes"),  # half a number
        (matroska(UNKNOWN, VOID + b"\x82ab" + b"text that follows"), None),
        (matroska(UNKNOWN, VOID + UNKNOWN + b"ab"), None),
        (ASF, None),
        (asf(122, 2), None),
        (asf(123, 2), "it has 122 of at least 123 bytes"),
        (asf(123, 3), None),  # a broadcast, whose length nobody knew
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
