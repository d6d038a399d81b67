"""A checkpoint in PyTorch that answers questions about pictures, for the jobs that need one."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields
from sdrpn.workflows.checkpoint_parts import CheckpointParts

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.labels.questions import DataQuestion
    from sdrpn.labels.teacher import Teacher
    from sdrpn.method.spec import ModelSpec

__all__ = ["ModelPrecision", "TeacherRequest", "require_device", "some_questions"]

ModelPrecision = Literal["fp32", "bf16", "fp16"]
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


@dataclass(frozen=True)
class TeacherRequest(CheckedFields):
    """Which model answers which questions, and how.

    data: JSON Lines: image, question, optionally answer
    images: folder that the image names are relative to
    limit: only the first `limit` questions; None: all
    rows: which attention counts: that of the answer's tokens, of the tokens that they were predicted from, or of
        the prompt's last token
    answers: "own": the model answers itself; "given": the answers in the data are used
    max_new_tokens: maximum length of an answer
    image_tokens: least and most of a picture, for models that take pictures of any shape; None: the checkpoint's own
    shape: "square": pictures are padded to squares first, as in the official trainings of such models
    asking: what follows a question: "plain": nothing; "short": the request for a word or phrase; "boxes": for the
        regions that the answer needs, while the prompts to train on have the short request
    batch: questions that are answered at once
    precision, device: of the model in PyTorch
    threads: of the CPU; None: one per free core, see `sdrpn.host.threads`
    """

    checkpoint: CheckpointParts
    data: Path
    images: Path
    limit: int | None = None
    rows: Literal["answer", "predicting", "last-prompt"] = "answer"
    answers: Literal["own", "given"] = "own"
    max_new_tokens: int = 128
    precision: ModelPrecision = "fp32"
    device: str = "cpu"
    threads: int | None = None
    image_tokens: tuple[int, int] | None = None
    shape: Literal["native", "square"] = "native"
    asking: Literal["plain", "short", "boxes"] = "plain"
    batch: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1:
            raise BadInput(f"batch is {self.batch}; expected a whole number of at least 1", options=("batch",))

    def questions(self) -> list[DataQuestion]:
        """Read the questions. Raises BadInput for files or folders that are missing or malformed."""
        return some_questions(self.data, self.images, self.limit)

    def small_work_of(self, checkpoint: Checkpoint) -> ModelSpec | None:
        """The model, where one question at a time makes its products small; for `torch_threads`."""
        return checkpoint.spec if self.batch == 1 else None

    def teacher(self, checkpoint: Checkpoint) -> Teacher:
        """Load the model from an open checkpoint.

        Raises: BadInput for a device that PyTorch cannot use here; BadCheckpoint without a tokenizer
        """
        from sdrpn.checkpoint.tokenizer import tokenizer_of
        from sdrpn.families.look_settings import LookSettings
        from sdrpn.labels.teacher import Teacher, TeacherOptions, require_shape
        from sdrpn.model import model_from_checkpoint
        from sdrpn.model.dtypes import torch_dtype

        require_shape(checkpoint.spec, self.shape)
        device = require_device(self.device)
        options = TeacherOptions(self.rows, self.answers, self.max_new_tokens, self.shape, self.asking)
        vision = LookSettings(None, image_tokens=self.image_tokens).vision_of(checkpoint.spec)
        tokenizer = tokenizer_of(checkpoint)
        model = model_from_checkpoint(checkpoint, torch_dtype(self.precision)).to(device)
        model.spec = dataclasses.replace(model.spec, vision=vision)
        return Teacher(model, tokenizer, self.images, options)


def some_questions(data: Path, images: Path, limit: int | None) -> list[DataQuestion]:
    """The first `limit` questions of a file. Raises BadInput."""
    from sdrpn.labels.questions import read_questions

    if not images.is_dir():
        raise BadInput(f"{images} is not a folder; expected the folder that holds the images")
    return read_questions(data)[:limit]


def require_device(name: str) -> str:
    """Return the name if PyTorch can use this device here. Raises BadInput."""
    import torch

    if not _DEVICE.fullmatch(name):
        raise BadInput(
            f"device {name!r} is none of PyTorch's; expected cpu, cuda, cuda:1, ...", options=("device cpu",)
        )
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"the device {name} cannot be used here ({reason}); use the CPU", options=("device cpu",)
        ) from error
    return name
