"""How the page reads replies: streams cut anywhere, answers in one piece, errors, and the gate's words.

Its modules run in Node.js; without it these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sdrpn.runtime.server import page

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
FOLDER = Path(page.__file__).parent / "page"

# The server as `fetch` gives it, and a picture as a browser reads it.
START = """
import { readFileSync } from "node:fs";
const given = JSON.parse(readFileSync(0));
globalThis.FileReader = class { readAsDataURL() { this.result = "data:image/png;base64,AA=="; this.onload(); } };
const sent = [];
globalThis.fetch = async (path, options) => {
  sent.push([path, options.headers, options.body && JSON.parse(options.body)]);
  if (given.fails) throw new TypeError("failed to fetch");
  const chunks = given.chunks.map((bytes) => Uint8Array.from(bytes));
  const body = new ReadableStream({ start(control) { chunks.forEach((c) => control.enqueue(c)); control.close(); } });
  return new Response(body, { status: given.status, headers: given.headers });
};
const { Server } = await import(`${process.argv[1]}/api.js`);
const server = new Server();
if (given.key) server.useKey(given.key);
const pieces = [];
try {
  const found = await server.answer({}, "what?", { roi: { threshold: 0.2 }, piece: (text) => pieces.push(text) });
  console.log(JSON.stringify({ found, pieces, sent }));
} catch (error) {
  const { message, status, retryAfterS } = error;
  console.log(JSON.stringify({ error: { message, status, retryAfterS }, pieces, sent }));
}
"""
STREAM = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


def run(program: str, given: object) -> Any:
    assert NODE is not None
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", program, str(FOLDER)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer(chunks: list[bytes], headers: dict[str, str], status: int = 200, **given: Any) -> Any:
    chunked = [list(chunk) for chunk in chunks]
    return run(START, {"chunks": chunked, "headers": headers, "status": status, **given})


def event(chunk: dict[str, Any], end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}{end}".encode()


def delta(text: str | None, finish: str | None = None, **entries: Any) -> dict[str, Any]:
    content = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish}], **entries}


WHOLE = b"".join(
    [
        event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}),
        event(delta("größe ")),
        b": a comment\n\n",
        event(delta("≥ 7"), "\r\n\r\n"),
        event(delta(None, "stop", sdrpn={"boxes": []})),
        event({"choices": [], "usage": {"prompt_tokens": 5}}),
        b"data: [DONE]\n\n",
    ]
)


@pytest.mark.parametrize("size", [1, 2, 7, 64, len(WHOLE)])
def test_a_stream_that_is_cut_anywhere(size: int) -> None:
    """Also within a character of several bytes."""
    chunks = [WHOLE[start : start + size] for start in range(0, len(WHOLE), size)]
    done = answer(chunks, STREAM)
    assert done["pieces"] == ["größe ", "≥ 7"]
    assert done["found"] == {
        "text": "größe ≥ 7",
        "finish": "stop",
        "extras": {"boxes": []},
        "usage": {"prompt_tokens": 5},
    }


def test_what_is_sent() -> None:
    ((path, headers, body),) = answer([WHOLE], STREAM, key="secret")["sent"]
    assert (path, headers["Authorization"], headers["Content-Type"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        "application/json",
    )
    assert (body["stream"], body["roi"], "map" in body) == (True, {"threshold": 0.2}, False)
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"] == "data:image/png;base64,AA=="
    assert text["text"] == "what?"


def test_an_answer_in_one_piece() -> None:
    reply = {"choices": [{"message": {"content": "42"}, "finish_reason": "length"}], "sdrpn": {"boxes": []}}
    found = answer([json.dumps(reply).encode()], JSON)["found"]
    assert (found["text"], found["finish"], found["extras"]) == ("42", "length", {"boxes": []})


def test_an_error_within_a_stream() -> None:
    """What came before is kept."""
    failed = event({"error": {"message": "the answer was ended before it was complete"}})
    done = answer([event(delta("4")), failed], STREAM)
    assert done["pieces"] == ["4"]
    assert done["error"]["message"] == "the answer was ended before it was complete"


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b'{"error": {"message": "too many wait"}}', {"retry-after": "3"}, ("too many wait", 429, 3)),
        (b"<html>bad gateway</html>", {}, ("the server answered 429 ", 429, None)),
    ],
)
def test_a_refusal(body: bytes, headers: dict[str, str], expected: tuple[str, int, int | None]) -> None:
    error = answer([body], headers, 429)["error"]
    assert (error["message"], error["status"], error["retryAfterS"]) == expected


def test_no_server() -> None:
    error = answer([], {}, fails=True)["error"]
    assert (error["message"], error["status"]) == ("the server does not answer; is it running?", 0)


@pytest.mark.parametrize(
    ("gate", "threshold", "expected"),
    [
        (None, None, ""),
        ({"score": 0.834, "looks_again": True}, None, "Gate: 0.83, it looks again"),
        (
            {"score": 0.1, "looks_again": False},
            0.5,
            "Gate: 0.10, the first look is enough (from 0.50 on it looks again)",
        ),
    ],
)
def test_the_gates_decision(gate: dict[str, Any] | None, threshold: float | None, expected: str) -> None:
    program = """
    import { readFileSync } from "node:fs";
    const { gateText } = await import(`${process.argv[1]}/panels.js`);
    console.log(JSON.stringify(gateText(...JSON.parse(readFileSync(0)))));
    """
    assert run(program, [gate, threshold]) == expected
