"""Which tokens of a large image SD-RPN's second pass goes without. NumPy only. N tokens of the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["PRUNED_ABOVE_TOKENS", "kept_source_cells"]

PRUNED_ABOVE_TOKENS = 1024  # SD-RPN: an image of more tokens loses those that nothing after it looks at
SEEN_ABOVE = 0.01  # SD-RPN's least score of a token that is kept
Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]


def kept_source_cells(logits: Float32, prune_above: int = PRUNED_ABOVE_TOKENS) -> Bool | None:
    """(N,) SD-RPN: which tokens of a large image stay in the second pass; None: all, as of any smaller image.

    Args:
        logits: (rows, N) of every token after the image, before the sigmoid, mean over heads
        prune_above: tokens of the largest image that keeps all; 0: every image does
    """
    if prune_above == 0 or logits.shape[1] <= prune_above:
        return None
    # The sigmoid rises: the highest logit has the highest score.
    highest = logits.max(axis=0).astype(np.float32)
    kept: Bool = 1 / (1 + np.exp(-np.clip(highest, -88, 88))) > np.float32(SEEN_ABOVE)
    return kept
