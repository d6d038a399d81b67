"""Checkpoints of pictures of any shape in PyTorch, against their bundles: the same answers with every method."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.evaluation.causal import CONTROLS
from sdrpn.evaluation.layered import penalised
from sdrpn.evaluation.looks import Answerer
from sdrpn.evaluation.methods import Setting, methods_for
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.runner import run_methods
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.torch_answerer import TorchAnswerer
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec
from sdrpn.model import model_from_checkpoint
from sdrpn.runtime import Session
from sdrpn.runtime.sampling import Sampler, Sampling
from sdrpn.workflows.bundle_answerer import BundleAnswerer
from tests.evaluation.tiny import tiny_task
from tests.families.qwen.models import KINDS, spec_25
from tests.tolerances import PARITY_ABS

PENALTY = 1.3
SIZES = ((180, 120), (90, 210))
ASKED = ("plain", "sdrpn", *CONTROLS, "oracle-crop", "shuffled-crop", "tiles")
# The last leaves image tokens out of the second pass: large pictures of the official model do.
SPECS: dict[str, ModelSpec] = {"sd-rpn": KINDS["sd-rpn"], "q-zoom-gate": spec_25(), "q-zoom-3": KINDS["q-zoom-3"]}
SPECS["pruned"] = KINDS["sd-rpn"]
PRUNED_ABOVE, SEEN_ABOVE = 12, 0.9  # its tokens, and the least score of one that stays


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    width, height = SIZES[number]
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def task() -> Task:
    samples = [
        Sample(f"q{number}", partial(picture, number), f"what is {number} ?", ("a",), ((20, 10, 60, 70),))
        for number in range(len(SIZES))
    ]
    return dataclasses.replace(tiny_task(), samples=samples, max_new_tokens=6)


@pytest.fixture(scope="module", params=SPECS)
def answerers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Answerer]]:
    """A checkpoint in PyTorch, and its bundle; both with a repetition penalty."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pruned":
            patch.setattr("sdrpn.families.qwen.config.PRUNED_ABOVE_TOKENS", PRUNED_ABOVE)
            patch.setattr("sdrpn.families.qwen.pruning.SEEN_ABOVE", SEEN_ABOVE)
        folder: Path = tmp_path_factory.mktemp(request.param)
        write_random_checkpoint(folder / "checkpoint", SPECS[request.param], with_tokenizer=True, roi_gain=3.0)
        path = folder / "checkpoint" / "generation_config.json"
        stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**stored, "repetition_penalty": PENALTY}), encoding="utf-8")
        export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions("fp32"))
        with (
            open_checkpoint(folder / "checkpoint") as checkpoint,
            Session.open(folder / "bundle", threads=1) as session,
        ):
            assert checkpoint.spec.prompt.repetition_penalty == PENALTY
            if request.param == "pruned":
                answer = session.answer(picture(0), "what ?", roi=RoiPolicy(0.1, min_cells=1), max_new_tokens=1)
                assert 0 < answer.tokens.pruned < answer.tokens.image
                session.forget_image()
            in_torch = TorchAnswerer(model_from_checkpoint(checkpoint), tokenizer_of(checkpoint))
            yield [in_torch, BundleAnswerer(session)]


def asked(answerer: Answerer, gate: float) -> dict[tuple[int, str], Record]:
    setting = Setting(RoiPolicy(0.1, min_cells=1, gate_threshold=gate))
    gated = answerer.spec.rpn is not None and answerer.spec.rpn.has_gate
    methods = methods_for([*ASKED, *(["always"] if gated else [])], task(), answerer, setting)
    return {(record.index, record.method): record for record in run_methods(task(), answerer, methods, setting)}


def test_every_method_answers_as_the_bundle(answerers: list[Answerer]) -> None:
    found, expected = (asked(answerer, gate=0.5) for answerer in answerers)
    assert found.keys() == expected.keys()
    for key, record in expected.items():
        mine = found[key]
        same = ("answer", "crops_xyxy_px", "kept_cells", "roi_tokens", "image_tokens", "note", "problem", "map_hw")
        assert [getattr(mine, name) for name in same] == [getattr(record, name) for name in same], key
        for name in ("gate_score", "confidence", "peak_xy_px"):
            assert getattr(mine, name) == pytest.approx(getattr(record, name), abs=PARITY_ABS), key
    assert any(record.roi_tokens for record in found.values() if record.method in ("sdrpn", "always"))
    assert len({record.answer for record in found.values()}) > len(SIZES)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_the_penalty_is_that_of_the_runtime(penalty: float) -> None:
    rng, said = np.random.default_rng(0), [3, 1, 4, 1, 5]
    logits = rng.normal(size=40).astype(np.float32)
    expected = Sampler(Sampling(repetition_penalty=penalty), said).penalised(logits)
    assert np.array_equal(penalised(torch.from_numpy(logits), said, penalty).numpy(), expected)
