"""What a session is asked, prepared for its scheduler: prompt, policy, picture, prefix. Runs no graph."""

from __future__ import annotations

import collections.abc as abc
from dataclasses import dataclass

from tokenizers import Tokenizer

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of, prompt_of, seen_of
from sdrpn.method.policy import OWN, Roi, looking_policy, policy_for
from sdrpn.method.roi import PolicyDecide
from sdrpn.runtime.answer import Stopwatch
from sdrpn.runtime.looking import LookQuestion, LookRun
from sdrpn.runtime.pictures.frames import Channels
from sdrpn.runtime.pictures.picture import JpegMode, Picture, PictureSource, open_picture
from sdrpn.runtime.pictures.reference import PictureReference
from sdrpn.runtime.sampling import GREEDY, Constraint, Sampling
from sdrpn.runtime.scheduler import Scheduler
from sdrpn.runtime.sequence import QuestionRequest, Sequence
from sdrpn.runtime.stream import AnswerStream
from sdrpn.runtime.two_pass import TwoPass
from sdrpn.text.prompt import Prompt

__all__ = ["AnswerOptions", "Questions"]


@dataclass(frozen=True)
class AnswerOptions:
    """How a question in words is answered.

    decide: chooses the crops instead of `roi`. constraint, ends: of one answer, as in `Sequence`.
    """

    roi: Roi = OWN
    max_new_tokens: int = 64
    sampling: Sampling = GREEDY
    trace: bool = False
    channels: Channels = "rgb"
    decide: PolicyDecide | None = None
    constraint: Constraint | None = None
    ends: abc.Callable[[int], bool] = lambda token_id: False


class Questions:
    """Makes streams and looks of what somebody asks."""

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        two_pass: TwoPass,
        scheduler: Scheduler,
        tokenizer: Tokenizer | None,
        jpeg: JpegMode,
        threads: int | None,
    ) -> None:
        """Args: jpeg, threads: of pictures, as in `Session.open`"""
        self._bundle, self._variant, self._tokenizer = bundle, variant, tokenizer
        self._two_pass, self._scheduler = two_pass, scheduler
        self._jpeg_mode, self._threads = jpeg, threads

    def decide(self, roi: Roi) -> PolicyDecide | None:
        """How a map becomes crops; None: not at all. Raises BadInput for what is no policy."""
        policy = policy_for(roi, self._bundle.manifest.own_policy.roi)
        return None if policy is None else family_of(self._bundle.spec).decide(policy, self._bundle.spec)

    def decide_look(self, roi: Roi) -> PolicyDecide:
        """As `decide`, where regions are all that is asked for: None is refused, too."""
        policy = looking_policy(roi, self._bundle.manifest.own_policy.roi)
        return family_of(self._bundle.spec).decide(policy, self._bundle.spec)

    def prompt(self, question: str, by_ids: str) -> Prompt:
        """Raises what is wrong with the question. `by_ids`: what takes token ids in its place."""
        if self._tokenizer is None:
            raise BadInput(
                f"{self._bundle.path} has no tokenizer.json, so it answers token ids only: put tokenizer.json or "
                f"tokenizer.model beside the checkpoint and export it again, or call {by_ids}"
            )
        return prompt_of(self._bundle.spec, self._tokenizer, question)

    def looks_in_words(
        self, image: PictureSource, channels: Channels, questions: abc.Sequence[str], roi: Roi
    ) -> LookRun:
        """As `looks`, one for each text."""
        prompts = [(text, self.prompt(text, "look_ids")) for text in questions]
        asked = [LookQuestion(prompt.ids_before, prompt.ids_after, text) for text, prompt in prompts]
        return self.looks(image, channels, asked, self.decide_look(roi))

    def looks(
        self,
        image: PictureSource,
        channels: Channels,
        questions: abc.Sequence[LookQuestion],
        decide: PolicyDecide,
    ) -> LookRun:
        """Prepare looks, without running a graph. Raises what is wrong with the picture or a question."""
        self._scheduler.require_open()
        return LookRun(lambda: self.opened(image, channels), questions, decide, self._two_pass, self._scheduler)

    def stream(self, image: PictureSource, question: str, options: AnswerOptions) -> AnswerStream:
        """Prepare a question, without running a graph. Raises BadInput for a bad question."""
        prompt = self.prompt(question, "answer_ids")
        return self.stream_of(
            image,
            prompt.ids_before,
            prompt.ids_after,
            options.decide or self.decide(options.roi),
            options.max_new_tokens,
            options.sampling,
            (),
            options.trace,
            options.channels,
            constraint=options.constraint,
            ends=options.ends,
        )

    def stream_of(
        self,
        image: PictureSource,
        before: tuple[int, ...],
        after: tuple[int, ...],
        decide: PolicyDecide | None,
        max_new_tokens: int,
        sampling: Sampling,
        stop_ids: tuple[int, ...],
        trace: bool,
        channels: Channels = "rgb",
        *,
        constraint: Constraint | None = None,
        ends: abc.Callable[[int], bool] = lambda token_id: False,
    ) -> AnswerStream:
        """A question by token ids. Raises BadInput for a bad one, or where nothing can answer."""
        self._scheduler.require_open()
        if self._variant.parts == "look":
            raise BadInput(
                'this session was opened with parts="look", without the tail, which answers; open the bundle with '
                'parts="all", or look'
            )
        watch = Stopwatch()
        with watch.stage("preprocess"):
            picture = self.opened(image, channels)
            request = QuestionRequest(picture, before, after, decide, max_new_tokens)
            prefix = self._two_pass.prefix_of(request)
        stops = (*self._bundle.spec.prompt.eos_token_ids, *stop_ids)
        reference = PictureReference(image, channels, picture.size, seen_of(self._bundle.spec))
        sequence = Sequence(
            request,
            prefix,
            watch,
            sampling,
            stops,
            keep_trace=trace,
            picture=reference,
            constraint=constraint,
            ends=ends,
        )
        return AnswerStream(self._scheduler, sequence, self._tokenizer)

    def opened(self, image: PictureSource, channels: Channels) -> Picture:
        """A picture, as this session decodes it. Raises BadImage, BadInput."""
        return open_picture(image, jpeg=self._jpeg_mode, threads=self._threads, channels=channels)
