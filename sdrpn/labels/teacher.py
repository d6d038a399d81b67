"""The model that labels: it answers questions about pictures and records the attention of its answers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image
from tokenizers import Tokenizer

from sdrpn.errors import BadImage, BadInput, ContextTooLong
from sdrpn.families.registry import family_of, prompt_of, seen_of
from sdrpn.images.image import open_image
from sdrpn.images.square import padded_to_square
from sdrpn.labels.attention import (
    Heads,
    Rows,
    WatchedAnswer,
    WatchedPrompt,
    require_heads,
    require_room,
    watch_answers,
    watched_prompt,
)
from sdrpn.labels.questions import DataQuestion
from sdrpn.method.geometry import Seen
from sdrpn.method.grids import ImageGrid
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import SdRpnModel
from sdrpn.model.looks import picture_looks
from sdrpn.model.prompt_batch import Start
from sdrpn.model.vision import LookTokens
from sdrpn.text.prompt import Prompt, decode_text

__all__ = ["Answers", "Asking", "PictureShape", "Teacher", "TeacherOptions", "require_shape"]

Answers = Literal["own", "given"]
ENCODED_AT_ONCE = 16  # pictures
_Value = TypeVar("_Value")
PictureShape = Literal["native", "square"]
Asking = Literal["plain", "short", "boxes"]

_SHORT = "\nAnswer the question using a single word or phrase."  # the official evaluations' suffix
_BOXES = "\nPoint out every region that is needed to answer: write the bounding box of each on a line of its own."
# What follows a question when it is asked for labels, and when it is trained on.
_SUFFIXES: dict[Asking, tuple[str, str]] = {"plain": ("", ""), "short": (_SHORT, _SHORT), "boxes": (_BOXES, _SHORT)}


@dataclass(frozen=True)
class TeacherOptions:
    """How questions are answered, and which rows of attention are recorded.

    shape: "square": pictures are padded to squares first; for models that see every picture as one square: "native"
    asking: "short": for a word or a phrase; "boxes": for the regions that the answer needs, while the prompts to train
        on ask for a short answer
    """

    rows: Rows = "answer"
    answers: Answers = "own"  # "given": those in the file of questions
    max_new_tokens: int = 128  # the official code's limit
    shape: PictureShape = "native"
    asking: Asking = "plain"

    def to_json(self) -> dict[str, Any]:
        """For provenance. Entries that older releases did not know are left out where they change nothing."""
        known = ("rows", "answers", "max_new_tokens")
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in known or getattr(self, field.name) != field.default
        }


def _batches(prompts: Mapping[int, WatchedPrompt], size: int) -> list[list[int]]:
    """Their keys in pieces: prompts that start alike after one another, and all by length, so that little is padded."""
    order: dict[Start, int] = {}
    for prompt in prompts.values():
        order.setdefault(prompt.start, len(order))
    ranked = sorted(prompts, key=lambda key: (prompts[key].image.stop, order[prompts[key].start], prompts[key].length))
    return _pieces(ranked, size)


def _pieces(values: Sequence[_Value], size: int) -> list[list[_Value]]:
    return [list(values[first : first + size]) for first in range(0, len(values), size)]


def require_shape(spec: ModelSpec, shape: PictureShape) -> None:
    """Raise BadInput for pictures to be padded that the model sees as squares anyway."""
    if shape == "square" and family_of(spec).square(spec.vision) is not None:
        raise BadInput("this model sees every picture as a square; leave the shape native", options=("shape native",))


class Teacher:
    """A model with its tokenizer and a folder of pictures. Caches the tokens of the last pictures."""

    def __init__(
        self, model: SdRpnModel, tokenizer: Tokenizer, images: Path, options: TeacherOptions | None = None
    ) -> None:
        """Raises BadInput for pictures to be padded that the model sees as squares anyway."""
        self.model = model
        self.options = TeacherOptions() if options is None else options
        require_shape(model.spec, self.options.shape)
        self._tokenizer = tokenizer
        self.images = images
        # What is asked is what a model with an RPN is asked: families may put more into its prompts.
        rpn = model.spec.rpn or family_of(model.spec).trained_rpn(1)
        self._asked_spec = dataclasses.replace(model.spec, rpn=rpn)
        self._seen: dict[str, tuple[LookTokens, ImageGrid, tuple[int, int]]] = {}

    @property
    def seen(self) -> Seen:
        """What the grids cover of the pictures."""
        return "pad" if self.options.shape == "square" else seen_of(self.model.spec)

    def prompt(self, question: DataQuestion) -> Prompt:
        """The prompt to train on."""
        return self._prompt(question.text + _SUFFIXES[self.options.asking][1])

    def grid(self, question: DataQuestion) -> ImageGrid:
        """The cells over a question's picture. Raises BadImage."""
        return self._look(question.image)[1]

    def image_wh(self, question: DataQuestion) -> tuple[int, int]:
        """Size of a question's picture, in pixels, before it is padded. Raises BadImage."""
        return self._look(question.image)[2]

    def watch(self, question: DataQuestion, heads: Heads) -> WatchedAnswer:
        """Answer one question and record the attention of `heads` (layer -> heads) to its picture.

        Raises BadImage, ContextTooLong, and BadInput where an answer should be given and is missing.
        """
        (found,) = self.watch_all([question], heads)
        if isinstance(found, Exception):
            raise found
        return found

    def watch_all(
        self, questions: Sequence[DataQuestion], heads: Heads, batch: int | None = None
    ) -> list[WatchedAnswer | BadImage | ContextTooLong]:
        """The same for several questions; what cannot be asked has its error in place of an answer.

        batch: how many are answered at once, those about one picture and those of similar length together; None: all
        """
        self._see([question.image for question in questions])
        asked: list[WatchedPrompt | BadImage | ContextTooLong] = []
        for question in questions:
            try:
                asked.append(self._asked(question))
            except (BadImage, ContextTooLong) as error:  # one bad picture among many must not stop the run
                asked.append(error)
        prompts = {place: prompt for place, prompt in enumerate(asked) if isinstance(prompt, WatchedPrompt)}
        found: dict[int, WatchedAnswer] = {}
        for places in _batches(prompts, batch or len(questions)):
            answers = watch_answers(
                self.model,
                [prompts[place] for place in places],
                heads,
                rows=self.options.rows,
                max_new_tokens=self.options.max_new_tokens,
                stop_ids=self.model.spec.prompt.eos_token_ids,
            )
            found |= zip(places, answers, strict=True)
        return [prompt if isinstance(prompt, Exception) else found[place] for place, prompt in enumerate(asked)]

    def require_askable(self, questions: Sequence[DataQuestion], heads: Mapping[int, Sequence[int]]) -> None:
        """Raise early what `watch` would raise later: BadInput for a head or a missing answer."""
        require_heads(self.model.spec.llm, heads)
        for question in questions:
            self._given_ids(question)

    def text(self, token_ids: Sequence[int]) -> str:
        """An answer as text."""
        return decode_text(self._tokenizer, token_ids).strip()

    def _prompt(self, text: str) -> Prompt:
        return prompt_of(self._asked_spec, self._tokenizer, text)

    def _asked(self, question: DataQuestion) -> WatchedPrompt:
        look, grid, _ = self._look(question.image)
        prompt = self._prompt(question.text + _SUFFIXES[self.options.asking][0])
        asked = watched_prompt(self.model, look, prompt, grid, self._given_ids(question))
        require_room(self.model, asked, self.options.max_new_tokens)
        return asked

    def _given_ids(self, question: DataQuestion) -> list[int] | None:
        if self.options.answers == "own":
            return None
        if question.answer is None:
            raise BadInput(
                f"question {question.id} has no answer; add one to each line, or let the model answer itself",
                options=("answers own",),
            )
        ids: list[int] = self._tokenizer.encode(question.answer, add_special_tokens=False).ids
        return ids[: self.options.max_new_tokens]

    def _look(self, name: str) -> tuple[LookTokens, ImageGrid, tuple[int, int]]:
        if name not in self._seen:
            self._see([name])
        if name not in self._seen:
            self._open(name)  # raises what is wrong with it
        return self._seen[name]

    def _see(self, names: Sequence[str]) -> None:
        """Encode these pictures and forget all others; unreadable ones are left out."""
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        opened: dict[str, tuple[Image.Image, tuple[int, int]]] = {}
        for name in names:
            if name not in self._seen and name not in opened:
                with contextlib.suppress(BadImage):
                    opened[name] = self._open(name)
        for names in _pieces(list(opened), ENCODED_AT_ONCE):
            looks = picture_looks(self.model, [opened[name][0] for name in names])
            for name, look in zip(names, looks, strict=True):
                picture, image_wh = opened[name]
                self._seen[name] = look, self.model.spec.vision.grid(picture.size), image_wh

    def _open(self, name: str) -> tuple[Image.Image, tuple[int, int]]:
        """A picture as the model gets it, and the size of its file's. Raises BadImage."""
        picture = open_image(self.images / name)
        shown = padded_to_square(picture) if self.options.shape == "square" else picture
        _ = self.model.spec.vision.grid(shown.size).hw  # raises for a shape that the model refuses
        return shown, picture.size
