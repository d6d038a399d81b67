"""The endpoints over HTTP. What they do is in `service.py`; errors become OpenAI's JSON here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from sdrpn.errors import SdrpnError
from sdrpn.runtime.server.faults import Fault, fault_from_error
from sdrpn.runtime.server.options import ServerOptions
from sdrpn.runtime.server.requests import ChatRequest, LookRequest
from sdrpn.runtime.server.service import Service
from sdrpn.runtime.session import Session

__all__ = ["create_app"]


def create_app(session: Session, options: ServerOptions | None = None) -> FastAPI:
    """The server of an open session as an ASGI application; it does not close the session.

    Args: options: None: `ServerOptions()`
    """
    service = Service(session, options or ServerOptions())
    app = FastAPI(title="sdrpn", docs_url=None, redoc_url=None)
    app.state.service = service
    _add_endpoints(app, service)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unknown)
    for kind in (Fault, SdrpnError, Exception):
        app.add_exception_handler(kind, _failed)
    return app


def _add_endpoints(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """The process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> PlainTextResponse:
        """Questions are answered."""
        return PlainTextResponse("ok\n")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return service.models()

    @app.post("/v1/look")
    async def look(request: LookRequest) -> JSONResponse:
        """Where questions about a picture point: boxes, scores and map, no words."""
        return JSONResponse(await service.look(request))

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> JSONResponse:
        """An answer to a question about a picture."""
        return JSONResponse(await service.chat(request))


async def _failed(request: Request, error: Exception) -> Response:
    return fault_from_error(error).response()


async def _invalid(request: Request, error: Exception) -> Response:
    """What pydantic refused: the first error, by the name of its entry."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{place}: {first['msg']}" if place else first["msg"]
    return Fault(400, message, "invalid_request", place or None).response()


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return Fault(error.status_code, message, headers=dict(error.headers or {})).response()
