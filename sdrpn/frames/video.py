"""Videos, cameras and streams through PyAV (the extra `video`): opened within a time limit, decoded one by one."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrpn.errors import BadInput
from sdrpn.frames.cut_off import what_is_missing
from sdrpn.frames.frame import Pixels
from sdrpn.frames.raw import RawFrame
from sdrpn.frames.source import host_of
from sdrpn.host.libraries import importing_extra
from sdrpn.host.suggestion import did_you_mean_path
from sdrpn.images.limits import check_size

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Video", "VideoPlace", "open_video_file"]

MAX_FRAME_PIXELS = 100_000_000  # a frame of 8K has 33 million
# A damaged packet is left out; so many in a row are no video.
MOST_DAMAGED_PACKETS = 500
# So many packets without a whole frame are a stream that has no key frames (it renews its picture part by part) or
# whose decoder calls everything torn: from then on its frames are taken as they are.
MOST_TORN_PACKETS = 600
_CUT_OFF = "it was cut off while it was written or copied; copy it again"
# Formats whose pictures go on though the answer that names them has a length.
_ALWAYS_LIVE, _LISTS = ("mpjpeg",), ("hls", "dash")


@dataclass(frozen=True)
class VideoPlace:
    """What PyAV opens. `name`: how messages name it. `live`: None: it is, unless it has a length.

    form: FFmpeg's input format, where the place alone does not tell. timeouts_s: to open, and until the next packet.
    file: the path, of a file that is read whole.
    """

    name: str
    place: str
    live: bool | None = False
    form: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    timeouts_s: tuple[float, float] | None = None
    file: Path | None = None


class Video:
    """An open container, of which the first video stream is decoded. Made by `open`; one thread uses it."""

    def __init__(self, place: VideoPlace, container: InputContainer, stream: VideoStream) -> None:
        self._place, self._container, self._stream = place, container, stream
        self.live: bool = not _has_length(container) if place.live is None else place.live
        # Threads over frames would hold several back, which a camera must not.
        stream.thread_type = "SLICE" if self.live else "AUTO"

    @classmethod
    def open(cls, place: VideoPlace) -> Video:
        """Open it. Raises BadInput where it does not answer in time, has no video, or one of an unknown kind."""
        av = pyav()
        with _named_errors(av, place, "cannot be opened"):
            container = av.open(
                place.place,
                format=place.form,
                options=dict(place.options),
                timeout=place.timeouts_s,
                metadata_errors="ignore",
            )
        try:
            return cls(place, container, _video_stream(place, container))
        except BaseException:
            container.close()
            raise

    @property
    def fps(self) -> float | None:
        """Frames per second, as the container says it."""
        rate = self._stream.average_rate
        return float(rate) if rate else None

    def frames(self) -> Iterator[RawFrame]:
        """Every frame that can be decoded.

        Raises: BadInput after the last one where the file was cut off, or a stream broke off
        """
        first_s: float | None = None
        for frame in self._whole_ones():
            if frame is None:
                yield RawFrame(_nothing, whole=False)
                continue
            check_size((frame.width, frame.height), f"a frame of {self._place.name}", MAX_FRAME_PIXELS)
            time_s = frame.time
            first_s = time_s if first_s is None else first_s
            yield RawFrame(
                _converter(self._place, frame),
                None if time_s is None or first_s is None else max(0.0, time_s - first_s),
            )

    def close(self) -> None:
        """Close the container."""
        self._container.close()

    def _whole_ones(self) -> Iterator[VideoFrame | None]:
        """Frames; of a live source None for a torn one, and for a packet that shows nothing yet."""
        begun, torn = not self.live, 0
        for frame in self._decoded():
            good = frame is not None and (begun or frame.key_frame) and not (self.live and frame.is_corrupt)
            torn = 0 if good else torn + 1
            begun = begun or good
            if good or torn > MOST_TORN_PACKETS:
                if frame is not None:
                    yield frame
            elif self.live:
                yield None

    def _decoded(self) -> Iterator[VideoFrame | None]:
        """Frames, and None for a packet without one; of a file without those that are torn."""
        av, damaged, count, torn, whole = pyav(), 0, 0, False, False
        limits_s = self._place.timeouts_s
        with _named_errors(av, self._place, "broke off", limits_s and limits_s[1]):
            for packet in _packets(av, self._container, self._stream):
                frames = None if packet is None else _frames_of(av, packet)
                if frames is None or (packet is not None and packet.is_corrupt):
                    damaged += 1
                elif packet is not None and packet.size:  # the last one is empty, and says nothing of the file
                    damaged = 0
                if damaged > MOST_DAMAGED_PACKETS:
                    raise BadInput(f"{self._place.name} cannot be decoded: {damaged} packets in a row are damaged")
                for frame in frames or ():
                    # Where all are called torn, as of a picture that is renewed part by part, they are taken.
                    torn, whole = whole and frame.is_corrupt and not self.live, not frame.is_corrupt
                    count += not torn
                    if not torn:
                        yield frame
                if not frames:
                    yield None
        if count == 0:
            raise BadInput(f"{self._place.name} has no frame that can be decoded; expected a video")
        if self.live:
            return
        if damaged or torn:
            raise BadInput(f"{self._place.name} ends in the middle of a frame, after {count} whole ones: {_CUT_OFF}")
        missing = None if self._place.file is None else what_is_missing(self._place.file)
        if missing is not None:
            raise BadInput(f"{self._place.name} gave {count} frames, but {missing}: {_CUT_OFF}")


def open_video_file(path: Path) -> Video:
    """A video's file. Raises BadInput for one that is not there or is no video."""
    if not path.is_file():
        wrong = "is not a regular file" if path.exists() else "does not exist"
        raise BadInput(f"{path} {wrong}; expected the path of a video{did_you_mean_path(path)}")
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty (0 bytes); expected a video")
    # The prefix keeps FFmpeg from taking a colon in a name for one of its protocols.
    return Video.open(VideoPlace(str(path), f"file:{path}", file=path))


def pyav(purpose: str = "reading videos, cameras and streams") -> Any:
    """The library. Raises MissingDependency with the command that installs it."""
    with importing_extra("video", purpose):
        import av

    return av


def _has_length(container: InputContainer) -> bool:
    """Whether it is a file: it has a duration, or a number of bytes that is not that of a list of parts."""
    if container.duration is not None:
        return True
    names = container.format.name.split(",")
    return not any(name in names for name in (*_ALWAYS_LIVE, *_LISTS)) and container.size > 0


def _nothing() -> Pixels:
    raise BadInput("a frame is torn; expected one that is whole")


def _video_stream(place: VideoPlace, container: InputContainer) -> VideoStream:
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise BadInput(f"{place.name} has no video ({kinds} only); expected a video or a picture")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise BadInput(
            f"{place.name} is encoded in a way that this PyAV cannot decode; convert it, for example with: "
            f"ffmpeg -i {place.name} -c:v libx264 converted.mp4"
        )
    return stream


def _packets(av: Any, container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream] | None]:
    """Packets in order, the empty last one included, which makes a decoder give what it holds; None: a damaged one."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except av.error.InvalidDataError:
            # The demuxer's generator is over now; where the damage is the end of the file, so is the file.
            yield None
            return


def _frames_of(av: Any, packet: Packet[VideoStream]) -> list[VideoFrame] | None:
    """None for a packet that cannot be decoded.

    What a decoder makes of half a frame comes later, where several threads decode, and is called torn then.
    """
    try:
        frames: list[VideoFrame] = packet.decode()
    except av.error.InvalidDataError:
        return None
    return frames


def _converter(place: VideoPlace, frame: VideoFrame) -> Callable[[], Pixels]:
    def convert() -> Pixels:
        with _named_errors(pyav(), place, "has a frame that cannot be converted to RGB"):
            pixels: Any = frame.to_ndarray(format="rgb24")
        quarters = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels

    return convert


@contextmanager
def _named_errors(av: Any, place: VideoPlace, what: str, silent_s: float | None = None) -> Iterator[None]:
    """FFmpeg's errors as one line that names the source.

    Args: silent_s: how long nothing came where a time limit is over; None: since the block began
    """
    begun_s = time.monotonic()
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise BadInput(
            f"{place.name} {what}: {_reason(av, place, error, silent_s or time.monotonic() - begun_s)}"
        ) from error


def _reason(av: Any, place: VideoPlace, error: Exception, silent_s: float) -> str:
    seconds = place.timeouts_s
    if isinstance(error, (av.error.ExitError, TimeoutError)) and seconds is not None:
        return f"no answer within {round(silent_s, 1):g} s; check that it is on and can be reached"
    if isinstance(error, av.error.DecoderNotFoundError):
        return "this PyAV has no decoder for it; convert it, for example with ffmpeg"
    if isinstance(error, av.error.InvalidDataError):
        if seconds is not None:
            return "nothing came that FFmpeg reads as a video; check the address"
        return "it is not a video that FFmpeg reads, or it is damaged or cut off"
    scheme = place.place.partition("://")[0]
    if isinstance(error, av.error.ProtocolNotFoundError):
        return f"this PyAV does not read {scheme}://; have it sent on as rtsp, for example"
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return f"it asks for another user or password; expected {scheme}://USER:PASSWORD@HOST/..."
    host = host_of(place.place)
    if host is not None and getattr(error, "errno", None) == errno.EIO and not _is_known(host):
        return f"the host {host} is not known; check the address"
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return f"{text[:1].lower()}{text[1:]}"


def _is_known(host: str) -> bool:
    """Whether a name stands for an address; FFmpeg reports one that does not as an error of the device."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True
