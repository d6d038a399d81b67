"""Videos and streams through PyAV: frames with their times and colours, damage, and hosts that do not answer."""

from __future__ import annotations

import builtins
import functools
import io
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadInput, MissingDependency
from sdrpn.frames.feed import FrameFeed, opener_of
from sdrpn.frames.source import read_source
from sdrpn.frames.thinning import ReadOptions
from sdrpn.frames.video import open_video_file
from tests.frames.fakes import PATIENCE_S
from tests.frames.movies import CODECS, FPS, cut_off, halves, movie, streamed, turned, unknown_codec, without_index
from tests.limits import ended_soon
from tests.tolerances import VIDEO_COLOUR_ABS, VIDEO_TIME_S

FRAMES = 40


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every container. Not to be written to."""
    folder = tmp_path_factory.mktemp("videos")
    return {name: movie(folder / f"clip.{name}", map(halves, range(FRAMES))) for name in CODECS}


def frames_of(path: Path) -> list[tuple[np.ndarray[Any, Any], float | None]]:
    video = open_video_file(path)
    try:
        return [(frame.pixels(), frame.time_s) for frame in video.frames()]
    finally:
        video.close()


@pytest.mark.parametrize("container", list(CODECS))
class TestContainers:
    def test_every_frame_with_its_time_and_colours(self, videos: dict[str, Path], container: str) -> None:
        found = frames_of(videos[container])
        assert len(found) == FRAMES
        assert [time_s for _, time_s in found] == pytest.approx(
            [number / FPS for number in range(FRAMES)], abs=VIDEO_TIME_S
        )
        for number in (0, 17, FRAMES - 1):
            pixels = found[number][0]
            assert pixels.shape == (96, 160, 3)
            # What encoding costs a flat colour; red and blue in each other's place would be 160 apart.
            assert np.abs(pixels[60, 20].astype(int) - (40, 200, 40)).max() < VIDEO_COLOUR_ABS
            assert np.abs(pixels[60, 140].astype(int) - (200, 40, 40)).max() < VIDEO_COLOUR_ABS
            assert pixels[10, 4 * number % 152 + 4].min() > 200

    def test_cut_off_in_the_middle(self, videos: dict[str, Path], container: str) -> None:
        """What is whole is seen, then the end is reported."""
        count, message = _seen_of(cut_off(videos[container], 0.617))
        expected = rf"ends in the middle of a frame, after {count} whole ones"
        if container == "mkv":
            expected = rf"gave {count} frames, but it has [\d,]+ of at least [\d,]+ bytes"
        assert re.search(f"{expected}: it was cut off while it was written or copied; copy it again$", message)


def _seen_of(path: Path) -> tuple[int, str]:
    """How many frames a video gives, of which the last one is whole, and how it ends."""
    video, message = open_video_file(path), ""
    seen: list[np.ndarray[Any, Any]] = []
    try:
        seen.extend(frame.pixels().astype(int) for frame in video.frames())
    except BadInput as error:
        message = str(error)
    video.close()
    count, shown = len(seen), seen[-1]
    assert FRAMES // 4 < count < FRAMES
    # The noise at the lower edge is of each frame alone.
    beside = [np.abs(shown[-12:] - halves(number)[-12:]).mean() for number in (count - 1, count - 2, count)]
    assert beside[0] == min(beside)
    return count, message


def test_a_recording_without_its_length(tmp_path: Path) -> None:
    """It says how long its parts are."""
    path = streamed(tmp_path / "clip.mkv", map(halves, range(FRAMES)))
    assert len(frames_of(path)) == FRAMES
    count, message = _seen_of(cut_off(path, 0.617))
    assert re.search(rf"gave {count} frames, but it has [\d,]+ of at least [\d,]+ bytes: it was cut off", message)


def test_a_turned_video_is_upright(videos: dict[str, Path]) -> None:
    pixels, _ = frames_of(turned(videos["mp4"]))[0]
    assert pixels.shape == (160, 96, 3)
    top, bottom = pixels[20, 48].astype(int), pixels[140, 48].astype(int)
    # The matrix turns clockwise: what was left is on top.
    assert np.abs(top - (40, 200, 40)).max() < VIDEO_COLOUR_ABS
    assert np.abs(bottom - (200, 40, 40)).max() < VIDEO_COLOUR_ABS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.mp4", None, r"none\.mp4 does not exist; expected the path of a video"),
        ("empty.mp4", b"", r"empty\.mp4 is empty \(0 bytes\); expected a video"),
        ("text.mp4", b"some text " * 99, r"text\.mp4 cannot be opened: it is not a video that FFmpeg reads"),
        ("a:b.mp4", b"some text " * 99, r"a:b\.mp4 cannot be opened: it is not a video"),
    ],
)
def test_files_that_are_no_video(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        open_video_file(tmp_path / name)


def test_an_mp4_without_its_index(videos: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="cannot be opened: it is not a video that FFmpeg reads, or it is damaged"):
        open_video_file(without_index(videos["mp4"]))


def test_a_codec_that_is_missing(videos: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="is encoded in a way that this PyAV cannot decode; convert it"):
        open_video_file(unknown_codec(videos["avi"]))


def test_without_the_extra(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        MissingDependency, match=r"needs av, which is not installed; install it: pip install 'sdrpn\[vid"
    ):
        open_video_file(videos["mp4"])


# --- over HTTP


class Camera:
    """A camera that sends MJPEG over HTTP: each connection gets frames until the test ends it."""

    def __init__(self) -> None:
        self.pictures = [Image.fromarray(halves(number)) for number in range(4)]
        self.a_connection = 8  # frames, after which it hangs up
        self.connections = 0
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for number in range(camera.a_connection):
                    data = io.BytesIO()
                    camera.pictures[number % len(camera.pictures)].save(data, format="JPEG")
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {data.tell()}\r\n\r\n"
                    self.wfile.write(head.encode() + data.getvalue() + b"\r\n")

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/stream.mjpg"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def camera() -> Iterator[Camera]:
    found = Camera()
    yield found
    found.close()


def feed_from(url: str, notes: list[str], **options: Any) -> FrameFeed:
    read = ReadOptions(**options)
    return FrameFeed([opener_of(read_source(url), read, lambda: b"")], read, note=notes.append)


def test_a_stream_that_hangs_up_is_opened_again(camera: Camera) -> None:
    notes: list[str] = []
    with feed_from(camera.url, notes, drop=False) as feed:
        frames = [next(feed) for _ in range(20)]  # more than a connection gives
    assert [frame.index for frame in frames] == list(range(20))
    times = [frame.time_s for frame in frames]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]
    assert frames[0].source == camera.url
    assert camera.connections >= 3
    assert feed.reconnects >= 2
    assert any("it is opened again" in note for note in notes)


def test_a_stream_whose_frames_change_their_size(camera: Camera) -> None:
    camera.pictures[2:] = [Image.fromarray(halves(0, (96, 64)))] * 2
    with feed_from(camera.url, [], drop=False) as feed:
        frames = [next(feed) for _ in range(8)]
    assert {frame.size_wh for frame in frames} == {(160, 96), (96, 64)}
    for frame in frames:  # each is whole: green on the left, red on the right
        width = frame.size_wh[0]
        assert (
            np.abs(frame.pixels[frame.size_wh[1] // 2, width // 4].astype(int) - (40, 200, 40)).max() < VIDEO_COLOUR_ABS
        )
        assert (
            np.abs(frame.pixels[frame.size_wh[1] // 2, 3 * width // 4].astype(int) - (200, 40, 40)).max()
            < VIDEO_COLOUR_ABS
        )


def test_a_source_that_is_killed_and_started_again(camera: Camera) -> None:
    """On the same port, as a camera comes back after its power does."""
    notes: list[str] = []
    camera.a_connection = 3
    with feed_from(camera.url, notes, drop=False) as feed:
        before = [next(feed) for _ in range(3)]
        address = camera._server.server_address
        camera.close()
        again = Camera.__new__(Camera)
        again.__dict__.update(camera.__dict__)
        again._server = ThreadingHTTPServer(address[:2], camera._server.RequestHandlerClass)
        threading.Thread(target=again._server.serve_forever, daemon=True).start()
        after = [next(feed) for _ in range(3)]
        again._server.shutdown()
        again._server.server_close()
    assert [frame.index for frame in before + after] == [0, 1, 2, 3, 4, 5]
    assert feed.reconnects >= 1


def test_a_live_stream_is_taken_at_its_newest_frame() -> None:
    """MPEG-TS over UDP, as encoders and drones send it: what comes while nobody takes frames is dropped."""
    ended = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        url = f"udp://127.0.0.1:{free.getsockname()[1]}"

    def send() -> None:
        with av.open(f"{url}?pkt_size=1316", "w", format="mpegts") as container:
            stream: Any = container.add_stream("mpeg2video", rate=FPS)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 96, "yuv420p", 5
            number = 0
            while not ended.wait(0.01):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(halves(number), format="rgb24")))
                number += 1

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with feed_from(url, []) as feed:
        first = next(feed)
        reader = feed._readers[0]
        with feed._changed:
            assert feed._changed.wait_for(lambda: reader.dropped >= 10, PATIENCE_S)
        second = next(feed)
    ended.set()
    ended_soon(sender)
    assert second.index == first.index + 1 + second.dropped - first.dropped
    assert second.dropped >= 10


class TestUrlsThatDoNotAnswer:
    def test_nobody_listens(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with (
            feed_from(f"rtsp://me:secret@127.0.0.1:{port}/x", []) as feed,
            pytest.raises(BadInput, match=r"rtsp://me:\*\*\*@127\.0\.0\.1:\d+/x cannot be opened: connection refused"),
        ):
            next(feed)

    @pytest.mark.parametrize("scheme", ["http", "rtsp"])
    def test_a_host_that_nobody_knows(self, scheme: str) -> None:
        """By its form, so that no server of names is asked."""
        with (
            feed_from(f"{scheme}://two..dots/x", []) as feed,
            pytest.raises(BadInput, match=r"x cannot be opened: the host two\.\.dots is not known; check the address"),
        ):
            next(feed)

    def test_a_protocol_that_this_library_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any, **options: Any) -> None:
            raise av.error.ProtocolNotFoundError(0, "Protocol not found")

        monkeypatch.setattr(av, "open", fail)
        with (
            feed_from("srt://camera", []) as feed,
            pytest.raises(BadInput, match="srt://camera cannot be opened: this PyAV does not read srt://; have it"),
        ):
            next(feed)

    @pytest.mark.parametrize("scheme", ["http", "rtsp"])
    def test_a_host_that_says_nothing(self, scheme: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x"
            with (
                feed_from(url, [], open_timeout_s=0.3, read_timeout_s=0.3) as feed,
                pytest.raises(
                    BadInput,
                    match=r"127\.0\.0\.1:\d+/x (cannot be opened: (no answer|nothing came)|does not answer)",
                ),
            ):
                next(feed)

    def test_one_that_falls_silent_is_opened_again(self) -> None:
        """A connection that stays open and gives nothing more."""
        finished = threading.Event()
        connections = []
        data = io.BytesIO()
        Image.fromarray(halves(0)).save(data, format="JPEG")
        part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % data.tell()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                connections.append(self)
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for _ in range(3):  # a part is known to be whole when the next one begins
                    self.wfile.write(part + data.getvalue() + b"\r\n")
                finished.wait(PATIENCE_S)

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        notes: list[str] = []
        url = f"http://127.0.0.1:{server.server_port}/x"
        with feed_from(url, notes, drop=False, open_timeout_s=2, read_timeout_s=0.5) as feed:
            for _ in range(4):
                next(feed)
        silent = "no answer within 0.5 s; check that it is on and can be reached"
        assert notes[0] == f"{url} broke off ({silent}); it is opened again"
        finished.set()
        server.shutdown()
        server.server_close()
        assert len(connections) >= 2
        assert feed.reconnects >= 1


# --- files and broadcasts over HTTP


@functools.cache
def broadcast() -> bytes:
    """MPEG-TS of H.264 with a key frame every 12, as an encoder sends it."""
    data = io.BytesIO()
    with av.open(data, "w", format="mpegts") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 160, 96, "yuv420p", 12
        stream.bit_rate = 4_000_000
        for number in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(halves(number), format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


class Host:
    """Sends these bytes over HTTP, with their number or without."""

    def __init__(self, data: bytes, *, says_length: bool) -> None:
        self.connections = 0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.connections += 1
                self.send_response(200)
                if says_length:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def require_halves(pixels: np.ndarray[Any, Any], number: int | None = None) -> None:
    """A whole picture: its colours, and the white bar where the frame with this number has it."""
    assert np.abs(pixels[60, 20].astype(int) - (40, 200, 40)).max() < VIDEO_COLOUR_ABS
    assert np.abs(pixels[60, 140].astype(int) - (200, 40, 40)).max() < VIDEO_COLOUR_ABS
    if number is not None:
        assert pixels[10, 4 * number % 152 + 4].min() > 200


def test_a_file_over_http_is_read_once_and_whole() -> None:
    with Host(broadcast(), says_length=True) as host, feed_from(f"{host.address}/a.ts", []) as feed:
        frames = list(feed)
    assert [frame.index for frame in frames] == list(range(FRAMES))
    for frame in frames:
        require_halves(frame.pixels, frame.index)
    assert (feed.reconnects, feed.dropped, feed.given_up) == (0, 0, ())


def test_the_first_frame_of_a_stream_is_its_first_key_frame() -> None:
    """Joined at its start, and in the middle of a group of pictures, whose rest is not seen."""
    data = broadcast()
    packet = 188
    middle = packet * (len(data) // packet // 12)
    for begin, first in ((0, 0), (middle, 12)):
        with Host(data[begin:], says_length=False) as host, feed_from(f"{host.address}/", [], drop=False) as feed:
            frames = [next(feed) for _ in range(10)]
        for place, frame in enumerate(frames):
            require_halves(frame.pixels, first + place)


def test_a_picture_over_http() -> None:
    data = io.BytesIO()
    Image.fromarray(halves(3)).save(data, format="JPEG")
    with Host(data.getvalue(), says_length=True) as host, feed_from(f"{host.address}/a.jpg", []) as feed:
        (frame,) = feed
    require_halves(frame.pixels, 3)


def test_what_is_no_video_is_not_said_to_be_late() -> None:
    with (
        Host(b"some text " * 99, says_length=True) as host,
        feed_from(f"{host.address}/a", []) as feed,
        pytest.raises(BadInput, match="cannot be opened: nothing came that FFmpeg reads as a video; check the"),
    ):
        next(feed)


@pytest.mark.parametrize("device", ["/dev/video97"])
def test_a_camera_by_its_device_is_named_once(device: str) -> None:
    with pytest.raises(BadInput, match=rf"^camera {device} is not there: this machine has [^;]*; name one that is$"):
        feed_from(device, [])
