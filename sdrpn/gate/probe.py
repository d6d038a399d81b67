"""Fit a linear probe: logistic regression with a penalty, by Newton's method in float64. PyTorch; knows no model."""

from __future__ import annotations

import torch
from torch import Tensor

from sdrpn.errors import RunFailed

__all__ = ["fit_probe"]

MOST_STEPS = 100
TOLERANCE = 1e-9


def fit_probe(inputs: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The weights (1,n) and the bias (1,) in float32 that minimise cross-entropy and `penalty` / 2 of their squares.

    The penalty is on weights of inputs of unit variance; the ones that are returned take the inputs as they are.

    Args: inputs: (m,n); labels: (m,) of 0 and 1
    Raises: RunFailed where it does not converge
    """
    inputs, target = inputs.double(), labels.double()
    mean, scale = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-6)
    x = torch.cat(((inputs - mean) / scale, torch.ones(len(inputs), 1, dtype=torch.float64)), dim=1)
    shrink = torch.full((x.shape[1],), penalty, dtype=torch.float64)
    shrink[-1] = 0
    weights = torch.zeros(x.shape[1], dtype=torch.float64)

    def loss(at: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(x @ at, target) + 0.5 * (shrink * at * at).sum()

    for _ in range(MOST_STEPS):
        share = torch.sigmoid(x @ weights)
        gradient = x.T @ (share - target) / len(x) + shrink * weights
        curvature = (x * (share * (1 - share))[:, None]).T @ x / len(x) + torch.diag(shrink + 1e-12)
        step = torch.linalg.solve(curvature, gradient)
        size, before = 1.0, loss(weights)
        while loss(weights - size * step) > before and size > TOLERANCE:
            size /= 2
        weights = weights - size * step
        if float((size * step).abs().max()) < TOLERANCE:
            break
    else:
        raise RunFailed("the probe did not converge; raise its penalty", options=("penalty",))
    own = weights[:-1] / scale
    return own[None].float(), (weights[-1:] - (own * mean).sum()).float()
