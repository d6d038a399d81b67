"""Ask one question about one image. Everything that can be checked early is checked before graphs are loaded.

For several questions, use a session: sdrpn.Session.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.families.family import Resize
from sdrpn.families.look_settings import LookSettings
from sdrpn.families.registry import seen_of
from sdrpn.images.image import open_image
from sdrpn.method.geometry import Seen
from sdrpn.method.policy import OWN, Roi, RoiChange
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import Answer, EngineOptions, Sampling
from sdrpn.runtime.drawing import draw_regions
from sdrpn.runtime.pictures.picture import JpegMode, open_picture
from sdrpn.workflows.opened_session import SessionRequest, opened_session, require_memory, require_tokenizer

__all__ = [
    "NO_RPN",
    "Answer",
    "AskRequest",
    "Asked",
    "EngineOptions",
    "Roi",
    "RoiChange",
    "Sampling",
    "ask_question",
    "silence_onnxruntime",
]

NO_RPN = "has no RPN: answering as the plain model"  # the end of that note


@dataclass(frozen=True)
class AskRequest(SessionRequest):
    """A question, and how and where to answer it. The fields from `backend` on are those of `Session.open`."""

    bundle: Path | str
    image: Path | str | bytes  # a file or its bytes, in any format that Pillow reads
    question: str
    roi: Roi = OWN  # how it looks again; None: it looks once
    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    jpeg: JpegMode = "exact"
    preset: str | None = None  # this and the rest: see LookSettings
    image_tokens: tuple[int, int] | None = None
    resize: Resize | None = None

    def look_settings(self, spec: ModelSpec) -> LookSettings:
        """How the model looks. Raises BadInput for what it cannot use."""
        return LookSettings(self.roi, self.preset, self.image_tokens, self.resize).settled(spec)


@dataclass(frozen=True)
class Asked:
    """The answer, and what is needed to draw where the model looked."""

    answer: Answer
    image: Path | str | bytes
    fit: Seen

    def to_json(self) -> dict[str, Any]:
        """The answer as `sdrpn ask --json` prints it; it has no map."""
        names = ("text", "token_ids", "finish_reason", "boxes_xyxy_px", "roi_token_count", "note", "timings", "tokens")
        return {name: getattr(self.answer, name) for name in names}

    @property
    def drawn(self) -> str:
        """What `overlay` shows."""
        if self.answer.boxes_xyxy_px:
            return "where it looked"
        if self.answer.roi_map is not None:
            return "its map, of which it looked at no part again"
        return "the picture, at which it looked once"

    def overlay(self) -> Image:
        """The image under heat map and boxes, with the crop beside it. Raises BadImage."""
        answer = self.answer
        return draw_regions(open_image(self.image), answer.roi_map, answer.boxes_xyxy_px, answer.dropped, self.fit)


def ask_question(
    request: AskRequest, *, piece: Callable[[str], None] | None = None, note: Callable[[str], None] = lambda text: None
) -> Asked:
    """Open the bundle, answer, and close it.

    Args:
        piece: called with each piece of the answer as it is generated
        note: called with warnings, such as why existing engines are not used

    Raises:
        BadInput: the bundle has no tokenizer, or as `Session.open`
        BadImage: the picture cannot be read
        RunFailed: there is not enough memory, or a graph failed
    """
    bundle = open_bundle(bundle_path(request.bundle))
    require_tokenizer(bundle)
    settings = request.look_settings(bundle.spec)
    if request.check_memory:
        require_memory(bundle, request)
    picture = open_picture(request.image, jpeg=request.jpeg, threads=request.threads)
    with opened_session(bundle, request, max_batch=1, note=note) as session:
        first_note = session.backend_note
        if first_note is not None:
            note(first_note)
        policy = settings.roi
        if policy is not None and session.spec.rpn is None:
            note(f"{request.bundle} {NO_RPN}")
            policy = None
        stream = session.stream(
            picture,
            request.question,
            roi=policy,
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            image_tokens=settings.image_tokens,
            resize=settings.resize,
        )
        if piece is not None:
            for text in stream:
                piece(text)
        answer, fit = stream.finish(), seen_of(session.spec)
        if session.backend_note != first_note:  # it changed while the session answered
            note(session.backend_note or "")
    if answer.note is not None:
        note(answer.note)
    return Asked(answer, request.image, fit)


def silence_onnxruntime() -> None:
    """Silence ONNX Runtime's log: failures are raised as exceptions, and the library would print them as well."""
    with suppress(ImportError, AttributeError):  # a broken installation is reported where it is needed
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # fatal only
