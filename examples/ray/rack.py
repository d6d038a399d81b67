"""The server on many machines and GPUs with Ray Serve: `sdrpn serve` in replicas, whose number follows the load.

    python examples/ray/rack.py BUNDLE [--replicas MIN[:MAX]] [--gpus N] [--cpus N] [--max-batch N] [--port N] ...

A door takes every request and sends it to the replica that its picture belongs to, by consistent hashing of the
picture's digest: a second question about a picture meets the replica that has its prefix. A replica is the server of
`sdrpn serve`, whole: its scheduler, its limits, its errors. Where a replica dies, the door asks another one, as long as
nothing of the reply was sent. It runs on a Ray cluster (`--address auto`), or starts one on this machine.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this one

import installed  # noqa: F401  # before Ray
from cluster import add_cluster_arguments, add_replica_arguments, cluster
from figures import joined_figures
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from relay import Head, ReplyHead, head_of, replies, whole_reply
from routing import picture_digest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sdrpn.bundle.shipped import bundle_path
from sdrpn.release.store import store_of
from sdrpn.workflows.release_service import confirm_service
from sdrpn.workflows.serve import ServeRequest, server_app

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
# What every replica has to answer, each for itself.
_OF_ALL = {"/metrics", "/admin/reload"}
_TRIES = 3  # of a request whose replica died
_BROADCAST_S = 300.0
# Replies of Ray's own proxy, such as its health checks, do not pass the door.


class Replica:
    """`sdrpn serve` without its port: one model, its scheduler, its queue."""

    def __init__(self, request: ServeRequest) -> None:
        self._open = ExitStack()
        self._app = self._open.enter_context(server_app(request))
        self._service = self._app.state.service
        confirm_service(self._service.models.current.session.bundle)

    async def ask(self, head: Head, body: bytes) -> AsyncGenerator[ReplyHead | bytes, None]:
        """A reply as it comes."""
        async for piece in replies(self._app, head, body):
            yield piece

    async def whole(self, head: Head, body: bytes) -> tuple[str, ReplyHead, bytes]:
        """The replica's name and its complete reply."""
        return serve.get_replica_context().replica_tag, *await whole_reply(self._app, head, body)

    def check_health(self) -> None:
        """Ray asks it now and then, and replaces a replica that raises."""
        stuck_s = self._service.stuck_s
        if stuck_s is not None:
            raise RuntimeError(f"a graph has run for {stuck_s:.0f} s")

    def __del__(self) -> None:
        """Ray calls it when the replica has finished what it was asked."""
        with suppress(AttributeError):  # it never opened
            self._open.close()


class Door:
    """Takes requests over HTTP and passes them on."""

    def __init__(self, replicas: Any, most_body_bytes: int, retry_after_s: int = 1) -> None:
        self._replicas, self._most_body_bytes, self._retry_after_s = replicas, most_body_bytes, retry_after_s

    async def __call__(self, request: Request) -> Response:
        """One request."""
        body = await self._body(request)
        if body is None:
            return _error(413, f"the body has more than {self._most_body_bytes:,} bytes, the limit", "body_too_large")
        head = head_of(dict(request.scope))
        if head.path in _OF_ALL:
            return await self._asked_all(head, body)
        for tries_left in reversed(range(_TRIES)):
            try:
                return await self._asked(head, body)
            except BackPressureError:
                return _error(429, "too many requests wait already", "queue_full", self._retry_after_s)
            except RayActorError:  # the replica died, and nothing of its reply was sent; an answer changes nothing
                if not tries_left:
                    return _error(503, "the model stopped while it answered; ask again", "replica_died", 1)
        raise AssertionError("unreachable")

    async def _body(self, request: Request) -> bytes | None:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._most_body_bytes:
                return None
            parts.append(part)
        return b"".join(parts)

    async def _asked(self, head: Head, body: bytes) -> Response:
        handle = self._replicas.options(method_name="ask", stream=True, session_id=picture_digest(body) or "")
        pieces = handle.remote(head, body)
        try:
            first = await pieces.__anext__()
            if not first.is_stream:
                return _response(first, b"".join([piece async for piece in pieces]))
            begun = await pieces.__anext__()
        except BaseException:
            pieces.cancel()
            raise
        return StreamingResponse(
            _rest(begun, pieces), first.status, {name.decode(): value.decode() for name, value in _kept(first)}
        )

    async def _asked_all(self, head: Head, body: bytes) -> Response:
        answers = await self._replicas.broadcast("whole", head, body).results_async(timeout_s=_BROADCAST_S)
        for _, first, content in answers:
            if first.status != 200:
                return _response(first, content)
        if head.path == "/metrics":
            pages = {name: content.decode() for name, _, content in sorted(answers)}
            return _response(answers[0][1], joined_figures(pages).encode())
        return JSONResponse({name: json.loads(content) for name, _, content in answers})


async def _rest(begun: bytes, pieces: Any) -> AsyncGenerator[bytes, None]:
    """A stream that began. A replica that dies now ends it without its last event, and the client asks again."""
    try:
        yield begun
        async for piece in pieces:
            yield piece
    finally:
        pieces.cancel()


def _kept(first: ReplyHead) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in first.headers if name.lower() != b"content-length"]


def _response(first: ReplyHead, content: bytes) -> Response:
    return Response(content, first.status, {name.decode(): value.decode() for name, value in _kept(first)})


def _error(status: int, message: str, code: str, retry_after_s: int | None = None) -> Response:
    """As the replicas write errors."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers=headers
    )


def application(options: argparse.Namespace) -> serve.Application:
    """The door and the replicas, for `serve.run`."""
    request = ServeRequest(
        _one_release(bundle_path(options.bundle)),
        name=options.name,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        threads=options.threads,
        cache_bytes=options.cache_bytes,
        api_key_file=options.api_key_file,
        target=options.target,
        require_signed=tuple(options.require_signed),
        log_format=options.log_format,
    )
    batch = options.max_batch or 4
    least, most = options.replicas
    replicas = serve.deployment(Replica).options(
        # More wait in a replica than it answers at once, so that it has work; what it has no place for goes to the next
        # replica of the ring, and when all are full it waits at the door.
        max_ongoing_requests=2 * batch + 2,
        max_queued_requests=options.max_queue,
        autoscaling_config=AutoscalingConfig(
            min_replicas=least,
            initial_replicas=least,
            max_replicas=most,
            target_ongoing_requests=batch,
            upscale_delay_s=options.upscale_after_s,
            downscale_delay_s=600,
        ),
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        health_check_period_s=options.health_every_s,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=600,
    )
    door = serve.deployment(Door).options(
        max_ongoing_requests=1000, num_replicas=options.doors, ray_actor_options={"num_cpus": 0}
    )
    return door.bind(replicas.bind(request), request.max_body_bytes)


def _one_release(path: Path) -> Path:
    """A store's current release: many replicas that start would count as many starts in vain."""
    store = store_of(path)
    return path if store is None or store.current is None else store.current.folder


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    found = int(least), int(most or least)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text} is not MIN or MIN:MAX, of at least 1")
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("bundle", help="a bundle, a release or a store, at the same path on every machine; or demo")
    found.add_argument("--name", help="name of the model for clients")
    found.add_argument("--replicas", type=_range, default=(1, 1), metavar="MIN[:MAX]", help="(default: 1)")
    found.add_argument("--doors", type=int, default=1, help="processes that take requests (default: 1)")
    add_replica_arguments(found, "replica")
    found.add_argument("--target", help="the engines of a replica")
    found.add_argument("--max-batch", type=int, help="questions that a replica answers at once (default: 4)")
    found.add_argument("--max-queue", type=int, default=64, help="requests that wait at the door (default: 64)")
    found.add_argument("--cache-bytes", type=int, help="as `sdrpn serve`")
    found.add_argument("--api-key-file", type=Path, help="as `sdrpn serve`; at the same path on every machine")
    found.add_argument("--require-signed", type=Path, action="append", default=[], help="as `sdrpn serve`")
    found.add_argument("--log-format", choices=("text", "json", "none"), default="none", help="how replicas log")
    found.add_argument("--upscale-after-s", type=float, default=30, help="seconds of a longer queue (default: 30)")
    found.add_argument("--health-every-s", type=float, default=10, help="(default: 10)")
    found.add_argument("--host", default="127.0.0.1")
    found.add_argument("--port", type=int, default=8000)
    add_cluster_arguments(found)
    return found


def main() -> int:
    """Serve until a signal ends it."""
    options = parser().parse_args()
    if options.threads is None and not options.gpus:
        options.threads = max(1, int(options.cpus))
    ended = threading.Event()
    with cluster(options, options.host, log_to_driver=options.log_format != "none"):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        serve.start(http_options=HTTPOptions(host=options.host, port=options.port, request_timeout_s=None))
        start = time.monotonic()
        serve.run(application(options), name="sdrpn")
        took_s = time.monotonic() - start
        print(f"listening on http://{options.host}:{options.port} after {took_s:.0f} s", file=sys.stderr)
        ended.wait()
        serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
