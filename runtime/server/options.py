"""What a server accepts: its name, limits and permissions. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sdrpn.errors import BadInput
from sdrpn.host.origins import require_origins

__all__ = ["LogFormat", "ServerOptions"]

LogFormat = Literal["none", "text", "json"]


@dataclass(frozen=True)
class ServerOptions:
    """Limits and permissions of a server.

    model: the name by which clients ask for the bundle. api_keys: one of them has to be sent; empty: nobody is asked
    for one. most_pixels, most_body_bytes: above them a request is refused with 413. most_new_tokens, most_questions,
    most_images: with 400. most_queue, most_connections, most_held_bytes: of requests that wait, of connections, and of
    all bodies together; above them with 429. picture_bytes: most memory for decoded pictures, for which requests wait.
    timeout_s: longest time of a request, and what it may ask for. body_timeout_s: of receiving it. idle_timeout_s: of a
    connection without a request. watchdog_s: a unit of work that takes longer counts as stuck. image_root: pictures
    below this folder may be named as `file:` URLs. allow_image_urls: http(s) URLs of public addresses are fetched.
    allow_origins: of pages elsewhere that may use the server from a browser (CORS).
    Raises: BadInput for a limit that is not above 0, or what is no origin.
    """

    model: str = "sdrpn"
    fingerprint: str = "sdrpn"
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    most_body_bytes: int = 32 << 20
    most_held_bytes: int = 512 << 20
    most_pixels: int = 50_000_000
    picture_bytes: int = 2 << 30
    most_new_tokens: int = 1024
    usual_new_tokens: int = 256  # where a request names no number
    most_questions: int = 16  # of one look
    most_images: int = 8  # of one conversation
    most_queue: int = 64
    most_connections: int = 512
    timeout_s: float = 600.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 10.0
    watchdog_s: float = 300.0
    image_root: Path | None = None
    allow_image_urls: bool = False
    allow_origins: tuple[str, ...] = ()
    log_format: LogFormat = "none"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
                raise BadInput(f"{name} is {value}; expected more than 0")
        require_origins(self.allow_origins)
