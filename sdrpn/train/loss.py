"""The loss of an RPN on labelled cells. PyTorch; knows no files.

B samples, H heads, C = G*G cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sdrpn.labels.denoise import FOREGROUND, IGNORED
from sdrpn.method.spec import LlmSpec, RpnSpec

__all__ = ["cell_losses", "labelled_mean", "logit_losses", "roi_logits"]

FOCAL_ALPHA, FOCAL_GAMMA = 0.9, 2.0  # from the official code


def cell_losses(scores: Tensor, labels: Tensor, llm: LlmSpec, rpn: RpnSpec) -> Tensor:
    """The loss of every cell, 0 where it is ignored: `logit_losses` of `roi_logits`.

    Args:
        scores: (B,H,C), q.k / sqrt(d) of the image's cells
        labels: (B,C), 1 foreground, 0 background, -100 ignored
        rpn: defines how heads are reduced, and the loss; ValueError for "mse"
    Returns: (B,C) float32. Sum it and divide by the number of labelled cells: of a micro-batch (`labelled_mean`, as in
        the official code), or of a whole step, so that the result does not depend on how the step is split.
    """
    return logit_losses(roi_logits(scores, llm, rpn), labels, rpn)


def roi_logits(scores: Tensor, llm: LlmSpec, rpn: RpnSpec) -> Tensor:
    """Scores (B,H,C) -> (B,C) float32: the mean over the heads, or one product over the whole width."""
    return scores.float().mean(dim=1) if rpn.multi_head else scores.float().sum(dim=1) * llm.head_dim**0.5


def logit_losses(logits: Tensor, labels: Tensor, rpn: RpnSpec) -> Tensor:
    """The loss of every cell, 0 where it is ignored.

    "bce": binary cross-entropy of the RoI logit. "focal": the same, with less weight on easy cells and more on
    foreground (Lin et al. 2017).

    Args:
        logits: (B,C)
        labels: (B,C), 1 foreground, 0 background, -100 ignored
    Returns: (B,C) float32. Raises ValueError for the loss "mse".
    """
    if rpn.loss == "mse":
        raise ValueError("an RPN for mse scores a distribution; it cannot be trained with a loss per cell")
    labelled = labels != IGNORED
    target = (labels == FOREGROUND).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if rpn.loss == "focal":
        missed = 1 - torch.exp(-losses)  # 1 - the probability of the right label
        losses = losses * missed**FOCAL_GAMMA * torch.where(labels == FOREGROUND, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return losses * labelled


def labelled_mean(losses: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled cells; 0, with a gradient of 0, where there is none."""
    return losses.sum() / (labels != IGNORED).sum().clamp(min=1)
