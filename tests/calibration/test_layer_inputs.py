"""Second moments of every matrix's inputs, gathered a layer at a time, are those of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.calibration import CalibrationPrompts, LayerInputs
from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.errors import BadInput, RunFailed
from sdrpn.labels.questions import DataQuestion
from sdrpn.model.base import SdRpnModel, model_from_checkpoint
from tests.pictures import photo

MATRICES = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
QUESTIONS = (
    DataQuestion("1", "a.png", "What does the sign say?", "EXIT 12"),
    DataQuestion("2", "b.png", "Where?"),
    DataQuestion("3", "a.png", "Which colour?", "red"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, turns in (("a", 0), ("b", 1)):
        Image.fromarray(np.rot90(photo(), turns).copy()).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def prompts(text_checkpoint: Path, images: Path) -> CalibrationPrompts:
    with open_checkpoint(text_checkpoint) as checkpoint:
        return CalibrationPrompts(QUESTIONS, images, tokenizer_of(checkpoint))


@torch.inference_mode()
def expected_moments(model: SdRpnModel, embeds: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """From hooks on every matrix of the whole model."""
    seen: dict[str, list[torch.Tensor]] = {}

    def record(name: str) -> Any:
        return lambda module, inputs: seen.setdefault(name, []).append(inputs[0].flatten(0, -2))

    assert model.rpn is not None
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.startswith("vision"):
            module.register_forward_pre_hook(record(model.canonical_name(f"{name}.weight")))
    for rows in embeds:
        positions = torch.arange(len(rows))[None]
        tap = model.trunk(rows[None], positions)
        model.tail(tap, positions)
        model.rpn(tap, positions)
        model.tail.head(model.tail.norm(model.tail.hidden(tap, positions)))
    # The head saw the last rows alone first; of all rows there are as many as tokens.
    counts = {len(rows) for rows in embeds}
    seen["llm.head.weight"] = [x for x in seen["llm.head.weight"] if len(x) in counts]
    moments = {}
    for name, pieces in seen.items():
        x = torch.cat(pieces).double()
        moments[name] = (x.T @ x / len(x)).numpy()
    return moments


def test_every_matrix(text_checkpoint: Path, prompts: CalibrationPrompts) -> None:
    with open_checkpoint(text_checkpoint) as checkpoint:
        rows = prompts.rows(checkpoint)
        expected = expected_moments(model_from_checkpoint(checkpoint), [row.embeds for row in rows])
        inputs = LayerInputs(checkpoint, rows, prompts.digest)
        names = [f"llm.layers.{i}.{matrix}.weight" for i in range(4) for matrix in MATRICES]
        names += ["llm.head.weight", *(f"rpn.layers.0.{matrix}.weight" for matrix in MATRICES)]
        names += ["rpn.layers.1.attention.k.weight"]
        for name in names:
            np.testing.assert_allclose(inputs.second_moment(name), expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
        # The score layer's query is made of the last row alone; all rows say more about its inputs.
        query = inputs.second_moment("rpn.layers.1.attention.q.weight")
        np.testing.assert_array_equal(query, inputs.second_moment("rpn.layers.1.attention.k.weight"))


def test_layers_may_be_left_out_but_not_come_again(text_checkpoint: Path, prompts: CalibrationPrompts) -> None:
    with open_checkpoint(text_checkpoint) as checkpoint:
        inputs = LayerInputs(checkpoint, prompts.rows(checkpoint), prompts.digest)
        inputs.second_moment("llm.layers.3.mlp.down.weight")
        with pytest.raises(RunFailed, match=r"llm\.layers\.1 were requested after llm\.layers\.3 ran"):
            inputs.second_moment("llm.layers.1.mlp.down.weight")
        assert inputs.second_moment("rpn.layers.0.attention.o.weight").shape == (64, 64)


def test_prompts_hold_the_image_in_its_place_and_every_other_one_a_crop(
    text_checkpoint: Path, prompts: CalibrationPrompts
) -> None:
    with open_checkpoint(text_checkpoint) as checkpoint:
        tokens = checkpoint.spec.vision.image_tokens
        lengths = [len(row.embeds) for row in prompts.rows(checkpoint)]
        tokenizer = tokenizer_of(checkpoint)
    texts = [f"{question.text}{question.answer or ''}" for question in QUESTIONS]
    own = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    crops = [0, tokens, 0]
    assert len({length - text - crop for length, text, crop in zip(lengths, own, crops, strict=True)}) == 1


def test_the_digest_is_of_questions_and_pictures(prompts: CalibrationPrompts, images: Path, tmp_path: Path) -> None:
    others = [
        CalibrationPrompts(QUESTIONS[:2], images, prompts.tokenizer),
        CalibrationPrompts(
            (*QUESTIONS[:2], DataQuestion("3", "b.png", "Which colour?", "red")), images, prompts.tokenizer
        ),
    ]
    assert len({prompts.digest, *(other.digest for other in others)}) == 3
    with pytest.raises(BadInput, match=r"nowhere\.png cannot be read \(No such file"):
        _ = CalibrationPrompts((DataQuestion("1", "nowhere.png", "What?"),), tmp_path, prompts.tokenizer).digest


def test_no_question(images: Path, prompts: CalibrationPrompts) -> None:
    with pytest.raises(BadInput, match="there is no question to calibrate on"):
        CalibrationPrompts((), images, prompts.tokenizer)
