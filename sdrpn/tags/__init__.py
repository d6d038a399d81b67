"""Rendered scenes of coloured tags with short codes that are too small for the first pass: a task with known answers.

Every picture, question and answer is determined by a split and a seed; nothing is downloaded. One scene is shipped with
the package, for `sdrpn demo`. Pillow and NumPy only; runs no model.
"""

from __future__ import annotations

from sdrpn.tags.demo_picture import Told, draw_demo
from sdrpn.tags.questions import TagQuestion
from sdrpn.tags.scene import Scene, SceneStyle, Tag, render_scene
from sdrpn.tags.shipped_scene import DemoScene, shipped_scene
from sdrpn.tags.task import SPLITS, TagSample, tag_sample, tag_samples

__all__ = [
    "SPLITS",
    "DemoScene",
    "Scene",
    "SceneStyle",
    "Tag",
    "TagQuestion",
    "TagSample",
    "Told",
    "draw_demo",
    "render_scene",
    "shipped_scene",
    "tag_sample",
    "tag_samples",
]
