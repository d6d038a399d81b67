"""Clients that go away, and answers that take too long: the work ends, and others are not affected."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.tags import shipped_scene
from tests.limits import eventually
from tests.runtime.server.serving import Server, chat_body, scene_url, serving

EXPECTED = shipped_scene().expected


class Pauses:
    """Decode steps that wait until they may go on, so that a test sees what is in between."""

    def __init__(self, session: Session) -> None:
        self.steps, self.go_on = 0, threading.Event()
        self.go_on.set()
        step = session._decoder.step

        def paused(tokens: Any) -> Any:
            self.steps += 1
            assert self.go_on.wait(60)
            return step(tokens)

        session._decoder.step = paused  # type: ignore[method-assign]


@pytest.fixture
def session() -> Iterator[Session]:
    """One that decodes two at once."""
    with Session.open("demo", threads=1, max_batch=2) as opened:
        yield opened


@pytest.fixture
def pauses(session: Session) -> Pauses:
    return Pauses(session)


@pytest.fixture
def server(session: Session, pauses: Pauses) -> Iterator[Server]:
    with serving(session, ServerOptions(model="demo", most_queue=2)) as running:
        yield running


def connect(server: Server, **entries: Any) -> socket.socket:
    """A request that is sent, whose reply is not read."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(chat_body(scene_url(), **entries)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), 60)
    connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(server: Server, pauses: Pauses, stream: bool) -> None:
    pauses.go_on.clear()
    connection = connect(server, stream=stream, max_tokens=8)
    eventually(lambda: pauses.steps == 1)
    connection.close()
    eventually(lambda: 'sdrpn:clients_gone_total{model_name="demo"} 1.0' in server.get("/metrics").text)
    pauses.go_on.set()
    eventually(lambda: server.session.load.running == 0)
    assert pauses.steps <= 2  # the step that ran, and at most the one that had begun
    assert server.service.admission.used == 0


def test_one_that_waits_leaves_the_queue(server: Server, pauses: Pauses) -> None:
    pauses.go_on.clear()
    places = [connect(server, max_tokens=8) for _ in range(4)]  # two decode, two are prepared
    eventually(lambda: server.service.admission.used == 4)
    waiting = [connect(server, max_tokens=8) for _ in range(2)]
    eventually(lambda: server.service.admission.waiting == 2)
    refused = server.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    waiting[0].close()
    eventually(lambda: server.service.admission.waiting == 1)
    pauses.go_on.set()
    for connection in (*places, waiting[1]):
        reply = b""
        while EXPECTED.encode() not in reply:
            piece = connection.recv(65536)
            assert piece
            reply += piece
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_is_ended(server: Server, pauses: Pauses, stream: bool) -> None:
    for timeout_s in (0.3, 2, 30):
        pauses.go_on.clear()
        body = chat_body(scene_url(), stream=stream, max_tokens=8, timeout_s=timeout_s)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as reply:
            text = reply.read().decode()
        pauses.go_on.set()
        eventually(lambda: server.service.admission.used == 0)
        if not stream or reply.status_code == 200:  # else the time was over before the first token, on a busy machine
            break
    if stream:  # its first token came before
        assert reply.status_code == 200
        assert text.endswith("\n\n")
        assert "[DONE]" not in text
        assert json.loads(text.split("data: ")[-1])["error"]["code"] == "timeout"
    else:
        assert (reply.status_code, json.loads(text)["error"]["code"]) == (408, "timeout")
    eventually(lambda: server.service.admission.used == 0)


def test_a_stuck_graph_is_noticed(session: Session, pauses: Pauses) -> None:
    with serving(session, ServerOptions(model="demo", watchdog_s=0.2)) as watched:
        assert watched.get("/healthz").status_code == 200
        pauses.go_on.clear()
        with connect(watched, max_tokens=8):
            eventually(lambda: pauses.steps == 1)
            eventually(lambda: watched.get("/healthz").status_code == 503)
            assert watched.get("/readyz").status_code == 503
            pauses.go_on.set()
            eventually(lambda: watched.get("/healthz").status_code == 200)


def test_a_client_that_does_not_read_holds_nobody_up(server: Server) -> None:
    silent = [connect(server, stream=True, max_tokens=8) for _ in range(2)]
    for _ in range(4):
        reply = server.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8))
        assert reply.json()["choices"][0]["message"]["content"] == EXPECTED
    for connection in silent:
        connection.close()
