"""The training loop of an RPN on taps and labels, in one process or many. PyTorch and Accelerate; knows no files.

A step uses the same pairs for any number of processes. Each runs its part in micro-batches; as the loss is divided by
the labelled cells of the whole step, the gradient does not depend on how the step is split.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from sdrpn.errors import RunFailed
from sdrpn.families.registry import family_of
from sdrpn.labels.denoise import IGNORED
from sdrpn.method.spec import ModelSpec
from sdrpn.train.base import autocast_for
from sdrpn.train.batches import TapBatch, TapBatches, micro_batches, step_pairs
from sdrpn.train.loss import labelled_mean, logit_losses, roi_logits
from sdrpn.train.options import TrainOptions
from sdrpn.train.quality import Quality, measure_quality

__all__ = ["Step", "TrainLoop", "Validation"]


@dataclass(frozen=True)
class Step:
    """The figures of one step; the loss is that of the whole step, before its update."""

    number: int  # from 1
    loss: float
    learning_rate: float
    gradient_norm: float  # before clipping


@dataclass(frozen=True)
class Validation:
    """The results on held-out labels after a number of steps."""

    step: int
    loss: float  # mean over all labelled cells
    quality: Quality


class TrainLoop:
    """An RPN, its optimizer, and the number of completed steps."""

    def __init__(
        self, rpn: nn.Module, spec: ModelSpec, options: TrainOptions, batches: TapBatches, accelerator: Accelerator
    ) -> None:
        """Args:
        rpn: float32 parameters that all require a gradient; it moves to the accelerator's device
        spec: the model with this RPN
        """
        assert spec.rpn is not None
        self.options = options
        self.step = 0
        self._llm, self._spec = spec.llm, spec.rpn
        self._kept = partial(family_of(spec).kept_cells, spec)
        self._batches = batches
        self._accelerator = accelerator
        optimizer = torch.optim.AdamW(
            rpn.parameters(), options.learning_rate, options.betas, weight_decay=options.weight_decay
        )
        self.rpn, self._optimizer = accelerator.prepare(rpn, optimizer)

    def run(self, train: Sequence[int], steps: int, after: Callable[[Step], None] = lambda step: None) -> None:
        """Train up to step `steps` on these places of the label set; `after` is called with every step.

        Raises RunFailed where the loss or the gradient is not finite.
        """
        self.rpn.train()
        while self.step < steps:
            pairs = step_pairs(train, self.options.batch, self.options.seed, self.step)
            rate = self.options.learning_rate_at(self.step, steps)
            loss, norm = self._one_step(pairs, rate)
            self.step += 1
            if not math.isfinite(loss + norm):
                raise RunFailed(
                    f"the loss is {loss:g} and the gradient {norm:g} at step {self.step}; lower the learning "
                    "rate, or compute in fp32",
                    options=("learning_rate", "precision fp32"),
                )
            after(Step(self.step, loss, rate, norm))

    def _one_step(self, pairs: Sequence[int], rate: float) -> tuple[float, float]:
        accelerator = self._accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        micros = list(micro_batches(pairs, self.options.micro_batch, rank, processes))
        labelled = self._batches.labelled_cells(pairs)
        total = torch.zeros((), device=accelerator.device)
        for number, micro in enumerate(micros, start=1):
            batch = self._batches.make(micro)
            last = number == len(micros)
            # Gradients are averaged over processes once, after the last micro-batch.
            with contextlib.nullcontext() if last else accelerator.no_sync(self.rpn):
                loss = self._share_of_loss(batch, labelled, len(micros) * processes)
                accelerator.backward(loss * processes)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.rpn.parameters(), self.options.gradient_clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(accelerator.reduce(total, "sum")), float(norm)

    def _share_of_loss(self, batch: TapBatch, labelled: int, micros: int) -> Tensor:
        """The contribution of a micro-batch to the loss of its step."""
        losses = logit_losses(self._logits(batch), batch.labels, self._spec)
        if self.options.loss_normalisation == "official":
            return labelled_mean(losses, batch.labels) / micros
        return losses.sum() / max(1, labelled)

    def _logits(self, batch: TapBatch) -> Tensor:
        """(B,C)."""
        with autocast_for(self.options.precision, batch.tap.device):
            scores = self.rpn(batch.tap, batch.positions, batch.last_index)
        return roi_logits(batch.cell_scores(scores), self._llm, self._spec)

    @torch.no_grad()
    def validate(self, places: Sequence[int]) -> Validation | None:
        """Agreement with held-out labels, computed in every process; None where none of them has foreground."""
        self.rpn.eval()
        accelerator = self._accelerator
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        grids: list[Tensor] = []
        sinks: list[Tensor] = []
        for micro in micro_batches(
            places, self.options.micro_batch, accelerator.process_index, accelerator.num_processes
        ):
            batch = self._batches.make(micro)
            # Processes may have grids of other sizes, and what is gathered has one shape.
            logits += accelerator.gather(accelerator.pad_across_processes(self._logits(batch), dim=1))
            labels += accelerator.gather(accelerator.pad_across_processes(batch.labels, dim=1, pad_index=IGNORED))
            grids += accelerator.gather(batch.hw)
            if self._spec.sink_query:
                sinks += accelerator.gather(accelerator.pad_across_processes(self._sink_logits(batch), dim=1))
        self.rpn.train()
        return self._measured(logits, labels, grids, sinks) if logits else None

    def _sink_logits(self, batch: TapBatch) -> Tensor:
        """(B,C), of the image tokens."""
        with autocast_for(self.options.precision, batch.tap.device):
            of_all = self._accelerator.unwrap_model(self.rpn).sink_logits(batch.tap, batch.positions)
        return batch.cell_scores(of_all[:, None])[:, 0].float()

    def _measured(
        self, logits: Sequence[Tensor], labels: Sequence[Tensor], grids: Sequence[Tensor], sinks: Sequence[Tensor]
    ) -> Validation | None:
        """Each of a sample: logits and labels (C or more), rows and columns of its grid; maybe sinks, as logits."""
        maps, cells, kept = list[NDArray[np.float32]](), list[NDArray[np.int8]](), list[NDArray[np.bool_] | None]()
        total, counted = 0.0, 0
        for row, label, grid, sink in zip(logits, labels, grids, sinks or repeat(None, len(logits)), strict=True):
            height, width = (int(side) for side in grid)
            own = slice(height * width)
            total += float(logit_losses(row[None, own], label[None, own], self._spec).double().sum())
            counted += int((label[own] != IGNORED).sum())
            maps.append(row[own].float().cpu().numpy().reshape(height, width))
            cells.append(label[own].cpu().numpy().astype(np.int8).reshape(height, width))
            shown = None if sink is None else sink[own].cpu().numpy().reshape(height, width)
            kept.append(self._kept((height, width), shown))
        if not any((sample > 0).any() for sample in cells):
            return None
        return Validation(self.step, total / counted, measure_quality(maps, cells, kept))
