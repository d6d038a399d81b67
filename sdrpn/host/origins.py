"""Origins of pages that may use a server from a browser."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdrpn.errors import BadInput

__all__ = ["require_origins"]

# As browsers write them: no path, small letters.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?\Z")


def require_origins(origins: Iterable[str]) -> None:
    """Raise BadInput where one of them is not what browsers send in the header `Origin`; `*` is none."""
    for origin in origins:
        if not _ORIGIN.match(origin):
            raise BadInput(
                f"allow_origin is {origin!r}; expected the origin of one page as browsers send it, in small letters "
                "and without a path, such as https://example.org or http://localhost:5173",
                options=("allow_origin",),
            )
