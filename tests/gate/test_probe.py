"""The linear probe against the conditions that its optimum meets."""

from __future__ import annotations

import pytest
import torch

from sdrpn.gate.probe import fit_probe


@pytest.mark.parametrize("penalty", [1e-3, 0.3])
def test_the_gradient_is_zero_at_the_fit(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 10, 0.1, 3, 1]) + 4
    labels = (inputs[:, 0] + 0.3 * inputs[:, 1] + torch.randn(200, generator=generator)) > 5
    weight, bias = fit_probe(inputs, labels, penalty)
    scale = inputs.double().std(dim=0)
    share = torch.sigmoid(inputs.double() @ weight[0].double() + bias.double())
    gradient = ((share - labels.double())[:, None] * (inputs.double() - inputs.double().mean(dim=0)) / scale).mean(
        dim=0
    )
    torch.testing.assert_close(gradient, -penalty * weight[0].double() * scale, atol=1e-5, rtol=0)
    assert float((share - labels.double()).mean()) == pytest.approx(0, abs=1e-5)


def test_inputs_that_separate_and_one_that_never_changes() -> None:
    inputs = torch.tensor([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    weight, bias = fit_probe(inputs, torch.tensor([0, 0, 1, 1]), 1e-2)
    assert torch.isfinite(weight).all()
    assert [bool(value > 0) for value in inputs @ weight[0] + bias] == [False, False, True, True]
