"""Spans for OpenTelemetry, one for each request. Needs the extra `otel`; without it, nothing here is used.

Names of attributes are those of the semantic conventions for generative AI where these have one.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdrpn.runtime.server.notes import notes_of_request

__all__ = ["Tracing", "exporting"]

_NAMES = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "finish_reason": "gen_ai.response.finish_reasons",
}


def exporting(endpoint: str) -> SpanProcessor:
    """Sends spans to a collector, by OTLP over HTTP. `endpoint`: such as http://127.0.0.1:4318/v1/traces."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))


class Tracing:
    """An ASGI middleware around all others. A trace that the client began goes on."""

    def __init__(self, app: ASGIApp, model: str, processor: SpanProcessor) -> None:
        self._app, self._model = app, model
        self._provider = TracerProvider(resource=Resource.create({"service.name": "sdrpn"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sdrpn.runtime.server")

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        name = f"{scope['method']} {scope['path'][:100]}"
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with (
            self._tracer.start_as_current_span(name, extract(headers), SpanKind.SERVER) as span,
            notes_of_request() as notes,
        ):
            try:
                await self._app(scope, receive, watched)
            finally:
                span.set_attribute("http.response.status_code", status)
                span.set_attribute("gen_ai.request.model", self._model)
                span.set_attributes({_named(key): value for key, value in notes.items() if _is_plain(value)})
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))


def _named(key: str) -> str:
    return _NAMES.get(key, f"sdrpn.{key}")


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool))
