"""Where pictures may come from: below a folder, from public addresses, and not from anywhere else."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.options import ServerOptions
from sdrpn.runtime.server.pictures import PictureSources, largest_of_shape, read_below
from sdrpn.runtime.server.urls import fetch_public, is_public
from tests.limits import ended_soon
from tests.pictures import photo

MOST = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    Image.fromarray(photo()).save(root / "inner" / "a b.png")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path / "secret.png")
    (root / "within").symlink_to(root / "inner" / "a b.png")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    return root


class TestFolders:
    @pytest.mark.parametrize("place", ["inner/a%20b.png", "within", "inner/../within"])
    def test_files_below_it_are_read(self, folder: Path, place: str) -> None:
        expected = (folder / "inner" / "a b.png").read_bytes()
        assert read_below(folder, f"file://{folder}/{place}", MOST) == expected

    @pytest.mark.parametrize(
        "place", ["out", "up/secret.png", "../secret.png", "inner/../../secret.png", "%2e%2e/secret.png"]
    )
    def test_no_way_leads_out(self, folder: Path, place: str) -> None:
        with pytest.raises(Fault, match="not below the folder") as found:
            read_below(folder, f"file://{folder}/{place}", MOST)
        assert found.value.status == 403

    @pytest.mark.parametrize("place", ["pipe", "inner", "nothing", "inner%00.png"])
    def test_what_is_not_a_file_is_refused(self, folder: Path, place: str) -> None:
        with pytest.raises(Fault) as found:
            read_below(folder, f"file://{folder}/{place}", MOST)
        assert found.value.status == 400

    def test_other_machines_and_sizes_are_refused(self, folder: Path) -> None:
        with pytest.raises(Fault, match="names no file of this machine"):
            read_below(folder, "file://server/share/a.png", MOST)
        with pytest.raises(Fault, match="more than 5 bytes"):
            read_below(folder, f"file://{folder}/within", 5)


class TestPermissions:
    @pytest.mark.parametrize("url", ["file:///etc/passwd", "http://example.com/a.png", "HTTPS://example.com/a.png"])
    def test_nothing_is_read_unless_it_is_allowed(self, url: str) -> None:
        with pytest.raises(Fault, match="by this server") as found:
            PictureSources(ServerOptions()).read(url)
        assert found.value.status == 403

    @pytest.mark.parametrize("url", ["ftp://example.com/a.png", "gopher:x", "", "a" * 1000, "dict://x"])
    def test_other_schemes_are_unknown(self, url: str) -> None:
        with pytest.raises(Fault, match="no known URL"):
            PictureSources(ServerOptions(allow_image_urls=True)).read(url)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *(
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "2001::1",
            "2001:db8::1",
        ),
    ],
)
def test_private_addresses_in_any_spelling(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """`/picture` is one; `/to/PLACE` redirects there; `/long` has more than anybody reads."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/picture":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.headers["Host"].encode())
        elif self.path == "/long":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(MOST + 1))
        else:
            self.send_error(404)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        ended_soon(thread)


class TestUrls:
    """The only address that a test reaches is that of this machine, which stands for a public one."""

    def fetch(self, url: str, resolved: dict[str, list[str]] | None = None) -> bytes:
        names = {"here.example": ["127.0.0.1"], **(resolved or {})}
        return fetch_public(
            url, MOST, lambda host, port: names.get(host, [host]), lambda address: address == "127.0.0.1"
        )

    def test_the_address_that_was_checked_is_connected_to(self, port: int) -> None:
        """The name itself resolves to nothing here."""
        assert self.fetch(f"http://here.example:{port}/picture") == f"here.example:{port}".encode()

    def test_every_redirect_is_checked(self, port: int) -> None:
        base = f"http://here.example:{port}"
        assert self.fetch(f"{base}/to//picture").startswith(b"here.example")
        for place in ("http://10.0.0.1/x", "http://inner.example/x", "http://[::1]/x"):
            with pytest.raises(Fault, match="not public") as found:
                self.fetch(f"{base}/to/{place}", {"inner.example": ["10.0.0.1"]})
            assert found.value.status == 403
        with pytest.raises(Fault, match="not an http"):
            self.fetch(f"{base}/to/file:///etc/passwd")

    def test_redirects_in_a_circle_end(self, port: int) -> None:
        with pytest.raises(Fault, match="redirects away"):
            self.fetch(f"http://here.example:{port}/to/" * 5 + f"http://here.example:{port}/picture")

    def test_all_addresses_of_a_name_are_checked(self, port: int) -> None:
        with pytest.raises(Fault, match="not public"):
            self.fetch(f"http://two.example:{port}/picture", {"two.example": ["127.0.0.1", "10.0.0.1"]})

    @pytest.mark.parametrize("path", ["nothing", "long"])
    def test_other_answers_are_refused(self, port: int, path: str) -> None:
        with pytest.raises(Fault) as found:
            self.fetch(f"http://here.example:{port}/{path}")
        assert found.value.status == {"nothing": 400, "long": 413}[path]

    @pytest.mark.parametrize(
        "url", ["http://user:pw@here.example/", "http://", "http://here.example:99999/", "http://[x/"]
    )
    def test_odd_urls_are_refused(self, url: str) -> None:
        with pytest.raises(Fault) as found:
            self.fetch(url)
        assert found.value.status == 400

    def test_where_nobody_answers(self, port: int) -> None:
        with pytest.raises(Fault, match="cannot be fetched"):
            self.fetch("http://here.example:1/picture")

    def test_loopback_is_refused_as_it_is(self, port: int) -> None:
        with pytest.raises(Fault, match="not public"):
            fetch_public(f"http://127.0.0.1:{port}/picture", MOST)


def test_the_largest_of_a_shape() -> None:
    assert largest_of_shape((4000, 1000), lambda w, h: w * h <= 1_000_000) == (2000, 500)
    assert largest_of_shape((10, 10), lambda w, h: False) == (1, 1)
