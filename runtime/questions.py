"""What a session is asked, prepared for its scheduler: prompt, policy, picture, prefix. Runs no graph."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
from dataclasses import dataclass
from typing import TypeAlias, cast, get_args

from tokenizers import Tokenizer

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.errors import BadInput
from sdrpn.families.family import Resize
from sdrpn.families.registry import family_of, pieces_of, prompt_of, seen_of
from sdrpn.host.field_types import CheckedFields
from sdrpn.method.policy import OWN, Roi, looking_policy, policy_for
from sdrpn.method.roi import Decide, RoiPolicy, without_sinks
from sdrpn.method.spec import Vision
from sdrpn.runtime.answer import Stopwatch
from sdrpn.runtime.looking import LookQuestion, LookRun
from sdrpn.runtime.pictures.frames import Channels
from sdrpn.runtime.pictures.picture import JpegMode, Picture, PictureSource, open_picture
from sdrpn.runtime.pictures.reference import PictureReference
from sdrpn.runtime.sampling import GREEDY, Constraint, Sampling
from sdrpn.runtime.scheduler import Scheduler
from sdrpn.runtime.sequence import LookPlan, QuestionRequest, Sequence, Shown
from sdrpn.runtime.stream import AnswerStream
from sdrpn.runtime.token_ids import ids_of
from sdrpn.runtime.two_pass import TwoPass
from sdrpn.text.prompt import Pieces, Prompt
from sdrpn.text.turns import Turn, conversation

__all__ = ["OWN_BUDGET", "AnswerOptions", "Budget", "Images", "Questions", "images_of"]

# What a question shows: one picture, a list of several, or none.
Images: TypeAlias = "PictureSource | abc.Sequence[PictureSource] | None"


@dataclass(frozen=True)
class Budget:
    """How a picture becomes image tokens.

    image_tokens: the least and the most of a picture, and of a crop; None: as the model has it
    resize: None: as the model has it
    """

    image_tokens: tuple[int, int] | None = None
    resize: Resize | None = None

    def __post_init__(self) -> None:
        pair = self.image_tokens
        if pair is not None and (not isinstance(pair, tuple) or len(pair) != 2 or not all(map(_is_whole, pair))):
            raise BadInput(
                f"image_tokens is {pair!r}; expected the least and the most, such as (256, 576), or None",
                options=("image_tokens",),
            )
        if self.resize is not None and self.resize not in get_args(Resize):
            raise BadInput(
                f"resize is {self.resize!r}; expected {' or '.join(map(repr, get_args(Resize)))}, or None",
                options=("resize",),
            )


OWN_BUDGET = Budget()


@dataclass(frozen=True)
class AnswerOptions(CheckedFields):
    """How a question in words is answered.

    decide: chooses the crops instead of `roi`. constraint, ends: of one answer, as in `Sequence`. turns: the whole
    conversation, which ends with the question and shows every picture; None: the question alone.
    Raises: BadInput for values of other types.
    """

    # The policy, the picture and the request that are made of them say more.
    checked_elsewhere = ("roi", "channels", "max_new_tokens")

    roi: Roi = OWN
    max_new_tokens: int = 64
    sampling: Sampling = GREEDY
    trace: bool = False
    channels: Channels = "rgb"
    decide: Decide | None = None
    constraint: Constraint | None = None
    ends: abc.Callable[[int], bool] = lambda token_id: False
    budget: Budget = OWN_BUDGET
    turns: tuple[Turn, ...] | None = None


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
        self._bundle, self._variant, self.tokenizer = bundle, variant, tokenizer
        self._two_pass, self._scheduler = two_pass, scheduler
        self._jpeg_mode, self._threads = jpeg, threads

    def plan(self, roi: Roi, budget: Budget = OWN_BUDGET, decide: Decide | None = None) -> LookPlan:
        """How a question looks. Raises BadInput for what is no policy, or a budget that the model has not.

        Args: decide: chooses the crops instead of `roi`, of which the gate's threshold stays
        """
        policy = policy_for(roi, self._bundle.manifest.own_policy.roi)
        if decide is not None:
            return LookPlan(self.vision(budget), without_sinks(decide), self._gate_threshold(policy))
        return self._plan_by(policy, budget)

    def look_plan(self, roi: Roi, budget: Budget = OWN_BUDGET) -> LookPlan:
        """As `plan`, where regions are all that is asked for: None is refused, too."""
        return self._plan_by(looking_policy(roi, self._bundle.manifest.own_policy.roi), budget)

    def _plan_by(self, policy: RoiPolicy | None, budget: Budget) -> LookPlan:
        vision = self.vision(budget)
        if policy is None:
            return LookPlan(vision, None)
        spec = dataclasses.replace(self._bundle.spec, vision=vision)
        return LookPlan(vision, family_of(spec).decide(policy, spec), self._gate_threshold(policy))

    def _gate_threshold(self, policy: RoiPolicy | None) -> float | None:
        """The policy's, else the bundle's, else that of the official evaluation; None: no policy."""
        if policy is None or policy.gate_threshold is not None:
            return None if policy is None else policy.gate_threshold
        return self._bundle.manifest.gate_threshold

    def vision(self, budget: Budget) -> Vision:
        """The model's own with such a budget. Raises BadInput for one that it cannot have."""
        family, vision = family_of(self._bundle.spec), self._bundle.spec.vision
        if budget.resize is not None:
            vision = family.with_resize(vision, budget.resize)
        if budget.image_tokens is None:
            return vision
        least, most = budget.image_tokens
        if most > self._two_pass.max_context:
            raise BadInput(
                f"image_tokens are {least} to {most}; this bundle has {self._two_pass.max_context} positions for the "
                "whole prompt: lower the most",
                options=("image_tokens",),
            )
        return family.with_image_tokens(vision, least, most)

    def prompt(self, question: str, by_ids: str) -> Prompt:
        """Raises what is wrong with the question. `by_ids`: what takes token ids in its place."""
        return prompt_of(self._bundle.spec, self._text(by_ids), question)

    def _text(self, by_ids: str) -> Tokenizer:
        if self.tokenizer is None:
            raise BadInput(
                f"{self._bundle.path} has no tokenizer.json, so it answers token ids only: put tokenizer.json or "
                f"tokenizer.model beside the checkpoint and export it again, or call {by_ids}"
            )
        return self.tokenizer

    def looks_in_words(
        self,
        image: PictureSource,
        channels: Channels,
        questions: abc.Sequence[str],
        roi: Roi,
        budget: Budget = OWN_BUDGET,
    ) -> LookRun:
        """As `looks`, one for each text."""
        prompts = [(text, self.prompt(text, "look_ids")) for text in questions]
        asked = [LookQuestion(prompt.ids_before, prompt.ids_after, text) for text, prompt in prompts]
        return self.looks(image, channels, asked, self.look_plan(roi, budget))

    def looks(
        self,
        image: PictureSource,
        channels: Channels,
        questions: abc.Sequence[LookQuestion],
        plan: LookPlan,
    ) -> LookRun:
        """Prepare looks, without running a graph. Raises what is wrong with the picture or a question."""
        self._scheduler.require_open()
        return LookRun(lambda: self.opened(image, channels), questions, plan, self._two_pass, self._scheduler)

    def stream(self, images: Images, question: str, options: AnswerOptions) -> AnswerStream:
        """Prepare a question, without running a graph. Raises BadInput for a bad question or conversation."""
        shown = images_of(images)
        turns = conversation(question, images=len(shown)) if options.turns is None else options.turns
        pieces = pieces_of(self._bundle.spec, self._text("answer_ids"), turns)
        return self.stream_of_pieces(shown, pieces, options)

    def stream_of(
        self,
        image: PictureSource,
        ids_before: abc.Iterable[int],
        ids_after: abc.Iterable[int],
        options: AnswerOptions,
        stop_ids: abc.Iterable[int] = (),
    ) -> AnswerStream:
        """A question about one image by token ids. Raises BadInput for a bad one, or where nothing can answer."""
        pieces = ids_of("ids_before_image", ids_before), ids_of("ids_after_image", ids_after)
        return self.stream_of_pieces((image,), pieces, options, stop_ids)

    def stream_of_pieces(
        self,
        images: abc.Sequence[PictureSource],
        pieces: Pieces,
        options: AnswerOptions,
        stop_ids: abc.Iterable[int] = (),
    ) -> AnswerStream:
        """As `stream_of`, with any number of images: they stand between the pieces, one more than images.

        Several images are looked at once, and so is a text without one.
        """
        self._scheduler.require_open()
        plan = self.plan(options.roi, options.budget, options.decide)
        if self._variant.parts == "look":
            raise BadInput(
                'this session was opened with parts="look", without the tail, which answers; open the bundle with '
                'parts="all", or look'
            )
        watch = Stopwatch()
        with watch.stage("preprocess"):
            request = self._request(images, pieces, plan, options.max_new_tokens, options.channels)
            prefix = self._two_pass.prefix_of(request)
        sampling = options.sampling
        if sampling.repetition_penalty is None:
            penalty = self._bundle.spec.prompt.repetition_penalty
            sampling = dataclasses.replace(sampling, repetition_penalty=penalty)
        reference = None
        if request.image is not None:
            reference = PictureReference(images[0], options.channels, request.image.size, seen_of(self._bundle.spec))
        sequence = Sequence(
            request,
            prefix,
            watch,
            sampling,
            (*self._bundle.spec.prompt.eos_token_ids, *ids_of("stop_ids", stop_ids)),
            keep_trace=options.trace,
            picture=reference,
            constraint=options.constraint,
            ends=options.ends,
        )
        return AnswerStream(self._scheduler, sequence, self.tokenizer)

    def _request(
        self,
        images: abc.Sequence[PictureSource],
        pieces: Pieces,
        plan: LookPlan,
        max_new_tokens: int,
        channels: Channels,
    ) -> QuestionRequest:
        if len(pieces) != len(images) + 1:
            shown, between = len(images), len(pieces) - 1
            raise BadInput(f"{shown} pictures were passed, and the prompt shows {between}; expected as many")
        if len(images) != 1 and plan.decide is not None:
            what = f"{len(images)} pictures" if images else "no picture"
            plan = LookPlan(plan.vision, None, note=f"one look: the question shows {what}")
        pictures = [self.opened(image, channels) for image in images]
        if not pictures:
            (text,) = pieces
            return QuestionRequest(None, text[:-1], text[-1:], plan, max_new_tokens)
        before, after, *rest = pieces
        further = tuple(Shown(picture, ids) for picture, ids in zip(pictures[1:], rest, strict=True))
        return QuestionRequest(pictures[0], before, after, plan, max_new_tokens, further)

    def opened(self, image: PictureSource, channels: Channels) -> Picture:
        """A picture, as this session decodes it. Raises BadImage, BadInput."""
        return open_picture(image, jpeg=self._jpeg_mode, threads=self._threads, channels=channels)


def images_of(images: Images) -> tuple[PictureSource, ...]:
    """One picture, a list of several, or none."""
    if images is None:
        return ()
    return tuple(images) if isinstance(images, (list, tuple)) else (cast("PictureSource", images),)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
