"""The loss and the gradients that the official code has for one sample of its tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sdrpn.checkpoint import Checkpoint, open_checkpoint
from sdrpn.families.llava.names import SDRPN
from sdrpn.train.label_set import LabelledPrompt
from tests.tolerances import GOLDEN_GRADIENT_SHARE

__all__ = ["OfficialSample", "official_sample"]

IMAGE = "land_1box.png"


@dataclass(frozen=True, eq=False)
class OfficialSample:
    """checkpoint: with the RPN's weights. ids: prompt and answer, -200 for the image."""

    checkpoint: Checkpoint
    folder: Path
    loss: float
    ids: list[int]
    prompt_length: int  # of `ids`
    cells: NDArray[np.int8]
    gradients: dict[str, NDArray[np.float32]]  # by official names
    left_out: frozenset[str] = frozenset()  # gradients that the small set does not hold

    def prompt(self, answer_tokens: int = 0) -> LabelledPrompt:
        """The labelled prompt, with the first tokens of the answer after it."""
        place = self.ids.index(-200)
        after = self.ids[place + 1 : self.prompt_length + answer_tokens]
        return LabelledPrompt(IMAGE, tuple(self.ids[:place]), tuple(after), self.cells.reshape(24, 24))

    def assert_gradients(self, rpn: nn.Module) -> None:
        """Every parameter has the official gradient, and what has none here has none there."""
        expected = dict(self.gradients)
        for name, parameter in rpn.named_parameters():
            assert parameter.grad is not None
            key = f"grad_{SDRPN.file_name(f'rpn.{name}')}"
            if key in self.left_out:
                continue
            gradient = expected.pop(key)
            difference = np.abs(parameter.grad.numpy() - gradient).max() / np.abs(gradient).max()
            assert difference < GOLDEN_GRADIENT_SHARE, f"{name}: {difference}"
        assert expected == {}


@contextmanager
def official_sample(golden: Path) -> Iterator[OfficialSample]:
    """Open it."""
    folder = golden / "tiny_K3T3"
    with open_checkpoint(folder) as checkpoint, np.load(folder / "train_loss.npz") as file:
        found: dict[str, Any] = {key.removeprefix("land_1box_"): file[key] for key in file.files}
        yield OfficialSample(
            checkpoint,
            folder,
            float(found["loss"]),
            found["input_ids"].tolist(),
            int((found["labels"] == -100).sum()),
            found["roi_target"].astype(np.int8),
            {key: value for key, value in found.items() if key.startswith("grad_")},
            frozenset(found["left_out"].tolist()) if "left_out" in found else frozenset(),
        )
