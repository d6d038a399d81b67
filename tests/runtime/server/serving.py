"""A server on a free port of this machine, in a thread of its own, and requests to it."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.sdk.trace import SpanProcessor
from PIL import Image

from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions, create_app
from sdrpn.runtime.server.running import Running, Watch, listen
from sdrpn.runtime.server.service import Service
from sdrpn.tags import shipped_scene
from tests.limits import ended_soon, eventually

__all__ = ["QUESTION", "Server", "chat_body", "data_url", "png_of", "scene_url", "serving"]

QUESTION = shipped_scene().question


@dataclass
class Server:
    url: str
    session: Session
    service: Service

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **options)

    def send(self, path: str, body: bytes | Iterator[bytes], headers: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", content=body, headers=headers, timeout=60)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=60, **options)


@contextlib.contextmanager
def serving(
    session: Session,
    options: ServerOptions | None = None,
    reopen: Callable[[], Session] | None = None,
    tracing: SpanProcessor | None = None,
    accept: Callable[[Session], None] = lambda session: None,
) -> Iterator[Server]:
    """As `sdrpn serve` runs it, but for signals, which belong to the main thread."""
    listening = listen("127.0.0.1", 0)
    options = options or ServerOptions(model="demo")
    app = create_app(session, options, reopen, tracing, accept)
    server = Running(app, listening, Watch(stopping=app.state.service.admission.close), options.idle_timeout_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert thread.is_alive()
        yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", session, app.state.service)
    finally:
        server.should_exit = True
        ended_soon(thread)
        listening.close()
        app.state.service.close()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def scene_url() -> str:
    """The scene of the demo."""
    return data_url(Path(shipped_scene().picture).read_bytes())


def chat_body(url: str, question: str = QUESTION, **entries: Any) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **entries}
