"""The ways in which a model looks at a picture, from the least to the most, and its answer to each. PyTorch.

A model whose pictures have any number of tokens looks at several resolutions; one that sees squares of one size looks
once, and twice with its RPN.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tokenizers import Tokenizer

from sdrpn.errors import BadImage, BadInput, ContextTooLong
from sdrpn.families.registry import family_of, prompt_of
from sdrpn.gate.both_looks import both_looks
from sdrpn.images.image import open_image
from sdrpn.labels.attention import WatchedPrompt, require_room, watched_prompt
from sdrpn.labels.questions import DataQuestion
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import BaseModel, SdRpnModel
from sdrpn.model.generation import Generated, generate_answers
from sdrpn.model.looks import picture_look
from sdrpn.text.prompt import Prompt, decode_text

__all__ = ["ONE_LOOK", "TWO_LOOKS", "Viewer", "model_at_view", "require_views", "view_names"]

_Model = TypeVar("_Model", bound=BaseModel)

ONE_LOOK, TWO_LOOKS = "one look", "two looks"


def view_names(spec: ModelSpec, resolutions: Sequence[int]) -> tuple[str, ...]:
    """The views of a model, from the least on. Raises BadInput for resolutions that it does not have."""
    require_views(spec, resolutions)
    return tuple(f"{tokens} tokens" for tokens in resolutions) or (ONE_LOOK, TWO_LOOKS)


def require_views(spec: ModelSpec, resolutions: Sequence[int]) -> None:
    """Raise BadInput where a model cannot look in these ways."""
    if spec.rpn is None:
        raise BadInput(
            "this model has no RPN, so there is no second look for a gate to decide on; name one", options=("rpn",)
        )
    if family_of(spec).square(spec.vision) is not None:
        if resolutions:
            raise BadInput(
                f"resolutions are {_listed(resolutions)}; this model turns every picture into "
                f"{spec.vision.image_tokens} tokens and is asked with one look and with two: leave them out",
                options=("resolutions",),
            )
        return
    if len(resolutions) < 3 or any(low >= high for low, high in itertools.pairwise(resolutions)):
        raise BadInput(
            f"resolutions are {_listed(resolutions) or 'not given'}; expected three or more numbers of image tokens, "
            "ascending",
            options=("resolutions",),
        )
    for tokens in resolutions:
        family_of(spec).with_image_tokens(spec.vision, tokens, tokens)


def _listed(resolutions: Sequence[int]) -> str:
    return ", ".join(map(str, resolutions))


def model_at_view(model: _Model, view: str) -> _Model:
    """The model as it looks there: the same modules, which share their weights, with another number of tokens."""
    if view in (ONE_LOOK, TWO_LOOKS):
        return model
    tokens = int(view.split()[0])
    seen = copy.copy(model)
    vision = family_of(model.spec).with_image_tokens(model.spec.vision, tokens, tokens)
    seen.spec = dataclasses.replace(model.spec, vision=vision)
    return seen


class Viewer:
    """Answers a question at every view, greedily."""

    def __init__(
        self,
        model: SdRpnModel,
        tokenizer: Tokenizer,
        images: Path,
        views: Sequence[str],
        policy: RoiPolicy,
        max_new_tokens: int,
        batch: int = 1,
    ) -> None:
        """Args:
        policy: where the second look is; a gate of the model is not asked
        batch: questions that are answered at once; the answers do not depend on it
        """
        self.batch = batch
        self.model, self.images, self.views = model, images, tuple(views)
        self.policy, self.max_new_tokens = policy, max_new_tokens
        self._tokenizer = tokenizer
        self._models = {view: model_at_view(model, view) for view in views}

    def prompt(self, question: DataQuestion) -> Prompt:
        """The prompt of a question."""
        return prompt_of(self.model.spec, self._tokenizer, question.text)

    def answers_to(self, questions: Sequence[DataQuestion]) -> list[list[str] | BadImage | ContextTooLong]:
        """Answers to up to `batch` questions, one per view; an error in place of those to what cannot be asked."""
        found: dict[int, list[str] | BadImage | ContextTooLong] = {}
        pictures: dict[str, Image.Image] = {}  # one for all questions about it
        for place, question in enumerate(questions):
            try:
                if question.image not in pictures:
                    pictures[question.image] = open_image(self.images / question.image)
            except BadImage as error:
                found[place] = error
        left = [place for place in range(len(questions)) if place not in found]
        asked = {place: (pictures[questions[place].image], questions[place]) for place in left}
        found |= self._both(asked) if self.views == (ONE_LOOK, TWO_LOOKS) else self._at_resolutions(asked)
        return [found[place] for place in range(len(questions))]

    def _both(
        self, asked: Mapping[int, tuple[Image.Image, DataQuestion]]
    ) -> dict[int, list[str] | BadImage | ContextTooLong]:
        prompts = [(picture, self.prompt(question)) for picture, question in asked.values()]
        found = both_looks(self.model, prompts, self.policy, self.max_new_tokens)
        return {
            place: answers if isinstance(answers, Exception) else [self._text(ids) for ids in answers]
            for place, answers in zip(asked, found, strict=True)
        }

    def _at_resolutions(
        self, asked: Mapping[int, tuple[Image.Image, DataQuestion]]
    ) -> dict[int, list[str] | BadImage | ContextTooLong]:
        found: dict[int, list[str]] = {place: [] for place in asked}
        failed: dict[int, BadImage | ContextTooLong] = {}
        for view in self.views:
            left = {place: pair for place, pair in asked.items() if place not in failed}
            for place, answer in self._answers_at(view, left).items():
                if isinstance(answer, str):
                    found[place].append(answer)
                else:
                    failed[place] = answer
        return {**found, **failed}

    def _answers_at(
        self, view: str, asked: Mapping[int, tuple[Image.Image, DataQuestion]]
    ) -> dict[int, str | BadImage | ContextTooLong]:
        """The answers at one view."""
        found, prompts = dict[int, str | BadImage | ContextTooLong](), dict[int, WatchedPrompt]()
        for place, (picture, question) in asked.items():
            try:
                prompts[place] = self._prompt_at(view, picture, question)
            except (BadImage, ContextTooLong) as error:
                found[place] = error
        if prompts:
            spec = self.model.spec.prompt
            answers = generate_answers(
                self._models[view],
                [prompt.rows for prompt in prompts.values()],
                max_new_tokens=self.max_new_tokens,
                stop_ids=spec.eos_token_ids,
                penalty=spec.repetition_penalty,
                prompt_ids=[prompt.text_ids for prompt in prompts.values()],
            )
            found |= zip(prompts, map(self._text, answers), strict=True)
        return found

    def _text(self, ids: Generated) -> str:
        return decode_text(self._tokenizer, ids).strip()

    def _prompt_at(self, view: str, picture: Image.Image, question: DataQuestion) -> WatchedPrompt:
        """Raises BadImage, ContextTooLong."""
        model = self._models[view]
        grid, prompt = model.spec.vision.grid(picture.size), prompt_of(model.spec, self._tokenizer, question.text)
        asked = watched_prompt(model, picture_look(model, picture), prompt, grid)
        require_room(model, asked, self.max_new_tokens)
        return asked

    def grids(self, question: DataQuestion) -> list[tuple[int, int]]:
        """Rows and columns of the picture's cells at every view. Raises BadImage."""
        picture = open_image(self.images / question.image)
        return [self._models[view].spec.vision.grid(picture.size).hw for view in self.views]
