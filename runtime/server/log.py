"""A line for each request on standard error, for people or as JSON. Knows no endpoint."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from typing import Any

from sdrpn.host.escaping import one_line
from sdrpn.runtime.server.options import LogFormat

__all__ = ["RequestLog"]


class RequestLog:
    """Writes lines; a broken standard error ends nothing."""

    def __init__(self, form: LogFormat) -> None:
        self._form, self._lock = form, threading.Lock()

    def request(self, **entries: Any) -> None:
        """A request is over: its id, method, path, status, seconds, and what else is known."""
        self._write("request", {name: value for name, value in entries.items() if value is not None})

    def event(self, text: str, **entries: Any) -> None:
        """Something else happened."""
        self._write("event", {"text": text, **entries})

    def failure(self, request_id: str, error: BaseException) -> None:
        """An error that the client learns nothing of, with where it was raised."""
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._write("error", {"id": request_id, "error": f"{type(error).__name__}: {error}", "trace": trace})

    def _write(self, kind: str, entries: dict[str, Any]) -> None:
        if self._form == "none":
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if self._form == "json":
            line = json.dumps({"time": stamp, "kind": kind, **entries}, default=str)
        else:
            words = [f"{name}={one_line(value)}" for name, value in entries.items()]
            line = " ".join([stamp, kind, *words])
        with self._lock:
            try:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                pass
