"""Seeded samples of the task that models are evaluated on: a scene and a question for one of its codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.tags.questions import SEEN_FRAMES, SHIFTED_FRAMES, code_question
from sdrpn.tags.scene import MIXED, SEEN, SHIFTED, Scene, render_scene

__all__ = ["ALL_CODES", "SPLITS", "TRAINED_CODES", "TagSample", "tag_sample", "tag_samples"]

# "train" has other seeds and no held-out codes; "heldout" has all codes; "shifted" also has other typefaces, plates,
# backgrounds and sentences. "mixed" has large codes beside the small ones and asks for them mostly, as photographs have
# text that is read at once; "mixed-train" is the same without held-out codes.
SPLITS = ("train", "heldout", "shifted", "mixed", "mixed-train")
_STYLES = {"shifted": SHIFTED, "mixed": MIXED, "mixed-train": MIXED}
LARGE_SHARE = 0.8  # of the questions of "mixed" are about a large code

ALL_CODES = tuple(f"{number:03d}" for number in range(1000))
_HELD_OUT = frozenset(np.random.default_rng(20250917).permutation(1000)[:100].tolist())
TRAINED_CODES = tuple(code for code in ALL_CODES if int(code) not in _HELD_OUT)


@dataclass(frozen=True)
class TagSample:
    """One question for the code of one tag.

    image: RGB, 840 x 840. answer: three digits. box_xyxy_px: the plate, in source pixels.
    """

    index: int
    image: Image.Image
    question: str
    answer: str
    box_xyxy_px: tuple[int, int, int, int]
    kind: str


def tag_samples(split: str, samples: int, seed: int, *, per_scene: int = 1) -> Iterator[TagSample]:
    """The first `samples` of a split, rendered one by one; each depends only on the split, the seed and its index.

    Args:
        per_scene: how many consecutive questions share a scene, each about another tag
    Raises: BadInput for an unknown split, or more questions per scene than every scene has tags.
    """
    return (tag_sample(split, seed, index, per_scene=per_scene) for index in range(samples))


def tag_sample(split: str, seed: int, index: int, *, per_scene: int = 1) -> TagSample:
    """One sample of a split. Args and errors as for `tag_samples`."""
    if split not in SPLITS:
        raise BadInput(f"the task tags has no split {split!r}; expected one of {', '.join(SPLITS)}")
    style = _STYLES.get(split, SEEN)
    if not 1 <= per_scene <= style.tags[0]:
        raise BadInput(f"{per_scene} questions per scene; expected 1 to {style.tags[0]}, the fewest tags of a scene")
    frames = SHIFTED_FRAMES if split == "shifted" else SEEN_FRAMES
    codes = TRAINED_CODES if split in ("train", "mixed-train") else ALL_CODES
    number, turn = divmod(index, per_scene)
    rng = np.random.default_rng((SPLITS.index(split), seed, number))
    scene = render_scene(rng, style, codes)
    first = _first_asked(rng, scene) if style is MIXED else int(rng.integers(len(scene.tags)))
    asked = [(first + later) % len(scene.tags) for later in range(turn + 1)]
    question = [code_question(rng, scene.tags[place], frames) for place in asked][-1]
    box = scene.tags[asked[-1]].box_xyxy_px
    return TagSample(index, scene.image, question.text, question.answer, box, question.kind)


def _first_asked(rng: np.random.Generator, scene: Scene) -> int:
    """The index of a large tag in LARGE_SHARE of the scenes, else that of a small one."""
    large = bool(rng.random() < LARGE_SHARE)
    places = [place for place, tag in enumerate(scene.tags) if (tag.scale > 1) is large]
    return places[rng.integers(len(places))] if places else int(rng.integers(len(scene.tags)))
