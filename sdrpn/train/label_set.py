"""The labels of a folder, in order, and which of them are held out. NumPy only; knows no model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of
from sdrpn.images.names import leads_out
from sdrpn.labels.about import read_about_labels
from sdrpn.labels.denoise import BACKGROUND, FOREGROUND, IGNORED
from sdrpn.labels.labelling import LABELS, LABELS_NAME
from sdrpn.labels.shards import LABEL_COLUMNS, grid_hw, read_shards
from sdrpn.method.geometry import Seen
from sdrpn.method.grids import cell_count
from sdrpn.method.spec import ModelSpec

__all__ = ["LabelSet", "LabelledPrompt", "Split", "read_labels", "split_by_image"]


@dataclass(frozen=True, eq=False)
class LabelledPrompt:
    """The prompt of a question, without the answer, and the labels of the image's cells."""

    image: str  # relative to the folder of images
    ids_before: tuple[int, ...]  # the prompt's tokens before and after the image
    ids_after: tuple[int, ...]
    cells: NDArray[np.int8]  # (h,w)

    def length(self) -> int:
        """The number of tokens, including those of the image."""
        return len(self.ids_before) + self.cells.size + len(self.ids_after)


@dataclass(frozen=True, eq=False)
class LabelSet:
    """All usable labels of a folder, in the order of the questions."""

    prompts: tuple[LabelledPrompt, ...]
    about: dict[str, Any]  # labels.json

    def digest(self) -> str:
        """SHA-256 as hex over prompts, image names, and labels."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            text = repr((prompt.image, prompt.ids_before, prompt.ids_after))
            digest.update(text.encode("utf-8", "surrogatepass") + prompt.cells.tobytes())
        return digest.hexdigest()

    @property
    def fit(self) -> Seen:
        """What the grids cover of the pictures that were labelled."""
        fit: Seen = self.about.get("fit", "pad")  # earlier releases always padded
        return fit

    @property
    def image_tokens(self) -> tuple[int, int] | None:
        """The least and most image tokens of the pictures that were labelled; None: as the checkpoint says."""
        tokens = self.about.get("image_tokens")
        return None if tokens is None else (int(tokens[0]), int(tokens[1]))

    def spec_for(self, spec: ModelSpec) -> ModelSpec:
        """The model with these image tokens. Raises BadInput where their number is fixed."""
        if self.image_tokens is None:
            return spec
        vision = family_of(spec).with_image_tokens(spec.vision, *self.image_tokens)
        return dataclasses.replace(spec, vision=vision)

    def padded_for(self, spec: ModelSpec) -> bool:
        """Whether pictures are padded to squares before the model sees them, which by itself keeps their shape."""
        return self.fit == "pad" and family_of(spec).square(spec.vision) is None

    @property
    def images(self) -> Path | None:
        """The folder of the labelled images."""
        return Path(self.about["images"]) if "images" in self.about else None


@dataclass(frozen=True)
class Split:
    """Indices into a label set."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


LABEL_VALUES = (FOREGROUND, BACKGROUND, IGNORED)


def read_labels(folder: Path) -> LabelSet:
    """Read what `sdrpn label` wrote. Raises BadInput where it is missing, unfinished or empty."""
    about = read_about_labels(folder)
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}  # shared: mostly the same ids before an image
    prompts = []
    for row in read_shards(folder / LABELS, LABEL_COLUMNS):
        prompt = _prompt(row, folder, grid_hw(row, about))
        before = seen.setdefault(prompt.ids_before, prompt.ids_before)
        prompts.append(dataclasses.replace(prompt, ids_before=before))
    if not prompts:
        raise BadInput(f"{folder} has no usable label; the counts in its {LABELS_NAME} say why")
    return LabelSet(tuple(prompts), about)


def _prompt(row: dict[str, Any], folder: Path, hw: tuple[int, int]) -> LabelledPrompt:
    """The prompt of a row. Raises BadInput, which names the row, for values that `sdrpn label` never writes."""
    where = f"{folder}: the row {row['id']!r}"
    if any(row[name] is None or None in row[name] for name in ("ids_before", "ids_after", "cells")):
        raise BadInput(f"{where} has no tokens or no labels; label again")
    name, ids = row["image"], (*row["ids_before"], *row["ids_after"])
    if not isinstance(name, str) or not name or leads_out(name):
        raise BadInput(f"{where} names the image {name!r}; expected a path inside the folder of images")
    if min(ids, default=0) < 0:
        raise BadInput(f"{where} has the token {min(ids)}; expected none below 0: label again")
    cells = np.array(row["cells"], np.int8)
    if not np.isin(cells, LABEL_VALUES).all():
        raise BadInput(f"{where} has other labels than {', '.join(map(str, LABEL_VALUES))}; label again")
    if cells.size != cell_count(hw):
        raise BadInput(f"{where} has labels for {cells.size} cells, and its grid has {cell_count(hw)}; label again")
    return LabelledPrompt(name, tuple(row["ids_before"]), tuple(row["ids_after"]), cells.reshape(hw))


def split_by_image(prompts: Sequence[LabelledPrompt], share: float, seed: int, limit_pairs: int | None = None) -> Split:
    """Hold out a share of the images, at least one, with every question about them.

    With a limit, only the first `limit_pairs` of the others are used for training, so that a smaller limit gives a
    subset of a larger one. Raises BadInput where nothing would be left to train on.
    """
    images = sorted({prompt.image for prompt in prompts}, key=lambda image: _draw(image, seed))
    held_out = set(images[: max(1, round(share * len(images))) if share else 0])
    if len(held_out) == len(images):
        raise BadInput(
            "all labels are about one image; nothing can be held out: train without validation",
            options=("validation_share 0",),
        )
    train: list[int] = []
    validate: list[int] = []
    for place, prompt in enumerate(prompts):
        if len(train) == limit_pairs:
            break
        (validate if prompt.image in held_out else train).append(place)
    return Split(tuple(train), tuple(validate))


def _draw(image: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {image}".encode("utf-8", "surrogatepass")).digest()
