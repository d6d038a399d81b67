"""A tiny checkpoint that answers, for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sdrpn.checkpoint import open_checkpoint
from sdrpn.evaluation.methods import UNTRAINED
from sdrpn.evaluation.rpns import untrained_rpn
from sdrpn.evaluation.torch_answerer import TorchAnswerer
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.text.prompt import load_tokenizer


@pytest.fixture(scope="session")
def text_model(text_checkpoint: Path) -> SdRpnModel:
    with open_checkpoint(text_checkpoint) as checkpoint:
        return model_from_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def answerer(text_checkpoint: Path, text_model: SdRpnModel) -> Iterator[TorchAnswerer]:
    with open_checkpoint(text_checkpoint) as checkpoint:
        tokenizer = load_tokenizer(text_checkpoint / "tokenizer.json")
        rpns = {UNTRAINED: untrained_rpn(checkpoint).to("cpu", torch.float32)}
        yield TorchAnswerer(text_model, tokenizer, rpns)
