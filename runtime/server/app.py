"""The endpoints over HTTP. What they do is in `service.py`; errors become OpenAI's JSON here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from sdrpn.errors import SdrpnError
from sdrpn.runtime.server.bodies import JsonRoute
from sdrpn.runtime.server.connection import EventStream, TimeLimit, first_of, unless_gone
from sdrpn.runtime.server.doorway import Doorway
from sdrpn.runtime.server.faults import ErrorReply, Fault, fault_from_error, json_response, shown
from sdrpn.runtime.server.models import Reopening
from sdrpn.runtime.server.notes import note
from sdrpn.runtime.server.options import ServerOptions
from sdrpn.runtime.server.page import add_page
from sdrpn.runtime.server.reference_page import reference_page
from sdrpn.runtime.server.requests import ChatRequest, LookRequest
from sdrpn.runtime.server.responses import ResponsesRequest, chat_of, response_events, response_json
from sdrpn.runtime.server.service import Service
from sdrpn.runtime.session import Session

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["create_app"]

_NO_SCRIPTS = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# What pydantic puts into the place of an error for the types of a union: `str`, `ImageUrl`, `list[...]`.
_TYPE_NAME = re.compile(r"str|[A-Z].*|.*\[.*", re.DOTALL)
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    session: Session,
    options: ServerOptions | None = None,
    reopen: Callable[[], Session] | None = None,
    tracing: SpanProcessor | None = None,
    accept: Callable[[Session], None] = lambda session: None,
) -> FastAPI:
    """The server of an open session as an ASGI application; it does not close the session.

    `app.state.service.close()` frees what else it holds.

    Args:
        options: None: `ServerOptions()`
        reopen: opens the bundle again, for `POST /admin/reload`; None: it cannot be replaced
        tracing: OpenTelemetry's processor of spans; None: there are no traces
        accept: called with what `reopen` returned after its trial; if it raises, the former one goes on answering
    """
    reopening = None if reopen is None else Reopening(reopen, accept)
    service = Service(session, options or ServerOptions(), reopening)
    refused: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorReply, "description": "The request is refused."}}
    app = FastAPI(title="sdrpn", docs_url=None, redoc_url=None, responses=refused)
    app.router.route_class = JsonRoute
    app.state.service, app.state.connections = service, lambda: 0
    app.add_middleware(
        Doorway, options=service.options, metrics=service.metrics, connections=lambda: app.state.connections()
    )
    if service.options.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients in browsers send several of their own
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    if tracing is not None:
        from sdrpn.runtime.server.tracing import Tracing

        app.add_middleware(Tracing, model=service.options.model, processor=tracing)
    _add_state(app, service)
    _add_questions(app, service)
    add_page(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unknown)
    for kind in (Fault, SdrpnError):
        app.add_exception_handler(kind, _failed)
    return app


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """The process answers, and its work goes on."""
        stuck_s = service.stuck_s
        if stuck_s is not None:
            return PlainTextResponse(f"stuck for {stuck_s:.0f} s\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        """New questions are answered."""
        if service.admission.is_closed or service.stuck_s is not None:
            return PlainTextResponse("shutting down\n" if service.admission.is_closed else "stuck\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """The reference for people, without scripts."""
        return HTMLResponse(reference_page(app.openapi()), headers={"Content-Security-Policy": _NO_SCRIPTS})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    @app.post("/admin/reload")
    async def reload() -> Response:
        """Open the bundle again; the former one answers until the new one has passed a trial."""
        return json_response(await asyncio.shield(service.reload()))


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        """The one model that is served."""
        return json_response(service.model_list())

    @app.post("/v1/look")
    async def look(body: LookRequest, http: Request) -> Response:
        """Where questions about a picture point: boxes, scores and map, no words."""
        return json_response(await unless_gone(http, service.look(body), service.limit_of(body)))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        """An answer to a question about a picture."""
        limit = service.limit_of(body)
        if not body.stream:
            completion = await unless_gone(http, service.answer(body), limit)
            return json_response(completion.to_dict())
        return await _streamed(http, _chunks(service, body), limit, b"[DONE]")

    @app.post("/v1/responses")
    async def responses(body: ResponsesRequest, http: Request) -> Response:
        """The same in OpenAI's newer interface."""
        limit, asked = service.limit_of(body), chat_of(body)
        if not body.stream:
            completion = await unless_gone(http, service.answer(asked), limit)
            return json_response(response_json(body, completion))
        return await _streamed(http, response_events(body, service.events(asked)), limit, None)


async def _streamed(
    http: Request, events: AsyncGenerator[dict[str, Any], None], limit: TimeLimit, end: bytes | None
) -> Response:
    """An error before the first event is a reply of its own."""
    deadline = asyncio.get_running_loop().time() + limit.seconds
    try:
        first = await unless_gone(http, first_of(events), limit)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(events, first, deadline, limit, end)


async def _chunks(service: Service, body: ChatRequest) -> AsyncGenerator[dict[str, Any], None]:
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    begun, events = False, service.events(body)
    try:
        async for piece, completion in events:
            if not begun:
                begun = True
                yield completion.chunk({"role": "assistant", "content": ""}, with_usage=with_usage)
            yield completion.chunk({"content": piece} if piece else {}, with_usage=with_usage)
            if not piece and with_usage:
                yield completion.usage_chunk()
    finally:
        await events.aclose()


async def _failed(request: Request, error: Exception) -> Response:
    fault = fault_from_error(error)
    if fault.status == 500:
        raise error  # the doorway logs it
    note(error=fault.message)
    return fault.response()


async def _invalid(request: Request, error: Exception) -> Response:
    """What pydantic refused: one error, by the name of its entry."""
    assert isinstance(error, RequestValidationError)
    # Of an entry that may be one thing or another there is an error for each: the innermost belongs to what was meant.
    meant = max(error.errors(), key=lambda each: len(each["loc"]))
    place = shown(_entry_named(meant["loc"], is_name=meant["type"] == "extra_forbidden"))[1:-1]
    message = f"{place}: {meant['msg']}" if place else str(meant["msg"])
    note(error=message)
    return Fault(400, message, "invalid_request", place or None).response()


def _entry_named(loc: Sequence[str | int], *, is_name: bool) -> str:
    """The entry of a request, such as `messages.0.content.0.image_url.detail`, without pydantic's names of types.

    Args: is_name: the last part is what a client called an entry, whatever it looks like
    """
    last = len(loc) - 1 if is_name else -1
    parts = [
        str(part)
        for index, part in enumerate(loc)
        if index > 0 and (index == last or not (isinstance(part, str) and _TYPE_NAME.fullmatch(part)))
    ]
    return ".".join(part for index, part in enumerate(parts) if index == 0 or part != parts[index - 1])


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {shown(request.url.path)}: {error.detail}"
    return Fault(error.status_code, message, headers=dict(error.headers or {})).response()
