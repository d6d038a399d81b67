"""Questions about pictures as inputs of the LLM: text, image tokens in their place, and an answer where there is one.

Every other prompt also has the tokens of a crop, as in the second pass. Calibration on text alone makes a model worse
on image tokens, whose activations differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from sdrpn.calibration.layer_inputs import CalibrationRows
from sdrpn.checkpoint import Checkpoint
from sdrpn.errors import BadInput
from sdrpn.families.registry import prompt_of
from sdrpn.images.image import open_image
from sdrpn.labels.questions import DataQuestion
from sdrpn.method.roi import Crop
from sdrpn.model.base import BaseModel, base_from_checkpoint
from sdrpn.model.looks import picture_look
from sdrpn.model.prompt_rows import prompt_rows

__all__ = ["CalibrationPrompts"]


@dataclass(frozen=True)
class CalibrationPrompts:
    """Questions, and the folder of their pictures."""

    questions: tuple[DataQuestion, ...]
    images: Path
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if not self.questions:
            raise BadInput("there is no question to calibrate on; expected at least one")

    @property
    def digest(self) -> str:
        """Digest of the questions and pictures, 12 hexadecimal digits."""
        found = hashlib.sha256()
        for question in self.questions:
            found.update(repr((question.text, question.answer)).encode("utf-8", "surrogatepass"))
            found.update(_bytes(self.images / question.image))
        return found.hexdigest()[:12]

    @torch.inference_mode()
    def rows(self, checkpoint: Checkpoint) -> list[CalibrationRows]:
        """The rows of each question, on the CPU. Reads only the vision tower and the embedding table.

        Raises: BadImage for a picture that cannot be read
        """
        base = base_from_checkpoint(checkpoint, 1)
        base.spec = checkpoint.spec  # with its RPN, on which prompts and the places of crops depend
        return list(self._sequences(base, checkpoint.spec.llm.max_context))

    def _sequences(self, base: BaseModel, longest: int) -> Iterator[CalibrationRows]:
        for number, question in enumerate(self.questions):
            prompt = prompt_of(base.spec, self.tokenizer, question.text)
            picture, crops = open_image(self.images / question.image), list[Crop]()
            if number % 2:
                width, height = picture.size
                middle = (width // 4, height // 4, -(-3 * width // 4), -(-3 * height // 4))
                crops.append(Crop(middle))
            answer = self.tokenizer.encode(question.answer or "", add_special_tokens=False).ids
            look = picture_look(base, picture)
            rows = prompt_rows(base, picture, look, prompt.ids_before, (*prompt.ids_after, *answer), crops)
            embeds, *deepstack = (part[0, :longest] for part in (rows.embeds, *rows.deepstack))
            yield CalibrationRows(embeds, rows.placed.rows(0, len(embeds)), tuple(deepstack))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); expected a picture for the calibration") from error
