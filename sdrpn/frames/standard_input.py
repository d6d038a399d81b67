"""A picture on standard input. Knows no format."""

from __future__ import annotations

import sys

from sdrpn.errors import BadInput
from sdrpn.frames.source import STDIN

__all__ = ["read_standard_input"]

_MOST_BYTES = 1 << 30  # more than any picture within the pixel limit needs


def read_standard_input() -> bytes:
    """The picture's bytes. Raises BadInput where none comes, or more than one picture can have."""
    if sys.stdin is None or sys.stdin.isatty():
        raise BadInput(
            f"the source is {STDIN} and standard input has no picture; pipe one: cat street.jpg | sdrpn ...; a file of "
            f"that name is ./{STDIN}"
        )
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise BadInput(f"standard input has more than {_MOST_BYTES:,} bytes; expected one picture")
    if not data:
        raise BadInput("standard input is empty (0 bytes); expected a picture")
    return data
