"""Errors as clients get them: a status and OpenAI's JSON. What went wrong inside is for the log alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel, Field

from sdrpn.errors import BadImage, BadInput, Cancelled, ContextTooLong, SdrpnError

__all__ = ["ErrorDetail", "ErrorReply", "Fault", "fault_from_error", "json_bytes", "json_response", "shown"]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_MOST_SHOWN = 100  # characters of what a client sent


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str = Field(description="what, got, expected, what to do")
    type: str = Field(description="invalid_request_error, server_error and such")
    param: str | None = Field(description="the entry of the request that is wrong")
    code: str | None = Field(description="the kind of error, for programs")


class ErrorReply(BaseModel):
    """The body of every reply with a status from 400 on, except those of /healthz and /readyz."""

    error: ErrorDetail


class Fault(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """As JSON, in OpenAI's shape."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole reply."""
        return json_response(self.to_dict(), self.status, self.headers)


def fault_from_error(error: BaseException) -> Fault:
    """What a client learns of an error: its message where the request was wrong, nothing of the server's inside."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, ContextTooLong):
        return Fault(400, str(error), "context_length_exceeded", "messages")
    if isinstance(error, BadImage):
        return Fault(400, str(error), "invalid_image")
    if isinstance(error, BadInput):
        return Fault(400, str(error))
    if isinstance(error, Cancelled):
        return Fault(503, "the answer was ended before it was complete; ask again", "cancelled")
    failed = "the model failed" if isinstance(error, SdrpnError) else "the server failed"
    return Fault(500, f"{failed}; its log says more under the id of this request", "internal_error")


def json_bytes(value: object) -> bytes:
    """JSON in ASCII: a client may have sent characters that UTF-8 cannot hold. Raises ValueError for NaN."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply."""
    return Response(json_bytes(value), status, headers, "application/json")


def shown(value: object) -> str:
    """A value that a client sent, short enough for a message."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
