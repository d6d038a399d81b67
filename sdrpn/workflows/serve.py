"""Serve a bundle over HTTP until a signal ends it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadInput, MissingDependency
from sdrpn.host.api_keys import keys_in
from sdrpn.host.machine import read_available_memory
from sdrpn.host.origins import require_origins
from sdrpn.host.service_manager import NO_MANAGER, ServiceManager
from sdrpn.runtime import Session
from sdrpn.runtime.pictures.picture import JpegMode
from sdrpn.workflows.memory_plan import PlanRequest, plan_bundle
from sdrpn.workflows.opened_session import SessionRequest, opened_session, require_memory, require_tokenizer
from sdrpn.workflows.release_service import begin_service, confirm_service, service_title

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.trace import SpanProcessor

    from sdrpn.runtime.server import ServerOptions

__all__ = ["ServeRequest", "require_server", "serve", "server_app"]

# Of the memory that the model and its caches leave, for pictures that are decoded.
_PICTURES_SHARE = 0.5
_HTTP = re.compile(r"https?://[^/\s]+(/\S*)?\Z")
# Beyond these a number is a slip of the pen: what it bounds would not be bounded.
_MOST = {
    "max_queue": 100_000,
    "max_stall_ms": 600_000,
    "max_body_bytes": 1 << 30,
    "max_pixels": 1 << 30,
    "max_new_tokens": 1 << 20,
    "max_connections": 65_536,
    "timeout_s": 7 * 86_400,
    "stuck_after_s": 86_400,
}
_LEAST_PICTURE_BYTES, _MOST_PICTURE_BYTES = 64 << 20, 4 << 30


@dataclass(frozen=True)
class ServeRequest(SessionRequest):
    """Which bundle is served, and where. The fields from `backend` on are those of `Session.open`.

    name: by which clients ask for the model; None: the release's, or that of the bundle's folder. port 0: any free one.
    max_batch: most questions that are answered at once, None: as `Session.open`. max_queue: most that wait.
    max_stall_ms: longest time between two tokens of a running answer. cache_bytes: most memory for pictures asked about
    before. api_key_file: keys that clients have to send, one a line. image_root, allow_image_urls, the limits and
    log_format: as in `ServerOptions`; allow_origin: as `allow_origins` there. otlp_endpoint: where traces are sent, by
    OpenTelemetry's OTLP over HTTP; None: nowhere.
    """

    bundle: Path | str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    max_batch: int | None = None
    max_queue: int = 64
    max_stall_ms: float = 200.0
    cache_bytes: int | None = None
    api_key_file: Path | None = None
    image_root: Path | None = None
    allow_image_urls: bool = False
    allow_origin: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_new_tokens: int = 1024
    max_connections: int = 512
    timeout_s: float = 600.0
    stuck_after_s: float = 300.0
    log_format: Literal["none", "text", "json"] = "text"
    otlp_endpoint: str | None = None
    jpeg: JpegMode = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.otlp_endpoint is not None and not _HTTP.match(self.otlp_endpoint):
            raise BadInput(
                f"otlp_endpoint is {self.otlp_endpoint!r}; expected one such as http://127.0.0.1:4318/v1/traces",
                options=("otlp_endpoint",),
            )
        for name, most in _MOST.items():
            if not 0 < getattr(self, name) <= most:
                raise BadInput(
                    f"{name} is {getattr(self, name):,}; expected more than 0, and at most {most:,}", options=(name,)
                )
        if self.name is not None and not self.name.strip():
            raise BadInput("name is empty; expected a name by which clients ask for the model", options=("name",))
        require_origins(self.allow_origin)


def require_server() -> None:
    """Raise MissingDependency where the libraries of the server are not installed."""
    try:
        import fastapi
        import llguidance
        import prometheus_client
        import uvicorn
    except ImportError as error:
        raise MissingDependency(
            f"a server needs the libraries of the extra serve, and {error.name} is not installed: "
            "pip install 'sdrpn[serve]'"
        ) from error
    del fastapi, llguidance, prometheus_client, uvicorn


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
    Raises: as `ask_question`; MissingDependency; BadInput for a port that is taken, or a file of keys without any
    """
    require_server()
    from sdrpn.runtime.server.log import RequestLog
    from sdrpn.runtime.server.running import Watch, listen, run_app
    from sdrpn.runtime.server.watchdog import EXIT_CODE, StuckWork, Watchdog

    def give_up(why: str) -> None:
        note(f"{why}: the process ends with exit code {EXIT_CODE}")
        os._exit(EXIT_CODE)

    _check_access(request)
    with listen(request.host, request.port) as listening, server_app(request, note=note, give_up=give_up) as app:
        service = app.state.service

        def accepting(url: str) -> None:
            confirm_service(service.models.current.session.bundle)
            started(url)

        work = StuckWork(request.stuck_after_s, lambda: service.running_s, service.end_stuck)
        log = note if request.log_format == "none" else RequestLog(request.log_format).event
        with Watchdog(work, log) as watchdog:
            watch = Watch(
                started=accepting,
                stopping=service.admission.close,
                reload=service.reload,
                works=lambda: service.stuck_s is None,
                manager=manager,
                watchdog=watchdog,
            )
            run_app(app, listening, watch, service.options.idle_timeout_s)


@contextmanager
def server_app(
    request: ServeRequest,
    *,
    note: Callable[[str], None] = lambda text: None,
    give_up: Callable[[str], None] | None = None,
) -> Iterator[FastAPI]:
    """The server of a bundle as an ASGI application, which answered once; within the block the bundle is open.

    It listens nowhere: `host` and `port` are not used. `app.state.service` is its `Service`.

    Args:
        note: called with warnings
        give_up: ends the process where a graph of the trial cannot be ended, see `try_model`
    Raises: as `serve`; RunFailed where a graph of the trial ran too long
    """
    require_server()
    from sdrpn.runtime.server import create_app
    from sdrpn.runtime.server.trial import TrialLimit, try_model

    keys = _check_access(request)
    begin_service(bundle_path(request.bundle), note)
    with _opened(request, note) as session:
        if session.backend_note is not None:
            note(session.backend_note)
        try_model(session, TrialLimit(request.stuck_after_s), give_up)
        options = _options(session, request, keys)
        # A release is confirmed when it has answered once, since the former one is about to go.
        app = create_app(
            session,
            options,
            lambda: _opened(request, note),
            _tracing(request.otlp_endpoint),
            lambda reopened: confirm_service(reopened.bundle),
        )
        try:
            yield app
        finally:
            app.state.service.close()


def _check_access(request: ServeRequest) -> tuple[str, ...]:
    """The keys. Raises BadInput for a file without any, or a folder of pictures that is none."""
    keys = () if request.api_key_file is None else keys_in(request.api_key_file)
    if request.image_root is not None and not request.image_root.is_dir():
        raise BadInput(f"image_root is {request.image_root}, which is not a folder", options=("image_root",))
    return keys


def _opened(request: ServeRequest, note: Callable[[str], None]) -> Session:
    """The bundle as it is now."""
    bundle = open_bundle(bundle_path(request.bundle))
    require_tokenizer(bundle)
    if request.check_memory:
        require_memory(bundle, request)
    session = opened_session(
        bundle, request, max_batch=request.max_batch, prefix_bytes=request.cache_bytes, jpeg=request.jpeg, note=note
    )
    session.limit_stalls(request.max_stall_ms / 1000)
    return session


def _options(session: Session, request: ServeRequest, keys: tuple[str, ...]) -> ServerOptions:
    from sdrpn.runtime.server import ServerOptions

    return ServerOptions(
        model=request.name or service_title(session.bundle),
        api_keys=keys,
        most_body_bytes=request.max_body_bytes,
        most_pixels=request.max_pixels,
        picture_bytes=_picture_bytes(session, request),
        most_new_tokens=request.max_new_tokens,
        most_queue=request.max_queue,
        most_connections=request.max_connections,
        timeout_s=request.timeout_s,
        watchdog_s=request.stuck_after_s,
        image_root=request.image_root,
        allow_image_urls=request.allow_image_urls,
        allow_origins=request.allow_origin,
        log_format=request.log_format,
    )


def _picture_bytes(session: Session, request: ServeRequest) -> int:
    """What decoded pictures may take: a share of what caches and kept prefixes will leave."""
    free = read_available_memory()
    if free is None:
        return _MOST_PICTURE_BYTES
    reserved = 0
    if session.on == "cpu":  # on a GPU they are elsewhere
        asked = PlanRequest(
            session.bundle.path,
            variant=request.variant,
            batch=session.max_batch,
            backend=session.backend,
            prefix_bytes=request.cache_bytes,
        )
        planned = plan_bundle(asked)
        reserved = planned.needs.caches_bytes + planned.prefixes.limit_bytes
        if request.max_batch is not None and planned.needs.caches_bytes > free:
            one = planned.needs.caches_bytes // session.max_batch
            raise BadInput(
                f"max_batch is {request.max_batch}: the caches of so many answers take {planned.needs.caches_bytes:,} "
                f"bytes, and {free:,} are free, which is enough for {max(1, free // one)}",
                options=("max_batch",),
            )
    return max(_LEAST_PICTURE_BYTES, min(int(_PICTURES_SHARE * (free - reserved)), _MOST_PICTURE_BYTES))


def _tracing(endpoint: str | None) -> SpanProcessor | None:
    if endpoint is None:
        return None
    try:
        from sdrpn.runtime.server.tracing import exporting
    except ImportError as error:
        raise MissingDependency(
            f"traces need OpenTelemetry, and {error.name} is not installed: pip install 'sdrpn[otel]'"
        ) from error
    return exporting(endpoint)
