"""A span for each request, within the trace that its client began; and the line of the log that says the same."""

from __future__ import annotations

import json
import time

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from tests.runtime.server.serving import chat_body, scene_url, serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_spans_and_lines(capfd: pytest.CaptureFixture[str]) -> None:
    spans = InMemorySpanExporter()
    options = ServerOptions(model="demo", log_format="json")
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    with (
        Session.open("demo", threads=1) as session,
        serving(session, options, tracing=SimpleSpanProcessor(spans)) as server,
    ):
        body = chat_body(scene_url(), max_tokens=8)
        usage = server.post("/v1/chat/completions", body, headers=headers).json()["usage"]
        server.post("/v1/chat/completions", {**body, "model": "other"})
        server.get("/healthz")
        deadline = time.monotonic() + 10
        while len(spans.get_finished_spans()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    answered, refused = spans.get_finished_spans()
    assert answered.context is not None
    assert f"{answered.context.trace_id:032x}" == TRACE
    assert answered.parent is not None
    assert f"{answered.parent.span_id:016x}" == SPAN
    assert answered.attributes is not None
    assert answered.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert answered.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert answered.attributes["http.response.status_code"] == 200
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 404
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("status") == 200 and line["method"] == "POST"]
    assert (line["prompt_tokens"], line["finish_reason"]) == (usage["prompt_tokens"], "stop")
