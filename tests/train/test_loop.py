"""One step, looked at closely: the official gradient, what the RPN sees, and the numbers that weights are kept in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from sdrpn.checkpoint import Checkpoint, open_checkpoint
from sdrpn.errors import RunFailed
from sdrpn.model import base_from_checkpoint, model_from_checkpoint
from sdrpn.train.base import FrozenBase
from sdrpn.train.batches import TapBatch, TapBatches
from sdrpn.train.label_set import LabelledPrompt, read_labels
from sdrpn.train.loop import Step, TrainLoop
from sdrpn.train.options import TrainOptions
from sdrpn.train.start import rpn_from_layers
from sdrpn.train.taps import ComputedTaps
from tests.tolerances import GOLDEN_LOSS_ABS, SAME_MATH_ABS
from tests.train.data import write_labels
from tests.train.official import official_sample

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(plain_checkpoint: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(plain_checkpoint) as checkpoint:
        yield checkpoint


def small_options(**changes: object) -> TrainOptions:
    numbers = {"tap_layer": 2, "rpn_layers": 2, "batch": 6, "micro_batch": 6, "precision": "fp32", **changes}
    return TrainOptions(**numbers)  # type: ignore[arg-type]


def make_loop(checkpoint: Checkpoint, folder: Path, options: TrainOptions) -> TrainLoop:
    prompts = read_labels(write_labels(folder)).prompts
    model = base_from_checkpoint(checkpoint, options.tap_layer)
    taps = ComputedTaps(FrozenBase(model, folder / "images", options.precision), prompts)
    spec = options.spec_for(checkpoint.spec)
    assert spec.rpn is not None
    rpn = rpn_from_layers(checkpoint, options.tap_layer, spec.rpn)
    return TrainLoop(rpn, spec, options, TapBatches(prompts, taps, spec, CPU), Accelerator(cpu=True))


def test_the_gradient_is_that_of_the_official_code(golden: Path) -> None:
    with official_sample(golden) as sample:
        spec, prompts = sample.checkpoint.spec, [sample.prompt()]
        rpn = model_from_checkpoint(sample.checkpoint).rpn
        assert rpn is not None
        base = FrozenBase(base_from_checkpoint(sample.checkpoint, spec.tap_layer), sample.folder, "fp32")
        options = small_options(tap_layer=spec.tap_layer, rpn_layers=3)
        batches = TapBatches(prompts, ComputedTaps(base, prompts), spec, CPU)
        loop = TrainLoop(rpn.requires_grad_(True), spec, options, batches, Accelerator(cpu=True))
        loss = loop._share_of_loss(batches.make([0]), batches.labelled_cells([0]), 1)
        assert abs(loss.item() - sample.loss) < GOLDEN_LOSS_ABS
        loss.backward()  # type: ignore[no-untyped-call]
        sample.assert_gradients(rpn)


class TestWhatTheRpnSees:
    def test_appending_an_answer_changes_no_tap(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        prompt = read_labels(write_labels(tmp_path)).prompts[0]
        answered = LabelledPrompt(prompt.image, prompt.ids_before, (*prompt.ids_after, 40, 41, 42), prompt.cells)
        base = FrozenBase(base_from_checkpoint(checkpoint, 2), tmp_path / "images", "fp32")
        alone, more = (ComputedTaps(base, [text]).tap(0) for text in (prompt, answered))
        assert len(more) == len(alone) + 3
        torch.testing.assert_close(more[: len(alone)], alone, rtol=0, atol=SAME_MATH_ABS)

    def test_rows_behind_the_prompt_play_no_part(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        loop = make_loop(checkpoint, tmp_path, small_options())
        batch = loop._batches.make([0, 1, 2])
        behind = torch.cat((batch.tap, torch.randn(3, 4, batch.tap.shape[2])), dim=1)
        positions = torch.arange(behind.shape[1]).expand(3, -1)
        longer = TapBatch(behind, positions, batch.last_index, batch.image_index, batch.labels, batch.hw)
        gradients = []
        for sized in (batch, longer):
            loop._share_of_loss(sized, 10, 1).backward()  # type: ignore[no-untyped-call]
            gradients.append([parameter.grad for parameter in loop.rpn.parameters()])
            loop.rpn.zero_grad()
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=SAME_MATH_ABS)


def test_weights_are_float32_and_take_steps_that_bfloat16_could_not_hold(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    loop = make_loop(checkpoint, tmp_path, small_options(precision="bf16", learning_rate=1e-6, warmup_share=0))
    before = copy.deepcopy(loop.rpn.state_dict())
    steps: list[Step] = []
    loop.run(range(12), 1, steps.append)
    assert steps[0].learning_rate == 1e-6
    for name, parameter in loop.rpn.named_parameters():
        assert parameter.dtype == torch.float32
        moved = (parameter - before[name]).abs().max()
        assert 0 < moved < 2e-6, name
    state = loop._optimizer.state_dict()["state"].values()
    assert {entry["exp_avg"].dtype for entry in state} == {torch.float32}
    norm = dict(loop.rpn.named_parameters())["norm.weight"]
    assert torch.equal(norm.bfloat16(), before["norm.weight"].bfloat16())  # rounded to bfloat16 nothing happened


def test_micro_batches_make_the_same_step(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = {}
    for size in (6, 4, 1):
        loop = make_loop(checkpoint, tmp_path / str(size), small_options(micro_batch=size))
        loop.run(range(12), 3)
        found[size] = torch.cat([parameter.detach().flatten() for parameter in loop.rpn.parameters()])
    torch.testing.assert_close(found[6], found[4], rtol=0, atol=SAME_MATH_ABS)
    torch.testing.assert_close(found[6], found[1], rtol=0, atol=SAME_MATH_ABS)


@pytest.mark.parametrize(("normalisation", "expected"), [("global", (1 + 3 + 2) / 3), ("official", (2 + 2) / 2)])
def test_what_a_micro_batch_adds(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalisation: str, expected: float
) -> None:
    """Two micro-batches, of two labelled cells that cost 1 and 3, and of one that costs 2."""
    loop = make_loop(checkpoint, tmp_path, small_options(loss_normalisation=normalisation))
    costs = {2: torch.tensor([[1.0, 3.0]]), 1: torch.tensor([[2.0, 0.0]])}
    monkeypatch.setattr(loop, "_logits", lambda batch: batch.labels)
    monkeypatch.setattr("sdrpn.train.loop.logit_losses", lambda logits, labels, rpn: costs[int((labels >= 0).sum())])
    batches = [
        TapBatch(
            torch.zeros(1, 1, 1),
            torch.zeros(1, 1),
            torch.zeros(1),
            torch.zeros(1, 2),
            torch.tensor([labels]),
            torch.tensor([[1, 2]]),
        )
        for labels in ([1, 0], [1, -100])
    ]
    assert sum(float(loop._share_of_loss(batch, 3, 2)) for batch in batches) == pytest.approx(expected)


def test_a_loss_that_is_no_number_stops_the_training(checkpoint: Checkpoint, tmp_path: Path) -> None:
    loop = make_loop(checkpoint, tmp_path, small_options())
    next(loop.rpn.parameters()).data.fill_(float("nan"))
    with pytest.raises(RunFailed, match=r"the loss is nan .* at step 1; lower the learning rate"):
        loop.run(range(12), 1)
