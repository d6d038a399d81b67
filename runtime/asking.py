"""The forms in which a session is asked: words or token ids, one question or many, blocking or in an event loop.

Knows nothing of how a bundle is opened.
"""

from __future__ import annotations

import asyncio
import collections.abc as abc
import dataclasses
from collections.abc import Mapping

from sdrpn.errors import BadInput, SdrpnError
from sdrpn.families.family import Resize
from sdrpn.host.field_types import require_type
from sdrpn.method.policy import OWN, Roi
from sdrpn.method.roi import Decide
from sdrpn.runtime.answer import Answer
from sdrpn.runtime.look import Look
from sdrpn.runtime.looking import LookQuestion
from sdrpn.runtime.pictures.frames import Channels
from sdrpn.runtime.pictures.picture import PictureSource
from sdrpn.runtime.questions import AnswerOptions, Budget, Images, Questions, images_of
from sdrpn.runtime.sampling import GREEDY, Sampling
from sdrpn.runtime.scheduler import Scheduler
from sdrpn.runtime.stream import AnswerStream, AsyncAnswerStream
from sdrpn.runtime.token_ids import ids_of
from sdrpn.text.turns import Turn, conversation

__all__ = ["Asking"]


class Asking:
    """What a session can be asked."""

    def __init__(self, questions: Questions, scheduler: Scheduler) -> None:
        self._questions, self._scheduler = questions, scheduler

    def answer(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """Answer a question about an image.

        Args:
            image: a path, the bytes of a picture file, a PIL image, a Picture, or a frame (H, W, 3) of uint8 or of
                floats in 0..1: an array, or a tensor of PyTorch or CuPy, which is copied from a GPU. A list of several,
                or None for a question without one, are answered with one look
            question: text; a bundle without a tokenizer needs `answer_ids`
            history: what was said before: turns of the user and the assistant, after at most one of the system. The
                images are shown in the user's first turn, unless turns say otherwise (`Turn.images`)
            roi: how the RoI map becomes crops: a RoiPolicy; a threshold, or a RoiChange, for what differs from the
                model's own policy; None: one look, no crops
            max_new_tokens: maximum length of the answer
            sampling: greedy by default
            trace: keep intermediate results
            channels: the order that a frame has them in: "rgb", or "bgr" as OpenCV has it
            image_tokens: the least and the most of the picture, and of a crop, for models whose pictures have a budget;
                None: the checkpoint's
            resize: "once", or "official": twice, as the official pipeline does it; None: as the model has it
        Raises: BadInput and its subclasses for a bad request, RunFailed if a graph failed.
        """
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=Budget(image_tokens, resize))
        return self._begun(image, question, history, options).finish()

    def answers(
        self,
        questions: abc.Iterable[tuple[PictureSource, str]],
        *,
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> list[Answer | SdrpnError]:
        """Answer many questions, several at once.

        Args:
            questions: (picture, question) pairs, as `answer` takes them; read as needed
            roi, max_new_tokens, sampling, trace, channels, image_tokens, resize: as in `answer`, for all questions
        Returns: in order, each answer, or the error that `answer` would have raised: a failure does not affect the
            others
        Raises: RunFailed if the session is closed meanwhile
        """
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=Budget(image_tokens, resize))
        found: dict[int, Answer | SdrpnError] = {}
        begun: dict[int, AnswerStream] = {}
        try:
            for number, (image, question) in enumerate(questions):
                self._scheduler.work_until(lambda: _on_their_way(begun) < 2 * self._scheduler.max_batch)
                # Pictures are large: release those of answered questions.
                found |= {n: _finished(begun.pop(n)) for n, stream in list(begun.items()) if stream.over}
                try:
                    begun[number] = self._questions.stream(image, question, options)
                    begun[number].submit()
                except SdrpnError as error:
                    self._scheduler.require_open()
                    found[number] = error
            found |= {number: _finished(stream) for number, stream in begun.items()}
        finally:
            for stream in begun.values():  # after an interruption, end all of them
                stream.close()
        return [found[number] for number in sorted(found)]

    async def answer_async(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """As `answer`, without blocking the event loop. Cancelling the task ends the answer."""
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=Budget(image_tokens, resize))
        return await self.stream_with(image, question, _with_history(options, image, question, history)).finish()

    def stream_async(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> AsyncAnswerStream:
        """As `stream`, for `async for`; it begins when it is first read. Cancelling the task ends the answer."""
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=Budget(image_tokens, resize))
        return self.stream_with(image, question, _with_history(options, image, question, history))

    def stream_with(self, image: Images, question: str, options: AnswerOptions) -> AsyncAnswerStream:
        """As `stream_async`, with all that an answer can be asked for."""
        return AsyncAnswerStream(self._scheduler, lambda: self._questions.stream(image, question, options))

    def stream(
        self,
        image: Images,
        question: str,
        *,
        history: abc.Sequence[Turn] = (),
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> AnswerStream:
        """As `answer`, but an iterator of text pieces; its `answer` is available after the last one."""
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=Budget(image_tokens, resize))
        return self._begun(image, question, history, options)

    def answer_ids(
        self,
        image: PictureSource,
        ids_before_image: abc.Sequence[int],
        ids_after_image: abc.Sequence[int],
        *,
        roi: Roi = OWN,
        decide: Decide | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        stop_ids: abc.Sequence[int] = (),
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """As `answer`, with the prompt as token ids, BOS included.

        Args:
            decide: chooses the crops instead of `roi`, from the RoI logits and the image's size; `roi` then says by
                which threshold a gate is asked first, if there is one and `roi` is not None
            stop_ids: end the answer, in addition to the model's own stop tokens
        """
        budget = Budget(image_tokens, resize)
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, decide, budget=budget)
        stream = self._questions.stream_of(image, ids_before_image, ids_after_image, options, stop_ids)
        stream.begin()
        return stream.finish()

    def answer_pieces(
        self,
        images: abc.Sequence[PictureSource],
        pieces: abc.Sequence[abc.Sequence[int]],
        *,
        roi: Roi = OWN,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        stop_ids: abc.Sequence[int] = (),
        trace: bool = False,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Answer:
        """As `answer_ids`, for any number of images: `pieces` are the ids before, between and after them.

        Several images are looked at once, and so is a text without one.
        """
        budget = Budget(image_tokens, resize)
        options = AnswerOptions(roi, max_new_tokens, sampling, trace, channels, budget=budget)
        require_type("images", images, abc.Sequence[object])
        require_type("pieces", pieces, abc.Sequence[object])
        ids = tuple(ids_of(f"pieces[{number}]", piece) for number, piece in enumerate(pieces))
        stream = self._questions.stream_of_pieces(tuple(images), ids, options, stop_ids)
        stream.begin()
        return stream.finish()

    def look(
        self,
        image: PictureSource,
        question: str,
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Look:
        """Where a question points, without words: vision, trunk and RPN run, and nothing above the tap.

        The boxes are those that `answer` would look at again. An answer to the same question goes on from there, and
        questions about the same image reuse it.

        Args:
            image, question, channels, image_tokens, resize: as in `answer`
            roi: how the map becomes boxes, as in `answer`
        Raises: as `answer`; BadInput for a bundle without an RPN.
        """
        asked = [question]
        return self.look_many(image, asked, roi=roi, channels=channels, image_tokens=image_tokens, resize=resize)[0]

    def look_many(
        self,
        image: PictureSource,
        questions: abc.Sequence[str],
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> list[Look]:
        """Where several questions about one image point, each as `look` finds it; the image is encoded once."""
        _require_several(questions)
        asked = self._questions.looks_in_words(image, channels, questions, roi, Budget(image_tokens, resize))
        return asked.finish()

    async def look_async(
        self,
        image: PictureSource,
        question: str,
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Look:
        """As `look`, without blocking the event loop. Cancelling the task ends the look."""
        (found,) = await self.look_many_async(
            image, [question], roi=roi, channels=channels, image_tokens=image_tokens, resize=resize
        )
        return found

    async def look_many_async(
        self,
        image: PictureSource,
        questions: abc.Sequence[str],
        *,
        roi: Roi = OWN,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> list[Look]:
        """As `look_many`, without blocking the event loop. Cancelling the task ends the looks."""
        _require_several(questions)
        budget = Budget(image_tokens, resize)
        run = await asyncio.to_thread(self._questions.looks_in_words, image, channels, questions, roi, budget)
        return await run.finish_async()

    def look_ids(
        self,
        image: PictureSource,
        ids_before_image: abc.Sequence[int],
        ids_after_image: abc.Sequence[int],
        *,
        roi: Roi = OWN,
        decide: Decide | None = None,
        channels: Channels = "rgb",
        image_tokens: tuple[int, int] | None = None,
        resize: Resize | None = None,
    ) -> Look:
        """As `look`, with the prompt as token ids, BOS included. `decide`: as in `answer_ids`."""
        before, after = ids_of("ids_before_image", ids_before_image), ids_of("ids_after_image", ids_after_image)
        budget = Budget(image_tokens, resize)
        plan = self._questions.look_plan(roi, budget) if decide is None else self._questions.plan(roi, budget, decide)
        (found,) = self._questions.looks(image, channels, [LookQuestion(before, after)], plan).finish()
        return found

    def _begun(self, image: Images, question: str, history: abc.Sequence[Turn], options: AnswerOptions) -> AnswerStream:
        stream = self._questions.stream(image, question, _with_history(options, image, question, history))
        stream.begin()
        return stream


def _with_history(options: AnswerOptions, image: Images, question: str, history: abc.Sequence[Turn]) -> AnswerOptions:
    """With the whole conversation, where something was said before."""
    if not history:
        return options
    return dataclasses.replace(options, turns=conversation(question, history, len(images_of(image))))


def _require_several(questions: object) -> None:
    if isinstance(questions, str):
        raise BadInput("questions is one text; expected a list of questions (look asks one)")
    if not isinstance(questions, abc.Sequence):
        raise BadInput(f"questions is {questions!r}; expected a list of questions")


def _on_their_way(streams: Mapping[int, AnswerStream]) -> int:
    return sum(not stream.over for stream in streams.values())


def _finished(stream: AnswerStream) -> Answer | SdrpnError:
    try:
        return stream.finish()
    except SdrpnError as error:
        return error
