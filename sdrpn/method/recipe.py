"""How the published RPNs were made: heads that their labels come from, numbers of their trainings. Data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sdrpn.method.spec import Scheme

__all__ = ["HeadTable", "Recipe"]

LayerHeads = Mapping[int, Sequence[int]]  # layer -> heads


@dataclass(frozen=True)
class HeadTable:
    """Heads whose attention becomes labels, and those that show the sinks of a picture; none: nothing is a sink."""

    grounding: LayerHeads
    sinks: LayerHeads = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """The official training of an RPN for one model.

    scheme: whose it is
    tap_layer, rpn_layers: K and T
    learning_rate, batch: highest rate, pairs per step
    betas: of AdamW
    """

    scheme: Scheme
    tap_layer: int
    rpn_layers: int
    learning_rate: float
    batch: int
    betas: tuple[float, float]
