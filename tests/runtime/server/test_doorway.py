"""Who is let in: keys, origins, hosts, types, sizes, times and connections."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sdrpn.errors import BadInput
from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from tests.limits import eventually
from tests.runtime.server.serving import QUESTION, Server, chat_body, scene_url, serving

KEY = "a-key-of-some-length"
PAGE = "https://page.example:8443"
HEAD = b"POST /v1/look HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
LOOK = {"image": scene_url(), "question": QUESTION}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session.open("demo", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(session: Session) -> Iterator[Server]:
    options = ServerOptions(model="demo", most_body_bytes=1 << 20, body_timeout_s=0.5, idle_timeout_s=0.5)
    with serving(session, options) as running:
        yield running


@pytest.fixture(scope="module")
def locked(session: Session) -> Iterator[Server]:
    with serving(session, ServerOptions(model="demo", api_keys=("another-long-key", KEY))) as running:
        yield running


@pytest.fixture(scope="module")
def open_server(session: Session) -> Iterator[Server]:
    with serving(session, ServerOptions(model="demo", api_keys=(KEY,), allow_origins=(PAGE,))) as running:
        yield running


def raw(server: Server, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back for some bytes, until the server closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        found = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            while piece := connection.recv(65536):
                found += piece
        except ConnectionError:
            pass
        return found


def error_in(reply: bytes) -> dict[str, Any]:
    return dict(json.loads(reply.partition(b"\r\n\r\n")[2])["error"])


class TestKeys:
    @pytest.mark.parametrize("key", ["-", "wrong", KEY[:-1], KEY + "x", "\u00e9"])
    def test_another_one_is_refused(self, locked: Server, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}".encode()}
        for reply in (locked.get("/v1/models", headers=headers), locked.post("/v1/look", LOOK, headers=headers)):
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize("key", [KEY, "another-long-key"])
    def test_each_opens(self, locked: Server, key: str) -> None:
        assert locked.post("/v1/look", LOOK, headers={"Authorization": f"Bearer {key}"}).status_code == 200

    @pytest.mark.parametrize(("path", "status"), [("/metrics", 401), ("/healthz", 200), ("/readyz", 200)])
    def test_what_needs_one(self, locked: Server, path: str, status: int) -> None:
        assert locked.get(path).status_code == status

    def test_a_reload_needs_one(self, locked: Server) -> None:
        assert locked.post("/admin/reload", {}).status_code == 401


class TestPages:
    def test_of_other_origins_are_refused(self, server: Server) -> None:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            reply = server.post("/v1/look", LOOK, headers={"Origin": origin})
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_origin")
            assert "access-control-allow-origin" not in reply.headers

    def test_the_own_one_is_not(self, server: Server) -> None:
        assert server.post("/v1/look", LOOK, headers={"Origin": server.url}).status_code == 200

    def test_a_name_that_was_made_to_point_here_is_refused(self, server: Server) -> None:
        reply = server.get("/v1/models", headers={"Host": "evil.example"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "unexpected_host")
        assert server.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200

    def test_a_form_is_no_request(self, server: Server) -> None:
        body = json.dumps(LOOK).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            assert server.send("/v1/look", body, {"Content-Type": kind}).status_code == 415


class TestAllowedOrigins:
    def asked_first(self, server: Server, origin: str) -> httpx.Response:
        """What a browser sends before a request that is not a form's."""
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
        }
        return httpx.options(f"{server.url}/v1/look", headers=headers, timeout=60)

    def test_a_browser_may_send_what_it_asks_for(self, open_server: Server) -> None:
        reply = self.asked_first(open_server, PAGE)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == PAGE
        allowed = reply.headers["access-control-allow-headers"].replace(" ", "").split(",")
        assert {"authorization", "content-type", "x-stainless-os"} <= set(allowed)
        assert "access-control-allow-credentials" not in reply.headers

    def test_its_page_reads_the_reply_and_errors(self, open_server: Server) -> None:
        key = {"Authorization": f"Bearer {KEY}"}
        for headers, status in ((key, 200), ({}, 401)):
            reply = open_server.post("/v1/look", LOOK, headers={"Origin": PAGE} | headers)
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, PAGE)
            assert "X-Request-ID" in reply.headers["access-control-expose-headers"]

    @pytest.mark.parametrize(
        "origin", ["https://page.example", "http://page.example:8443", "https://a.example", "null"]
    )
    def test_others_are_refused_as_before(self, open_server: Server, origin: str) -> None:
        first = self.asked_first(open_server, origin)
        assert first.status_code == 400
        reply = open_server.post("/v1/look", LOOK, headers={"Origin": origin, "Authorization": f"Bearer {KEY}"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_origin")
        for each in (first, reply):
            assert "access-control-allow-origin" not in each.headers

    @pytest.mark.parametrize("text", ["*", "null", "page.example", "https://page.example/", "https://Page.example", ""])
    def test_what_is_no_origin_is_refused(self, text: str) -> None:
        with pytest.raises(BadInput, match=r"allow_origin is '.*'; expected the origin of one page"):
            ServerOptions(allow_origins=(text,))


class TestSizes:
    def test_a_large_body_is_refused_before_it_is_read(self, server: Server) -> None:
        head = HEAD + b"9000000\r\n\r\n"
        reply = raw(server, head)
        assert reply.startswith(b"HTTP/1.1 413")
        assert error_in(reply)["code"] == "body_too_large"

    def test_a_chunked_one_is_counted(self, server: Server) -> None:
        reply = server.send("/v1/look", iter([b" " * 100_000] * 20), {"Content-Type": "application/json"})
        assert reply.status_code == 413

    def test_a_slow_one_is_ended(self, server: Server) -> None:
        head = HEAD + b"900\r\n\r\n"
        reply = raw(server, head, b"{", b" ", b" ", pause_s=0.2)
        assert reply.startswith(b"HTTP/1.1 408")

    def test_headers_that_do_not_end_are_not_waited_for(self, server: Server) -> None:
        start = time.monotonic()
        assert raw(server, b"GET /healthz HTTP/1.1\r\n", b"Host: x\r\n", pause_s=0.1) == b""
        assert raw(server) == b""
        assert time.monotonic() - start < 15

    def test_a_second_request_is_not_waited_for_either(self, server: Server) -> None:
        reply = raw(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /he", pause_s=0.1)
        assert reply.count(b"HTTP/1.1") == 1


class TestConnections:
    def test_too_many_are_refused(self, session: Session) -> None:
        with serving(session, ServerOptions(model="demo", most_connections=2)) as few:
            host, port = few.url.removeprefix("http://").split(":")
            others = [socket.create_connection((host, int(port))) for _ in range(2)]
            try:
                reply = few.get("/v1/models")
                assert reply.status_code == 429
                assert reply.json()["error"]["code"] == "too_many_connections"
                assert reply.headers["retry-after"]
            finally:
                for other in others:
                    other.close()

    def test_bodies_together_are_bounded(self, session: Session) -> None:
        """One may always come; a second one only within the limit."""
        with serving(session, ServerOptions(model="demo", most_held_bytes=1000)) as few:
            host, port = few.url.removeprefix("http://").split(":")
            head = HEAD + b"900\r\n\r\n"
            with socket.create_connection((host, int(port))) as first:
                first.sendall(head)
                eventually(lambda: few.post("/v1/look", LOOK).status_code == 429, 0.05)  # until the server has read it
            eventually(lambda: few.post("/v1/look", LOOK).status_code == 200, 0.05)

    @pytest.mark.parametrize(
        "begun",
        [HEAD + b"900\r\n\r\n", HEAD.replace(b"Length: ", b"Length-Of-It: 0\r\nTransfer-Encoding: chunked\r\n\r\n")],
        ids=["declared", "in chunks"],
    )
    def test_refused_bodies_do_not_widen_the_limit(self, session: Session, begun: bytes) -> None:
        """Nor does one count less because it comes in chunks."""
        with serving(session, ServerOptions(model="demo", most_held_bytes=1000)) as few:
            host, port = few.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as first:
                first.sendall(begun + (b"384\r\n" + b" " * 900 if b"chunked" in begun else b""))
                eventually(lambda: few.post("/v1/look", LOOK).status_code == 429, 0.05)  # until the server has read it
                assert [few.post("/v1/look", LOOK).status_code for _ in range(3)] == [429] * 3
            eventually(lambda: few.post("/v1/look", LOOK).status_code == 200, 0.05)


class TestErrors:
    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b"null", b'"x"', b"[" * 40_000, b'{"image": NaN}', b"\xff\xfe", b'{"question": "\\ud800"}'],
    )
    def test_any_body_gets_a_clear_answer(self, server: Server, body: bytes) -> None:
        for path in ("/v1/look", "/v1/chat/completions"):
            reply = server.send(path, body, {"Content-Type": "application/json"})
            assert reply.status_code == 400, reply.text
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    def test_characters_that_utf8_has_not_are_answered(self, server: Server) -> None:
        body = json.dumps({**LOOK, "model": "\ud800" * 1000}).encode()
        reply = server.send("/v1/look", body, {"Content-Type": "application/json"})
        assert reply.status_code == 404
        assert len(reply.text) < 2000

    def test_an_error_inside_tells_nothing(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        async def failing(*arguments: Any, **options: Any) -> None:
            raise RuntimeError("the secret of this server")

        monkeypatch.setattr(server.session, "look_many_async", failing, raising=False)
        reply = server.post("/v1/look", LOOK)
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert len(reply.headers["x-request-id"]) == 32


def test_the_log_has_a_line_per_request(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(session, ServerOptions(model="demo", log_format="json")) as logged:
        good = logged.post("/v1/look", LOOK)
        bad = logged.post("/v1/look", {**LOOK, "model": "other"})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    by_id = {line["id"]: line for line in lines if line["kind"] == "request"}
    assert by_id[good.headers["x-request-id"]]["status"] == 200
    refused = by_id[bad.headers["x-request-id"]]
    assert (refused["status"], refused["method"], refused["path"]) == (404, "POST", "/v1/look")
    assert "is not here" in refused["error"]


def test_figures_are_read_by_prometheus(session: Session) -> None:
    with serving(session, ServerOptions(model="demo")) as fresh:
        session.forget_image()
        fresh.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8))
        fresh.post("/v1/chat/completions", chat_body(scene_url(), max_tokens=8))
        fresh.post("/v1/look", LOOK)
        fresh.post("/v1/look", {**LOOK, "model": "other"})
        families = list(text_string_to_metric_families(fresh.get("/metrics").text))
    found = {
        (
            sample.name,
            sample.labels.get("finished_reason") or sample.labels.get("found") or sample.labels.get("status"),
        ): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert all(sample.labels["model_name"] == "demo" for family in families for sample in family.samples)
    assert found["vllm:request_success_total", "stop"] == 2
    assert found["vllm:e2e_request_latency_seconds_count", None] == 2
    assert found["vllm:num_requests_running", None] == 0
    assert found["sdrpn:looks_total", None] == 1
    assert found["sdrpn:roi_total", "yes"] == 3
    assert found["sdrpn:requests_refused_total", "404"] == 1
    assert 0 < found["vllm:prefix_cache_hits_total", None] < found["vllm:prefix_cache_queries_total", None]
    assert found["vllm:generation_tokens_total", None] > 0
    assert found["sdrpn:decode_step_tokens_total", None] >= found["sdrpn:decode_steps_total", None] > 0
    assert found["sdrpn:decode_batch_size_count", None] == found["sdrpn:decode_steps_total", None]
    assert found["sdrpn:decode_batch_size_sum", None] == found["sdrpn:decode_step_tokens_total", None]
    (batches,) = (family for family in families if family.name == "sdrpn:decode_batch_size")
    alone = {sample.labels["le"]: sample.value for sample in batches.samples if "le" in sample.labels}
    assert alone["1"] == alone["+Inf"] == found["sdrpn:decode_steps_total", None]
