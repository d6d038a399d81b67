"""Serve a bundle over HTTP until a signal ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.bundle.shipped import bundle_path, bundle_title
from sdrpn.errors import MissingDependency
from sdrpn.host.service_manager import NO_MANAGER, ServiceManager
from sdrpn.runtime import EngineOptions, Session
from sdrpn.runtime.backends import AUTOMATIC
from sdrpn.runtime.pictures.picture import JpegMode
from sdrpn.workflows.opened_session import opened_session, require_memory, require_tokenizer

if TYPE_CHECKING:
    from sdrpn.runtime.server import ServerOptions

__all__ = ["ServeRequest", "require_server", "serve"]


@dataclass(frozen=True)
class ServeRequest:
    """Which bundle is served, and where. The fields from `check_memory` on are those of `AskRequest`.

    name: by which clients ask for the model; None: the name of the bundle's folder. max_batch: most questions that are
    answered at once, None: as `Session.open`. cache_bytes: most memory for pictures asked about before. port 0: any
    free one.
    """

    bundle: Path | str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    max_batch: int | None = None
    cache_bytes: int | None = None
    check_memory: bool = True
    backend: str = AUTOMATIC
    threads: int | None = None
    variant: str | None = None
    target: str | None = None
    device: int | None = None
    engine_options: EngineOptions = field(default_factory=EngineOptions)
    optimized: bool = True
    verify: bool = True
    jpeg: JpegMode = "exact"


def require_server() -> None:
    """Raise MissingDependency where the libraries of the server are not installed."""
    try:
        import fastapi
        import uvicorn
    except ImportError as error:
        raise MissingDependency(
            f"a server needs fastapi and uvicorn, and {error.name} is not installed: pip install 'sdrpn[serve]'"
        ) from error
    del fastapi, uvicorn


def serve(
    request: ServeRequest,
    *,
    note: Callable[[str], None] = lambda text: None,
    started: Callable[[str], None] = lambda url: None,
    manager: ServiceManager = NO_MANAGER,
) -> None:
    """Open the bundle and answer requests until SIGINT or SIGTERM.

    Args:
        note: called with warnings
        started: called with the server's address when it accepts requests
        manager: of the service that this process is
    Raises: as `ask_question`; MissingDependency; BadInput for a port that is taken
    """
    require_server()
    from sdrpn.runtime.server import create_app
    from sdrpn.runtime.server.running import listen, run_app

    bundle = open_bundle(bundle_path(request.bundle))
    require_tokenizer(bundle)
    if request.check_memory:
        require_memory(bundle, request)
    with listen(request.host, request.port) as listening, _opened(bundle, request) as session:
        if session.backend_note is not None:
            note(session.backend_note)
        run_app(create_app(session, _options(bundle, request)), listening, started, manager=manager)


def _opened(bundle: Bundle, request: ServeRequest) -> Session:
    return opened_session(bundle, request, max_batch=request.max_batch, prefix_bytes=request.cache_bytes)


def _options(bundle: Bundle, request: ServeRequest) -> ServerOptions:
    from sdrpn.runtime.server import ServerOptions

    return ServerOptions(model=request.name or bundle_title(bundle.path))
