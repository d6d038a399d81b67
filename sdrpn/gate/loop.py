"""Train a gate's layers on taps and labels, in one process or many. PyTorch and Accelerate; knows no files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from sdrpn.errors import RunFailed
from sdrpn.gate.gate_set import GateSample
from sdrpn.gate.options import GateOptions
from sdrpn.train.base import autocast_for
from sdrpn.train.batches import TapBatches, micro_batches, step_pairs
from sdrpn.train.loop import Step

__all__ = ["GateLoop"]


class GateLoop:
    """A gate, its optimizer, and the number of completed steps."""

    def __init__(self, gate: nn.Module, options: GateOptions, accelerator: Accelerator) -> None:
        """`gate`: float32 parameters that all require a gradient; it moves to the accelerator's device."""
        self.step = 0
        self._options, self._schedule, self._accelerator = options, options.schedule(), accelerator
        optimizer = torch.optim.AdamW(
            gate.parameters(), options.learning_rate, options.betas, weight_decay=options.weight_decay
        )
        self.gate, self._optimizer = accelerator.prepare(gate, optimizer)

    def run(
        self, batches: TapBatches, samples: Sequence[GateSample], after: Callable[[Step], None] = lambda step: None
    ) -> None:
        """Train on these samples. Raises RunFailed where the loss or the gradient is not finite."""
        self.gate.train()
        steps, places = self._schedule.steps_for(len(samples)), range(len(samples))
        while self.step < steps:
            pairs = step_pairs(places, self._options.batch, self._options.seed, self.step)
            rate = self._schedule.learning_rate_at(self.step, steps)
            loss, norm = self._one_step(batches, samples, pairs, rate)
            self.step += 1
            if not math.isfinite(loss + norm):
                raise RunFailed(
                    f"the loss is {loss:g} and the gradient {norm:g} at step {self.step}; lower the learning rate, or "
                    "compute in fp32",
                    options=("learning_rate", "precision fp32"),
                )
            after(Step(self.step, loss, rate, norm))

    def _one_step(
        self, batches: TapBatches, samples: Sequence[GateSample], pairs: Sequence[int], rate: float
    ) -> tuple[float, float]:
        accelerator = self._accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        micros = list(micro_batches(pairs, self._options.micro_batch, rank, processes))
        total = torch.zeros((), device=accelerator.device)
        for number, micro in enumerate(micros, start=1):
            with contextlib.nullcontext() if number == len(micros) else accelerator.no_sync(self.gate):
                loss = self._share_of_loss(batches, samples, micro, len(pairs))
                accelerator.backward(loss * processes)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.gate.parameters(), self._options.gradient_clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(accelerator.reduce(total, "sum")), float(norm)

    def _share_of_loss(
        self, batches: TapBatches, samples: Sequence[GateSample], micro: Sequence[int | None], step_samples: int
    ) -> Tensor:
        """The contribution of a micro-batch to the loss of its step, which has so many samples."""
        logits = self._logits(batches, micro)
        # None is a placeholder, without a sample: it has no weight.
        known = torch.tensor([place is not None for place in micro], device=logits.device)
        labels = torch.tensor([samples[place or 0].label for place in micro], device=logits.device)
        losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
        return (losses * known).sum() / step_samples

    @torch.no_grad()
    def logits(self, batches: TapBatches, count: int) -> npt.NDArray[np.float64]:
        """Those of the first `count` samples, computed by all processes."""
        self.gate.eval()
        accelerator, found = self._accelerator, list[Tensor]()
        each = -(-count // accelerator.num_processes)
        for micro in micro_batches(
            range(count), self._options.micro_batch, accelerator.process_index, accelerator.num_processes
        ):
            found.append(self._logits(batches, micro))
        self.gate.train()
        own = torch.cat(found) if found else torch.zeros(0, device=accelerator.device)
        gathered: Tensor = accelerator.gather(own)
        assert len(gathered) == each * accelerator.num_processes
        return gathered[:count].double().cpu().numpy()

    def _logits(self, batches: TapBatches, micro: Sequence[int | None]) -> Tensor:
        batch = batches.make(micro)
        with autocast_for(self._options.precision, batch.tap.device):
            logits: Tensor = self.gate(batch.tap, batch.positions, batch.last_index)
        return logits.float()
