"""`sdrpn mcp` as agents meet it: the official client over standard input and output, and over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent

from sdrpn.tags import shipped_scene
from tests.cli.command import Command, refusal
from tests.limits import LIMIT_S, line_of

SCENE = shipped_scene()
KEY = "0123456789abcdef0123"
SERVE = ("-m", "sdrpn", "mcp", "demo", "--threads", "1", "--image-root", str(SCENE.picture.parent))
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
    b'"clientInfo":{"name":"test","version":"1"}}}\n'
)


async def answers(client: Client) -> list[CallToolResult]:
    """One call of every tool."""
    async with client:
        return [
            await client.call_tool("look", {"image": SCENE.picture.name, "questions": [SCENE.question]}),
            await client.call_tool("ask", {"image": SCENE.picture.name, "question": SCENE.question}),
            await client.call_tool("crop", {"image": str(SCENE.picture), "box": list(SCENE.box_xyxy_px)}),
            await client.call_tool("crop", {"image": "/etc/passwd", "box": [0, 0, 1, 1]}),
        ]


def check(results: list[CallToolResult]) -> None:
    looked, asked, cropped, refused = results
    assert looked.structured_content is not None
    assert looked.structured_content["looks"][0]["regions"]
    assert isinstance(looked.content[1], ImageContent)
    assert asked.structured_content is not None
    assert asked.structured_content["text"] == SCENE.expected
    assert isinstance(cropped.content[1], ImageContent)
    assert refused.is_error


@contextmanager
def serving(*arguments: str, **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *SERVE, *arguments], stderr=subprocess.PIPE, env=environment, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


@contextmanager
def serving_http(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process, and the address that it says."""
    with serving("--http", "0", *arguments) as process:
        line = line_of(process, process.stderr).decode()
        found = re.fullmatch(r"sdrpn: MCP at (http://127\.0\.0\.1:\d+/mcp)\n", line)
        assert found is not None, line
        yield process, found.group(1)


def test_over_standard_input_and_output() -> None:
    check(asyncio.run(answers(Client(StdioServerParameters(command=sys.executable, args=list(SERVE))))))


def test_over_http() -> None:
    with serving_http() as (process, url):
        check(asyncio.run(answers(Client(url))))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


def test_over_http_with_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY, "utf-8")

    async def with_key(url: str, key: str) -> list[CallToolResult]:
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http_client:
            return await answers(Client(streamable_http_client(url, http_client=http_client)))

    with serving_http("--api-key-file", str(tmp_path / "keys")) as (_, url):
        check(asyncio.run(with_key(url, KEY)))
        assert post(url, {"Authorization": f"Bearer {KEY}0"}) == 401
        assert post(url, {}) == 401


def post(url: str, headers: dict[str, str]) -> int:
    place = url.removeprefix("http://").removesuffix("/mcp")
    with closing(http.client.HTTPConnection(place, timeout=30)) as connection:
        connection.request("POST", "/mcp", b"{}", {"Content-Type": "application/json", **headers})
        return connection.getresponse().status


def test_a_web_page_cannot_reach_it() -> None:
    with serving_http() as (_, url):
        assert post(url, {"Host": "evil.example"}) == 421
        assert post(url, {"Origin": "http://evil.example"}) == 403


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    """While it waits for its input."""
    with serving(stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(INITIALIZE)
        process.stdin.flush()
        assert b'"serverInfo"' in line_of(process, process.stdout)
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_the_end_of_its_input_ends_it() -> None:
    with serving(stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        out, error = process.communicate(INITIALIZE, timeout=60)
        assert (process.returncode, error) == (0, b"")
        assert b'"serverInfo"' in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image-root", "nowhere"), "the image root nowhere does not exist; expected a folder"),
        (("--host", "0.0.0.0"), "--host goes with --http"),
        (("--http", "0", "--host", "0.0.0.0"), "0.0.0.0 can be reached from other machines, and there is no API key"),
        (("--http", "0", "--api-key-file", "nowhere"), "the file of API keys nowhere cannot be read"),
        (("--http", "0", "--host", "192.0.2.1", "--api-key-file", "keys"), "cannot listen on 192.0.2.1 port 0"),
        (("--http", "70000"), "70000 is not a port; expected an integer from 0 to 65535"),
    ],
)
def test_refusals(
    sdrpn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").write_text(KEY, "utf-8")
    assert message in refusal(sdrpn("mcp", "demo", "--threads", "1", *arguments))
