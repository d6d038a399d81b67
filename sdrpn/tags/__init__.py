"""Rendered scenes of coloured tags with short codes that are too small for the first pass: a task with known answers.

Every picture, question and answer is determined by a split and a seed; nothing is downloaded.
"""

from __future__ import annotations

from sdrpn.tags.questions import Question
from sdrpn.tags.scene import Scene, SceneStyle, Tag, render_scene
from sdrpn.tags.task import SPLITS, TagSample, tag_sample, tag_samples

__all__ = ["SPLITS", "Question", "Scene", "SceneStyle", "Tag", "TagSample", "render_scene", "tag_sample", "tag_samples"]
