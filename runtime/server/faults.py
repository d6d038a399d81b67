"""Errors as clients get them: a status and OpenAI's JSON. What went wrong inside is for the log alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from sdrpn.errors import BadImage, BadInput, Cancelled, ContextTooLong, SdrpnError

__all__ = ["Fault", "fault_from_error"]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


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

    def response(self) -> JSONResponse:
        """The whole reply."""
        return JSONResponse(self.to_dict(), self.status, self.headers)


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
