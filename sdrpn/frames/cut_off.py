"""Whether a video's file is shorter than its container says. Reads a few bytes, decodes nothing.

Readers of Matroska files and transport streams give what is whole and then end, where others report half a frame. A
Matroska file that was written without seeking, as by a live recorder, does not say how long it is; and a transport
stream that was cut between two packets looks like a shorter one.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

__all__ = ["what_is_missing"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_SYNC = 0x47  # the first byte of every packet of a transport stream
# Bytes of a packet -> those before its sync byte: plain, and with a time in front as discs and cameras have it.
_PACKETS = {188: 0, 192: 4}
_SEEN_PACKETS = 3


def what_is_missing(path: Path) -> str | None:
    """Why a file must have been cut off, as the end of a sentence; None: nothing says so."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        segment_end = _end_of_segment(file)
        if segment_end is not None:
            return None if segment_end <= size_bytes else f"it has {size_bytes:,} of {segment_end:,} bytes"
        packet_bytes = _packet_size(file)
    if packet_bytes is not None and size_bytes % packet_bytes:
        return "it ends in the middle of a packet"
    return None


def _end_of_segment(file: BinaryIO) -> int | None:
    """The size of a Matroska file up to the end of its segment; None: it is another file, or does not say."""
    file.seek(0)
    if file.read(4) != _EBML:
        return None
    header_bytes = _element_size(file)
    if header_bytes is None:
        return None
    file.seek(header_bytes, 1)
    if file.read(4) != _SEGMENT:
        return None
    segment_bytes = _element_size(file)
    return None if segment_bytes is None else file.tell() + segment_bytes


def _element_size(file: BinaryIO) -> int | None:
    """The size of an element, whose number of bytes the leading zeros of its first one say; None: it is not known."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big") & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else value


def _packet_size(file: BinaryIO) -> int | None:
    """The size of a transport stream's packets; None: it is another file."""
    file.seek(0)
    head = file.read(_SEEN_PACKETS * max(_PACKETS))
    for size, offset in _PACKETS.items():
        places = range(offset, min(len(head), _SEEN_PACKETS * size), size)
        if len(places) == _SEEN_PACKETS and all(head[place] == _SYNC for place in places):
            return size
    return None
