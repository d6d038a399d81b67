"""What a gate is trained on: the taps of samples at their views, and for a probe the statistics of their maps. PyTorch.

B samples, S tokens of the longest one, D width, N statistics of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdrpn.gate.gate_set import GateSample, GateSet
from sdrpn.gate.views import model_at_view
from sdrpn.method.gate import map_statistics
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import BaseModel
from sdrpn.model.rpn import Rpn
from sdrpn.train.base import FrozenBase, autocast_for
from sdrpn.train.batches import TapBatch, TapBatches
from sdrpn.train.loss import roi_logits
from sdrpn.train.options import Precision
from sdrpn.train.taps import TapSource

__all__ = ["ProbeInputs", "ViewTaps", "bases_of", "probe_inputs", "sample_batches"]


class ViewTaps:
    """The taps of samples, each from the source of its view."""

    def __init__(self, samples: Sequence[GateSample], sources: dict[int, TapSource]) -> None:
        """`sources`: by view, over that view's samples in their order."""
        places: dict[int, int] = {}
        self._where: list[tuple[int, int]] = []
        for sample in samples:
            place = places.get(sample.view, 0)
            self._where.append((sample.view, place))
            places[sample.view] = place + 1
        self._sources = sources

    def tap(self, place: int) -> Tensor:
        """See `TapSource`."""
        view, own = self._where[place]
        return self._sources[view].tap(own)


def bases_of(model: BaseModel, labels: GateSet, make: Callable[[BaseModel], FrozenBase]) -> Callable[[int], FrozenBase]:
    """The frozen base at a view, made once for each."""
    made: dict[int, FrozenBase] = {}

    def base(view: int) -> FrozenBase:
        if view not in made:
            made[view] = make(model_at_view(model, labels.views[view]))
        return made[view]

    return base


def sample_batches(
    labels: GateSet, samples: Sequence[GateSample], taps: TapSource, spec: ModelSpec, device: torch.device
) -> TapBatches:
    """Batches of these samples, by their index."""
    prompts = [labels.questions[sample.question].prompt(sample.view) for sample in samples]
    return TapBatches(prompts, taps, spec, device)


@dataclass(frozen=True, eq=False)
class ProbeInputs:
    """What a probe knows of n samples, on the CPU."""

    rows: Tensor  # (n,D) the tap's last row
    statistics: Tensor  # (n,N)

    def joined(self) -> Tensor:
        """(n,D+N) float64."""
        return torch.cat((self.rows, self.statistics), dim=1).double()


@torch.inference_mode()
def probe_inputs(
    rpn: Rpn, batches: TapBatches, count: int, spec: ModelSpec, micro_batch: int, precision: Precision
) -> ProbeInputs:
    """Those of the first `count` samples."""
    rows, found = list[Tensor](), list[Tensor]()
    for start in range(0, count, micro_batch):
        batch = batches.make(list(range(start, min(count, start + micro_batch))))
        rows.append(batch.tap[torch.arange(len(batch.tap)), batch.last_index].float().cpu())
        found.append(_statistics(rpn, batch, spec, precision))
    return ProbeInputs(torch.cat(rows), torch.cat(found))


def _statistics(rpn: Rpn, batch: TapBatch, spec: ModelSpec, precision: Precision) -> Tensor:
    """(B,N)."""
    assert spec.rpn is not None
    with autocast_for(precision, batch.tap.device):
        scores = rpn(batch.tap, batch.positions, batch.last_index)
    logits = roi_logits(batch.cell_scores(scores), spec.llm, spec.rpn).cpu().numpy()
    maps = [row[: h * w].reshape(h, w) for row, (h, w) in zip(logits, batch.hw.tolist(), strict=True)]
    return torch.from_numpy(np.stack([map_statistics(shown) for shown in maps]))
