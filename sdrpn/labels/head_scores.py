"""Score every head of a model by how well it points at the region that a question is about. NumPy only; no model.

Three scores per head: the share of its attention on the image; how compact that part is (spatial entropy, as in Kang
et al., arXiv 2503.06287: low for few connected regions); and how much it changes between questions about the same
image (Jensen-Shannon divergence), because a compact head that ignores the question shows a sink.
L layers, H heads, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.errors import BadInput
from sdrpn.labels.head_choice import Head
from sdrpn.method.roi import find_components

__all__ = ["TOP_PLACES", "HeadScorer", "HeadScores", "js_divergence", "spatial_entropy"]

Floats = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

TOP_PLACES = 10  # per question


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Means over the questions, all (L,H)."""

    image_share: Float64  # of the whole attention, 0..1
    entropy: Float64  # nats, over the questions in which the head was compared; NaN without any
    dependence: Float64  # Jensen-Shannon divergence between questions on one image, 0..1 bits
    frequency: Float64  # share of questions in whose top ten the head is

    def best(self, count: int) -> tuple[Head, ...]:
        """The best heads by how often they are in the top ten; ties by dependence on the question."""
        order = np.lexsort((-self.dependence.ravel(), -self.frequency.ravel()))
        heads = self.frequency.shape[1]
        chosen = [divmod(int(place), heads) for place in order[:count] if self.frequency.ravel()[place] > 0]
        return tuple((layer, head) for layer, head in chosen)


class HeadScorer:
    """Accumulates the attention of questions; questions about the same image must be consecutive."""

    def __init__(self) -> None:
        self._shares: list[Float64] = []
        self._entropies: list[Float64] = []
        self._divergences: list[Float64] = []
        self._image: str | None = None
        self._previous: Float64 | None = None

    def add(self, image: str, attention: Floats) -> None:
        """Add one question: attention (L,H,h,w) of its rows to the image, the image part of the softmax weights."""
        exact = attention.astype(np.float64)
        share = exact.sum(axis=(-2, -1))
        self._shares.append(share)
        self._entropies.append(_entropies(exact, share))
        spread = exact / np.maximum(share, np.finfo(np.float64).tiny)[..., None, None]
        if image == self._image and self._previous is not None:
            before, now = (spread_map.reshape(*share.shape, -1) for spread_map in (self._previous, spread))
            self._divergences.append(js_divergence(before, now))
        self._image, self._previous = image, spread

    def scores(self) -> HeadScores:
        """The scores. Raises BadInput where no two questions were about the same image."""
        if not self._divergences:
            raise BadInput(
                "no image has two questions; whether a head depends on the question can only be measured between two "
                "questions on the same image: use such data"
            )
        dependence = np.mean(self._divergences, axis=0)
        entropies = np.array(self._entropies)  # (Q,L,H)
        counted = np.isfinite(entropies)
        sums = np.where(counted, entropies, 0).sum(axis=0)
        counts = counted.sum(axis=0)
        mean_entropy = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        eligible = dependence >= np.median(dependence)
        places = [_top(entropy, share, eligible) for entropy, share in zip(entropies, self._shares, strict=True)]
        return HeadScores(np.mean(self._shares, axis=0), mean_entropy, dependence, np.mean(places, axis=0))


def spatial_entropy(attention: Floats) -> float:
    """Entropy (nats) of the distribution of attention (h,w) over the connected regions above its mean.

    0 for one region, log(n) for n equal regions; a constant map counts as one region.
    """
    components = find_components(attention > attention.mean())
    masses = np.array([float(attention[tuple(component.cells_yx.T)].sum()) for component in components])
    if len(masses) < 2:
        return 0.0
    shares = masses / masses.sum()
    return float(-(shares * np.log(shares)).sum())


def js_divergence(first: Floats, second: Floats) -> Float64:
    """Jensen-Shannon divergence in bits, 0..1, along the last axis of two sets of distributions."""
    middle = (first + second) / 2
    divergence: Float64 = (_kl_bits(first, middle) + _kl_bits(second, middle)) / 2
    return divergence.clip(0, 1)


def _kl_bits(p: Floats, q: Floats) -> Float64:
    ratio = np.divide(p, q, out=np.ones(p.shape), where=(p > 0) & (q > 0))
    divergence: Float64 = (p * np.log2(ratio)).sum(axis=-1)
    return divergence


def _entropies(attention: Float64, share: Float64) -> Float64:
    """Entropies (L,H); NaN for the half of the heads with least attention to the image, never in the top ten."""
    floor = np.median(share)
    entropies = np.full(share.shape, np.nan)
    for place in zip(*np.nonzero((share >= floor) & (share > 0)), strict=True):
        entropies[place] = spatial_entropy(attention[place])
    return entropies


def _top(entropy: Float64, share: Float64, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(L,H): the heads with the lowest entropy for one question; ties by attention to the image."""
    key = np.where(eligible & np.isfinite(entropy), entropy, np.inf).ravel()
    order = np.lexsort((-share.ravel(), key))[:TOP_PLACES]
    top = np.zeros(key.shape, bool)
    top[order] = np.isfinite(key[order])
    return top.reshape(entropy.shape)
