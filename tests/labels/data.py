"""Pictures with questions about them, small and seeded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["write_questions"]


def write_questions(folder: Path, *, images: int = 3, per_image: int = 2, answers: bool = False) -> Path:
    """Write pictures and `qa.jsonl` to the folder; returns the latter's path."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(images):
        pixels = rng.integers(0, 256, (40 + 10 * number, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for turn in range(per_image):
            record = {"id": f"{number}-{turn}", "image": f"{number}.png", "question": f"Where is sign {turn}?"}
            lines.append(json.dumps(record | ({"answer": f"There {number}"} if answers else {})))
    path = folder / "qa.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
