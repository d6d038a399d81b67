"""Requests and pictures that were damaged by chance: no reply says that the server failed, and nothing is left over."""

from __future__ import annotations

import base64
import copy
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.tags import shipped_scene
from tests.runtime.server.serving import QUESTION, Server, chat_body, scene_url, serving

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    2**70,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"a": None},
    "data:,",
    "file:///etc/passwd",
)
SCENE = Path(shipped_scene().picture).read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = ServerOptions(model="demo", most_new_tokens=8, most_pixels=2_000_000)
    with Session.open("demo", threads=1) as session, serving(session, options) as running:
        yield running


def bodies() -> dict[str, dict[str, Any]]:
    chat = chat_body(scene_url(), max_tokens=2, roi={"threshold": 0.5}, region=[1, 1, 50, 50], stop=["7"], seed=1)
    content = [{"type": "input_image", "image_url": scene_url()}, {"type": "input_text", "text": QUESTION}]
    return {
        "/v1/chat/completions": chat,
        "/v1/look": {"image": scene_url(), "questions": [QUESTION], "map": "png", "roi": {"upscale": "bbox"}},
        "/v1/responses": {"input": [{"role": "user", "content": content}], "max_output_tokens": 2},
    }


def damaged_json(chance: random.Random, body: dict[str, Any]) -> bytes:
    """One place of it is another value, is gone, or is called something else; or its text is cut."""
    found = copy.deepcopy(body)
    place: Any = found
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.8:
            place = inner
            continue
        break
    kind = chance.randrange(4)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[f"{key}_"] = place.pop(key)
    else:
        place[key] = chance.choice(VALUES)
    text = json.dumps(found).encode()
    return text[: chance.randrange(len(text))] if chance.random() < 0.1 else text


def damaged_picture(chance: random.Random) -> bytes:
    data = bytearray(SCENE)
    for _ in range(chance.choice((1, 3, 30))):
        data[chance.randrange(len(data) if chance.random() < 0.5 else 200)] = chance.randrange(256)
    return bytes(data[: chance.randrange(1, len(data))]) if chance.random() < 0.5 else bytes(data)


def require_no_failure(server: Server, count: int, seed: int) -> None:
    chance = random.Random(seed)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(count):
            path, body = chance.choice(list(bodies().items()))
            if chance.random() < 0.5:
                data = damaged_json(chance, body)
            else:
                url = f"data:image/png;base64,{base64.b64encode(damaged_picture(chance)).decode()}"
                data = json.dumps(body).replace(scene_url(), url).encode()
            reply = client.post(path, content=data, headers={"Content-Type": "application/json"})
            assert reply.status_code < 500, (reply.text, data[:300])
            statuses.add(reply.status_code)
        assert client.post("/v1/look", json=bodies()["/v1/look"]).status_code == 200
    assert {200, 400} <= statuses
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208
    assert server.service.admission.used == server.service.admission.waiting == 0


def test_damaged_requests_get_clear_replies(server: Server) -> None:
    require_no_failure(server, 150, seed=0)


@pytest.mark.slow
def test_ten_thousand_damaged_requests_get_clear_replies(server: Server) -> None:
    require_no_failure(server, 10_000, seed=1)


def test_slow_senders_hold_nobody_up(server: Server) -> None:
    """Ten clients that send a byte now and then, and one that does not wait for them."""
    host, port = server.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(10)]
    try:
        lines = ("POST /v1/look HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 5000")
        head = "\r\n".join([*lines, "", ""]).encode()
        for connection in slow:
            connection.sendall(head)
        for _ in range(3):
            for connection in slow:
                connection.sendall(b" ")
            assert server.post("/v1/look", bodies()["/v1/look"]).status_code == 200
            time.sleep(0.05)
    finally:
        for connection in slow:
            connection.close()
