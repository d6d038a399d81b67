"""Whether a video's file is shorter than its container says. Reads a few bytes, decodes nothing.

Readers of Matroska, Windows Media and transport stream files give what is whole and then end, where others report half
a frame. A Matroska file that was written without seeking, as by a live recorder, does not say how long it is, but how
long each of its parts is. What was cut between two parts, or two packets, looks like a shorter file.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

__all__ = ["what_is_missing"]

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
# Elements of a segment, and of a cluster whose size is not known, which are read as if they were the segment's.
_PART_NAMES = "114d9b74 1549a966 1654ae6b 1f43b675 1c53bb6b 1043a770 1254c367 1941a469 ec bf e7 a3 a0 ab a7 af 5854"
_PARTS = frozenset(map(bytes.fromhex, _PART_NAMES.split()))
_LONGEST_ID_BYTES, _LONGEST_SIZE_BYTES = 4, 8
# GUIDs as they stand in files; the second one's object has the size of the file and its flags at these places.
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_SIZE_AT, _ASF_FLAGS_AT, _ASF_BROADCAST = 40, 88, 1
_ASF_HEAD_BYTES = 1 << 16
_SYNC = 0x47  # the first byte of every packet of a transport stream
# Bytes of a packet -> those before its sync byte: plain, and with a time in front as discs and cameras have it.
_PACKETS = {188: 0, 192: 4}
_SEEN_PACKETS = 3


def what_is_missing(path: Path) -> str | None:
    """Why a file must have been cut off, as the end of a sentence; None: nothing says so."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        for end in (_end_of_matroska(file, size_bytes), _end_of_asf(file)):
            if end is not None:
                return None if end <= size_bytes else f"it has {size_bytes:,} of at least {end:,} bytes"
        packet_bytes = _packet_size(file)
    if packet_bytes is not None and size_bytes % packet_bytes:
        return "it ends in the middle of a packet"
    return None


def _end_of_matroska(file: BinaryIO, size_bytes: int) -> int | None:
    """How long a Matroska file must be; None: it is another file, or does not say."""
    header = _element(file, 0)
    if header is None or header[0] != _EBML or header[2] is None:
        return None
    segment = _element(file, header[1] + header[2])
    if segment is None or segment[0] != _SEGMENT:
        return None
    _, place, segment_bytes = segment
    return _end_of_parts(file, place, size_bytes) if segment_bytes is None else place + segment_bytes


def _end_of_parts(file: BinaryIO, place: int, size_bytes: int) -> int | None:
    """The end of the last element from a place on; None: something else is there."""
    while place < size_bytes:
        element = _element(file, place)
        if element is None or element[0] not in _PARTS:
            return None
        name, place, element_bytes = element
        if element_bytes is None and name != _CLUSTER:
            return None
        place += element_bytes or 0
    return place


def _element(file: BinaryIO, place: int) -> tuple[bytes, int, int | None] | None:
    """The name of the element at a place, where its content begins, and how long that is; None: there is none.

    The leading zeros of a number's first byte say how many bytes it has. A size of ones alone is not known.
    """
    file.seek(place)
    head = file.read(_LONGEST_ID_BYTES + _LONGEST_SIZE_BYTES)
    name_bytes = _bytes_of_number(head)
    size_bytes = _bytes_of_number(head[name_bytes:])
    if not 0 < name_bytes <= _LONGEST_ID_BYTES or not size_bytes:
        return None
    end = name_bytes + size_bytes
    ones = (1 << 7 * size_bytes) - 1
    value = int.from_bytes(head[name_bytes:end].ljust(size_bytes, b"\0"), "big") & ones
    return head[:name_bytes], place + end, None if value == ones else value


def _bytes_of_number(head: bytes) -> int:
    return 9 - head[0].bit_length() if head and head[0] else 0


def _end_of_asf(file: BinaryIO) -> int | None:
    """How long a file of Windows Media must be; None: it is another file, or a recording of a broadcast."""
    file.seek(0)
    head = file.read(_ASF_HEAD_BYTES)
    place = head.find(_ASF_PROPERTIES)
    if not head.startswith(_ASF_HEADER) or place < 0 or len(head) < place + _ASF_FLAGS_AT + 1:
        return None
    if head[place + _ASF_FLAGS_AT] & _ASF_BROADCAST:
        return None
    return int.from_bytes(head[place + _ASF_SIZE_AT : place + _ASF_SIZE_AT + 8], "little")


def _packet_size(file: BinaryIO) -> int | None:
    """The size of a transport stream's packets; None: it is another file."""
    file.seek(0)
    head = file.read(_SEEN_PACKETS * max(_PACKETS))
    for size, offset in _PACKETS.items():
        places = range(offset, min(len(head), _SEEN_PACKETS * size), size)
        if len(places) == _SEEN_PACKETS and all(head[place] == _SYNC for place in places):
            return size
    return None
