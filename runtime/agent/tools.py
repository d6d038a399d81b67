"""Look, ask and crop on pictures below a folder: results and pictures. Knows no protocol."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.families.look_settings import LookSettings
from sdrpn.images.image_root import ImageRoot
from sdrpn.method.given_region import decide_region, require_box
from sdrpn.method.policy import RoiChange
from sdrpn.runtime.agent.results import Answered, Box, CroppedPart, FoundRegion, IgnoredRegion, LookedAt, QuestionLook
from sdrpn.runtime.look import Look
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.questions import AnswerOptions, Budget
from sdrpn.runtime.session import Session

__all__ = ["MOST_QUESTIONS", "MOST_SIDE_PX", "EncodedPicture", "PictureTools", "Shown", "ToolResult", "encoded"]

Shown = Literal["overlay", "crops", "none"]
Found = TypeVar("Found")

MOST_QUESTIONS = 16
MOST_SIDE_PX = 2048  # of a picture that is returned
_MOST_PNG_BYTES = 512 << 10  # a larger picture is sent as JPEG
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class EncodedPicture:
    """A picture file."""

    data: bytes
    mime_type: str


@dataclass(frozen=True)
class ToolResult(Generic[Found]):
    """What a tool found, and pictures of it."""

    found: Found
    pictures: tuple[EncodedPicture, ...] = ()


class PictureTools:
    """The tools over one session and one folder of pictures. Calls may overlap: the model runs in threads."""

    def __init__(self, session: Session, root: ImageRoot) -> None:
        """Args: session: not closed here"""
        self._session, self._root = session, root

    async def look(
        self,
        image: str,
        questions: Sequence[str],
        threshold: float | None = None,
        show: Shown = "overlay",
        preset: str | None = None,
        image_tokens: tuple[int, int] | None = None,
    ) -> ToolResult[LookedAt]:
        """Where questions point. Raises: SdrpnError with one line for the caller."""
        if not 1 <= len(questions) <= MOST_QUESTIONS:
            raise BadInput(f"questions has {len(questions)} entries; expected 1 to {MOST_QUESTIONS} questions")
        settings = self._settings(threshold, preset, image_tokens)
        picture = await asyncio.to_thread(self._open, image)
        looks = await self._session.look_many_async(
            picture, list(questions), roi=settings.roi, image_tokens=settings.image_tokens
        )
        found = LookedAt(
            image, picture.size, tuple(_question_look(look) for look in looks), round(looks[0].timings.total_s, 4)
        )
        return ToolResult(found, await asyncio.to_thread(_look_pictures, looks, show))

    async def ask(
        self,
        image: str,
        question: str,
        threshold: float | None = None,
        region: Box | None = None,
        max_new_tokens: int = 64,
        show: Shown = "none",
        preset: str | None = None,
        image_tokens: tuple[int, int] | None = None,
    ) -> ToolResult[Answered]:
        """Answer a question. Cancelling the task ends the answer.

        Args: region: looked at again in place of the regions that the map shows, in pixels of the upright picture
        Raises: as `look`
        """
        picture = await asyncio.to_thread(self._open, image)
        options = self._options(picture, region, self._settings(threshold, preset, image_tokens), max_new_tokens)
        answer = await self._session.stream_with(picture, question, options).finish()
        found = Answered(
            image,
            picture.size,
            answer.text,
            answer.finish_reason,
            answer.boxes_xyxy_px,
            answer.note,
            round(answer.timings.total_s, 4),
        )
        if show == "overlay":
            return ToolResult(found, (await asyncio.to_thread(lambda: encoded(answer.overlay(picture))),))
        crops = answer.boxes_xyxy_px if show == "crops" else ()
        return ToolResult(found, await asyncio.to_thread(_crops, picture, crops))

    async def crop(self, image: str, box: Box, margin: float = 0.0, max_side_px: int = 1024) -> ToolResult[CroppedPart]:
        """A part of a picture at its full resolution, scaled down to `max_side_px` where it is larger.

        Args:
            box: x1, y1, x2, y2 in pixels of the upright picture
            margin: widens the box on each side by this share of its width and height, as far as the picture goes
        Raises: as `look`
        """
        return await asyncio.to_thread(self._crop, image, box, margin, max_side_px)

    def _crop(self, image: str, box: Box, margin: float, max_side_px: int) -> ToolResult[CroppedPart]:
        if not 0 <= margin <= 1:
            raise BadInput(f"margin is {margin}; expected a share of the box from 0 to 1")
        if not 1 <= max_side_px <= MOST_SIDE_PX:
            raise BadInput(f"max_side_px is {max_side_px}; expected 1 to {MOST_SIDE_PX} pixels")
        picture = self._open(image)
        width, height = picture.size
        require_box(box, picture.size)
        x1, y1, x2, y2 = box
        across, down = round(margin * (x2 - x1)), round(margin * (y2 - y1))
        wider = max(0, x1 - across), max(0, y1 - down), min(width, x2 + across), min(height, y2 + down)
        part = _at_most(picture.part(wider), max_side_px)
        return ToolResult(CroppedPart(image, picture.size, wider, part.size), (encoded(part),))

    def _open(self, image: str) -> Picture:
        return self._session.open_picture(self._root.read(image))

    def _settings(
        self, threshold: float | None, preset: str | None, image_tokens: tuple[int, int] | None
    ) -> LookSettings:
        """Raises BadInput for what the model cannot use."""
        return LookSettings(RoiChange(threshold=threshold), preset, image_tokens).settled(self._session.spec)

    def _options(
        self, picture: Picture, region: Box | None, settings: LookSettings, max_new_tokens: int
    ) -> AnswerOptions:
        spec, decide = self._session.spec, None
        if region is not None:
            if spec.rpn is None:
                raise BadInput("region was given, and this model looks only once; crop that part and ask about it")
            require_box(region, picture.size)
            decide = decide_region(region, settings.vision_of(spec).grid)
        roi, budget = None if spec.rpn is None else settings.roi, Budget(settings.image_tokens)
        return AnswerOptions(roi, max_new_tokens, decide=decide, budget=budget)


def encoded(picture: Image.Image) -> EncodedPicture:
    """As PNG, or as JPEG where that would be large."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    if file.tell() <= _MOST_PNG_BYTES:
        return EncodedPicture(file.getvalue(), "image/png")
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=_JPEG_QUALITY)
    return EncodedPicture(file.getvalue(), "image/jpeg")


def _look_pictures(looks: Sequence[Look], show: Shown) -> tuple[EncodedPicture, ...]:
    if show == "overlay":
        return tuple(encoded(look.overlay()) for look in looks)
    if show == "crops":
        return tuple(picture for look in looks for picture in _crops(look.picture, look.boxes_xyxy_px))
    return ()


def _question_look(look: Look) -> QuestionLook:
    regions = tuple(
        FoundRegion(region.xyxy_px, round(region.score_max, 4), round(region.score_mean, 4)) for region in look.boxes
    )
    ignored = tuple(IgnoredRegion(region.xyxy_px, region.reason) for region in look.dropped)
    return QuestionLook(look.question or "", regions, ignored, look.note)


def _crops(picture: Picture, boxes: Sequence[Box]) -> tuple[EncodedPicture, ...]:
    return tuple(encoded(_at_most(picture.part(box), MOST_SIDE_PX)) for box in boxes)


def _at_most(picture: Image.Image, side_px: int) -> Image.Image:
    scale = side_px / max(picture.size)
    if scale >= 1:
        return picture
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
