"""The model that labels: it answers questions about pictures and records the attention of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from torch import Tensor

from sdrpn.errors import BadInput
from sdrpn.families.registry import prompt_of
from sdrpn.images.image import open_image
from sdrpn.labels.attention import Rows, WatchedAnswer, require_heads, watch_answer
from sdrpn.labels.questions import DataQuestion
from sdrpn.method.grids import ImageGrid
from sdrpn.model.base import SdRpnModel
from sdrpn.model.looks import picture_tokens
from sdrpn.text.prompt import Prompt, decode_text

__all__ = ["Answers", "Teacher", "TeacherOptions"]

Answers = Literal["own", "given"]


@dataclass(frozen=True)
class TeacherOptions:
    """How questions are answered, and which rows of attention are recorded."""

    rows: Rows = "answer"
    answers: Answers = "own"  # "given": those in the file of questions
    max_new_tokens: int = 128  # the official code's limit


class Teacher:
    """A model with its tokenizer and a folder of pictures. Caches the tokens of the last picture."""

    def __init__(
        self, model: SdRpnModel, tokenizer: Tokenizer, images: Path, options: TeacherOptions | None = None
    ) -> None:
        self.model = model
        self.options = TeacherOptions() if options is None else options
        self._tokenizer = tokenizer
        self.images = images
        self._embedded: tuple[str, Tensor, ImageGrid] | None = None

    def prompt(self, question: DataQuestion) -> Prompt:
        """The prompt of a question."""
        return prompt_of(self.model.spec, self._tokenizer, question.text)

    def grid(self, question: DataQuestion) -> ImageGrid:
        """The cells over a question's picture. Raises BadImage."""
        return self._seen(question.image)[1]

    def watch(self, question: DataQuestion, heads: Mapping[int, Sequence[int]]) -> WatchedAnswer:
        """Answer one question and record the attention of `heads` (layer -> heads) to its picture.

        Raises BadImage, ContextTooLong, and BadInput where an answer should be given and is missing.
        """
        tokens, grid = self._seen(question.image)
        return watch_answer(
            self.model,
            tokens,
            self.prompt(question),
            heads,
            grid=grid,
            rows=self.options.rows,
            max_new_tokens=self.options.max_new_tokens,
            stop_ids=self.model.spec.prompt.eos_token_ids,
            given_ids=self._given_ids(question),
        )

    def require_askable(self, questions: Sequence[DataQuestion], heads: Mapping[int, Sequence[int]]) -> None:
        """Raise early what `watch` would raise later: BadInput for a head or a missing answer."""
        require_heads(self.model.spec.llm, heads)
        for question in questions:
            self._given_ids(question)

    def text(self, token_ids: Sequence[int]) -> str:
        """An answer as text."""
        return decode_text(self._tokenizer, token_ids).strip()

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

    def _seen(self, name: str) -> tuple[Tensor, ImageGrid]:
        if self._embedded is None or self._embedded[0] != name:
            picture = open_image(self.images / name)
            grid = self.model.spec.vision.grid(picture.size)
            self._embedded = name, picture_tokens(self.model, picture), grid
        return self._embedded[1:]
