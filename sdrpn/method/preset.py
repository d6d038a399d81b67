"""How a kind of question is asked: thresholds and image tokens under one word. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = ["TASKS", "Preset", "Task"]

Task: TypeAlias = Literal["scene", "document", "chart", "reading", "search", "high-resolution"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Preset:
    """The official figures for a kind of question.

    threshold: of the map; gate_threshold: of the gate's score, None where there is no gate
    image_tokens: least and most
    """

    threshold: float
    gate_threshold: float | None
    image_tokens: tuple[int, int]
