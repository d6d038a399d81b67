"""What a server accepts: its name, limits and permissions. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdrpn.errors import BadInput

__all__ = ["ServerOptions"]


@dataclass(frozen=True)
class ServerOptions:
    """Limits and permissions of a server.

    model: the name by which clients ask for the bundle. most_*: a request above is refused with 413, or with 400 where
    it counts tokens, questions or texts. image_root: pictures below this folder may be named as `file:` URLs.
    Raises: BadInput for a limit below 1.
    """

    model: str = "sdrpn"
    most_body_bytes: int = 32 << 20
    most_pixels: int = 50_000_000
    most_new_tokens: int = 1024
    most_questions: int = 16  # of one look
    usual_new_tokens: int = 256  # where a request names no number
    image_root: Path | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise BadInput(f"{name} is {value}; expected at least 1")
