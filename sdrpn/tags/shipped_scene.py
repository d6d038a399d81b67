"""The scene that `sdrpn demo` asks about: a picture, a question, and the true answer, which the model never sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SCENE_FOLDER", "DemoScene", "read_scene", "shipped_scene"]

# Rendered by examples/demo/ship.py.
SCENE_FOLDER = Path(__file__).parent / "shipped"
DESCRIPTION_NAME = "scene.json"


@dataclass(frozen=True)
class DemoScene:
    """One question with its true answer.

    box_xyxy_px: the region that the question is about. split, seed, index: arguments of sdrpn.tags.tag_sample.
    """

    picture: Path
    question: str
    expected: str
    box_xyxy_px: tuple[int, int, int, int]
    split: str
    seed: int
    index: int

    def to_text(self) -> str:
        """The content of scene.json."""
        value = {**vars(self), "picture": self.picture.name}
        return json.dumps(value, indent=1) + "\n"


def shipped_scene() -> DemoScene:
    """The scene shipped with the package."""
    return read_scene(SCENE_FOLDER)


def read_scene(folder: Path) -> DemoScene:
    """Read a scene from a folder written by examples/demo/ship.py."""
    value = json.loads((folder / DESCRIPTION_NAME).read_text("utf-8"))
    return DemoScene(
        **{**value, "picture": folder / value["picture"], "box_xyxy_px": tuple(value["box_xyxy_px"])},
    )
