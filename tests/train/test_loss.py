"""The loss and its gradients are those of the official code; where weights start; what the loss does at the edges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sdrpn.checkpoint import Checkpoint, open_checkpoint
from sdrpn.errors import BadInput
from sdrpn.images.image import open_image
from sdrpn.method.spec import ModelSpec, RpnSpec
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.looks import picture_tokens
from sdrpn.train.loss import cell_losses, labelled_mean
from sdrpn.train.start import rpn_from_layers
from tests.tolerances import GOLDEN_LOSS_ABS, SAME_MATH_ABS
from tests.train.official import OfficialSample, official_sample

LABELS = torch.tensor([[1, 0, -100, 0]])


def image_scores(model: SdRpnModel, sample: OfficialSample, answer_tokens: int) -> Tensor:
    """(1,H,C) for the prompt's last token; so many tokens of the answer follow it."""
    prompt = sample.prompt(answer_tokens)
    image = picture_tokens(model, open_image(sample.folder / prompt.image)).clone()
    before, after = (model.embed(torch.tensor(part)) for part in (prompt.ids_before, prompt.ids_after))
    embeds = torch.cat((before, image, after))[None]
    positions = torch.arange(embeds.shape[1])[None]
    with torch.no_grad():
        tap = model.trunk(embeds, positions)
    assert model.rpn is not None
    scores: Tensor = model.rpn(tap, positions, torch.tensor([embeds.shape[1] - 1 - answer_tokens]))
    return scores[:, :, len(before) : len(before) + len(image)]


def test_loss_and_gradients_are_those_of_the_official_code(golden: Path) -> None:
    with official_sample(golden) as sample:
        model = model_from_checkpoint(sample.checkpoint)
        assert model.rpn is not None
        assert model.spec.rpn is not None
        model.rpn.requires_grad_(True)
        labels = torch.from_numpy(sample.cells).long()[None]
        losses = {}
        for answer_tokens in (0, len(sample.ids) - sample.prompt_length):
            scores = image_scores(model, sample, answer_tokens)
            losses[answer_tokens] = labelled_mean(cell_losses(scores, labels, model.spec.llm, model.spec.rpn), labels)
        alone, answered = losses.values()
        assert abs(alone.item() - sample.loss) < GOLDEN_LOSS_ABS
        assert abs(alone.item() - answered.item()) < SAME_MATH_ABS  # appending the answer changes nothing
        alone.backward()  # type: ignore[no-untyped-call]
        sample.assert_gradients(model.rpn)


class TestCellLosses:
    def test_by_hand(self, tiny_spec: ModelSpec) -> None:
        scores = torch.tensor([[[1.0, 0.0, 9.0, -4.0], [3.0, 0.0, 9.0, 0.0]]])  # means 2, 0, 9, -2
        likely, even = math.log1p(math.exp(-2)), math.log(2)
        losses = cell_losses(scores, LABELS, tiny_spec.llm, RpnSpec(2))
        np.testing.assert_allclose(losses[0], [likely, even, 0, likely], rtol=1e-6)
        assert float(labelled_mean(losses, LABELS)) == pytest.approx((2 * likely + even) / 3)

        focal = cell_losses(scores, LABELS, tiny_spec.llm, RpnSpec(2, loss="focal"))
        wrong = 1 - 1 / (1 + math.exp(-2))
        expected = [0.9 * wrong**2 * likely, 0.1 * 0.25 * even, 0, 0.1 * wrong**2 * likely]
        np.testing.assert_allclose(focal[0], expected, rtol=1e-5)

        whole = cell_losses(scores / 4, LABELS, tiny_spec.llm, RpnSpec(2, multi_head=False))
        assert float(whole[0, 0]) == pytest.approx(math.log1p(math.exp(-4)))  # (1+3)/4 * sqrt(16)

    def test_an_ignored_sample_costs_nothing_and_pulls_nowhere(self, tiny_spec: ModelSpec) -> None:
        scores = torch.ones(1, 2, 4, requires_grad=True)
        ignored = torch.full((1, 4), -100)
        loss = labelled_mean(cell_losses(scores, ignored, tiny_spec.llm, RpnSpec(2)), ignored)
        loss.backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        assert (loss.item(), scores.grad.abs().max().item()) == (0.0, 0.0)

    def test_mse_is_refused(self, tiny_spec: ModelSpec) -> None:
        with pytest.raises(ValueError, match="cannot be trained with a loss per cell"):
            cell_losses(torch.ones(1, 2, 4), LABELS, tiny_spec.llm, RpnSpec(2, loss="mse"))


class TestStart:
    @pytest.fixture
    def checkpoint(self, plain_checkpoint: Path) -> Iterator[Checkpoint]:
        with open_checkpoint(plain_checkpoint) as checkpoint:
            yield checkpoint

    def test_layers_and_norm_are_copies(self, checkpoint: Checkpoint) -> None:
        rpn = rpn_from_layers(checkpoint, 1, RpnSpec(layers=3))
        state = rpn.state_dict()
        whole, last = checkpoint.read("llm.layers.2.mlp.up.weight"), checkpoint.read("llm.layers.3.attention.k.weight")
        np.testing.assert_array_equal(state["layers.1.mlp.up.weight"], whole)
        np.testing.assert_array_equal(state["layers.2.attention.k.weight"], last)
        np.testing.assert_array_equal(state["norm.weight"], checkpoint.read("llm.norm.weight"))
        assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in rpn.parameters())

    def test_layers_that_are_not_there(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(BadInput, match="an RPN of 3 layers after layer 2 needs 5 LLM layers to start from"):
            rpn_from_layers(checkpoint, 2, RpnSpec(layers=3))
