"""A camera that speaks RTSP, as network cameras do: H.264 in RTP packets, on the connection that asks for them."""

from __future__ import annotations

import base64
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import av

from tests.frames.movies import FPS, halves

__all__ = ["RtspCamera", "rtsp_camera"]

LONGEST_WAIT_S = 20
_SDP = """\
v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
c=IN IP4 0.0.0.0
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:track0
"""


class RtspCamera:
    """`a_connection`: frames, after which it hangs up, or falls silent. `password`: what a client, "me", must know."""

    def __init__(self) -> None:
        self.a_connection, self.hangs_up, self.password = 100, True, ""
        self.requests: list[str] = []  # their methods, and how frames are to come
        self.port = 0
        self.ended = threading.Event()

    def url(self, user: str = "") -> str:
        """Its stream's."""
        return f"rtsp://{user}127.0.0.1:{self.port}/stream"


@contextmanager
def rtsp_camera() -> Iterator[RtspCamera]:
    """One that listens on a free port of this machine."""
    camera = RtspCamera()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, allow_reuse_address = True, True

    class Handler(_Client):
        served = camera

    with Server(("127.0.0.1", 0), Handler) as server:
        camera.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield camera
        camera.ended.set()
        server.shutdown()


class _Client(socketserver.StreamRequestHandler):
    """One connection: requests in text, then frames behind four bytes each."""

    served: RtspCamera
    timeout = LONGEST_WAIT_S

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):  # the client went away
            self._answer()

    def _answer(self) -> None:
        while request := self._request():
            method, url, headers = request
            self.served.requests.append(f"{method} {headers.get('transport', '')}".strip())
            if not self._is_known(headers):
                self._reply(headers, "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"')
            elif not url.split("?")[0].rstrip("/").endswith(("/stream", "/track0")):
                self._reply(headers, "404 Not Found")
            elif method == "DESCRIBE":
                self._reply(headers, "200 OK", "Content-Type: application/sdp", body=_SDP.replace("\n", "\r\n"))
            elif method == "PLAY":
                self._reply(headers, "200 OK", "Session: 1")
                self._send_frames()
                if not self.served.hangs_up:
                    self.served.ended.wait(LONGEST_WAIT_S)
                return
            else:
                transport = (
                    f"Transport: {headers['transport']}" if method == "SETUP" else "Public: DESCRIBE, SETUP, PLAY"
                )
                self._reply(headers, "200 OK", "Session: 1", transport)

    def _request(self) -> tuple[str, str, dict[str, str]] | None:
        first = self.rfile.readline().decode().split()
        headers: dict[str, str] = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return (first[0], first[1], headers) if len(first) == 3 else None

    def _is_known(self, headers: dict[str, str]) -> bool:
        given = base64.b64encode(f"me:{self.served.password}".encode()).decode()
        return not self.served.password or headers.get("authorization") == f"Basic {given}"

    def _reply(self, headers: dict[str, str], status: str, *lines: str, body: str = "") -> None:
        head = [f"RTSP/1.0 {status}", f"CSeq: {headers['cseq']}", *lines, f"Content-Length: {len(body)}"]
        self.wfile.write("\r\n".join([*head, "", body]).encode())

    def _send_frames(self) -> None:
        """Frames through FFmpeg's packets, which it sends to a socket of ours."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.bind(("127.0.0.1", 0))
            packets.setblocking(False)
            target = f"rtp://127.0.0.1:{packets.getsockname()[1]}?pkt_size=1200"
            with av.open(target, "w", format="rtp") as container:
                stream: Any = container.add_stream("libx264", rate=FPS, options={"tune": "zerolatency"})
                stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 96, "yuv420p", 4
                for number in range(self.served.a_connection):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(halves(number), format="rgb24")))
                    self._pass_on(packets)

    def _pass_on(self, packets: socket.socket) -> None:
        while True:
            try:
                packet = packets.recv(2048)
            except BlockingIOError:
                return
            self.wfile.write(b"$\0" + struct.pack(">H", len(packet)) + packet)
