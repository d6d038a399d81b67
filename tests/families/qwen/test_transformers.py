"""Plain answers compared with transformers' own classes on random weights, as it saves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.qwen.checkpoint import open_qwen
from sdrpn.families.qwen.vision_spec import qwen_vision_of, with_image_tokens
from sdrpn.images.patches import picture_patches
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.reference import reference_answer
from sdrpn.runtime import Session
from tests.families.qwen.saved_by_transformers import IMAGE, saved_model, token_types
from tests.tolerances import TRANSFORMERS_LOGITS_ABS

BEFORE, AFTER = (300, 7, 302), (303, 11, 12, 13)
# Width, height, image tokens: one window, a row of cells, ragged windows, a large picture made small.
PICTURES = [(28, 28, (4, 64)), (4000, 30, (4, 300)), (333, 250, (16, 120)), (6000, 4000, (16, 80))]


@pytest.fixture(scope="module", params=["qwen2.5-vl", "qwen3-vl", "qwen2.5-vl tied"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, SdRpnModel, Session]]:
    """transformers' model, and of what it saves ours and a session."""
    family, _, tied = request.param.partition(" ")
    folder = Path(tmp_path_factory.mktemp("saved") / "model")
    theirs = saved_model(family, folder, tied=bool(tied))
    with open_qwen(folder) as weights:
        assert weights.spec.rpn is None
        assert weights.spec.llm.tied_embeddings == bool(tied)
        ours = model_from_checkpoint(weights)
    bundle = folder.with_name("bundle")
    export_bundle(folder, bundle, ExportOptions("fp32"))
    with Session.open(bundle, variant="fused-fp32", threads=1) as session:
        yield theirs, ours, session


@pytest.mark.parametrize(("width", "height", "tokens"), PICTURES)
def test_plain_answers_are_transformers_own(
    both: tuple[Any, SdRpnModel, Session], width: int, height: int, tokens: tuple[int, int]
) -> None:
    theirs, ours, session = both
    noise = np.random.default_rng(width).integers(0, 256, (9, 13, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    vision = with_image_tokens(qwen_vision_of(ours.spec), *tokens)
    answer = reference_answer(ours, picture, BEFORE, AFTER, roi=None, max_new_tokens=4, vision=vision)

    rows, columns = vision.grid(picture.size).hw
    side = vision.patch_size_px
    still = picture_patches(picture, vision).reshape(-1, 3, 1, side * side).repeat(vision.frames, axis=2)
    ids = torch.tensor([[*BEFORE, *[IMAGE] * (rows * columns), *AFTER]])
    with torch.inference_mode():
        generated = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **token_types(ids),
            pixel_values=torch.from_numpy(still.reshape(len(still), -1)),
            image_grid_thw=torch.tensor([[1, rows * vision.merge, columns * vision.merge]]),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    expected = torch.cat(generated.logits).numpy()
    assert answer.token_ids == tuple(generated.sequences[0, ids.shape[1] :].tolist())
    assert float(np.abs(answer.step_logits - expected).max()) <= TRANSFORMERS_LOGITS_ABS
    found = session.answer_ids(
        picture, BEFORE, AFTER, roi=None, image_tokens=tokens, max_new_tokens=len(expected), trace=True
    )
    assert found.trace is not None
    assert found.token_ids == answer.token_ids
    assert float(np.abs(found.trace.step_logits - expected).max()) <= TRANSFORMERS_LOGITS_ABS
