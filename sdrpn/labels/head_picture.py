"""Draw which heads of a model point at what is asked for. Pillow and NumPy only."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdrpn.labels.head_choice import Head
from sdrpn.labels.head_scores import HeadScores

__all__ = ["draw_heads"]

CELL_PX = 18
MARGIN_PX = 48
BACKGROUND, TEXT, CHOSEN = (24, 25, 28), (222, 224, 228), (80, 220, 255)
FULL = np.array((255, 240, 150), np.float32)  # of a head that is in every top ten


def draw_heads(scores: HeadScores, chosen: Collection[Head]) -> Image.Image:
    """Layers down, heads across; the brighter, the more often in a top ten. Chosen heads have a frame."""
    layers, heads = scores.frequency.shape
    size = heads * CELL_PX + 2 * MARGIN_PX, layers * CELL_PX + 2 * MARGIN_PX
    picture = Image.new("RGB", (max(size[0], 360), size[1]), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.text((MARGIN_PX, 10), "How often a head is in a question's top ten", TEXT, font)
    draw.text((MARGIN_PX, picture.height - 30), f"heads 0 to {heads - 1}; framed: chosen", TEXT, font)
    strength = scores.frequency / max(1e-9, scores.frequency.max())
    for layer in range(layers):
        y = MARGIN_PX + layer * CELL_PX
        draw.text((MARGIN_PX - 8, y + CELL_PX // 2), str(layer), TEXT, font, anchor="rm")
        for head in range(heads):
            x = MARGIN_PX + head * CELL_PX
            red, green, blue = (int(v) for v in 44 + (FULL - 44) * strength[layer, head])
            frame = CHOSEN if (layer, head) in chosen else BACKGROUND
            draw.rectangle((x, y, x + CELL_PX - 2, y + CELL_PX - 2), (red, green, blue), frame, 2)
    return picture
