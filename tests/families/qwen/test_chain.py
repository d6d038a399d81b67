"""From a bare model to a bundle that looks again: heads, labels, an RPN, a gate, an export, an answer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdrpn
from sdrpn.checkpoint import open_checkpoint, read_rpn, write_random_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.families.registry import family_of, prompt_of
from sdrpn.gate.options import GateOptions
from sdrpn.images.image import open_image
from sdrpn.labels.shards import read_shards
from sdrpn.method.gate import gate_score
from sdrpn.method.roi import RoiPolicy
from sdrpn.model import model_from_checkpoint
from sdrpn.model.reference import reference_answer
from sdrpn.train.label_set import read_labels
from sdrpn.train.options import TrainOptions
from sdrpn.workflows.export import export_bundle
from sdrpn.workflows.gate_label import GateLabelRequest, label_gate
from sdrpn.workflows.label import RelabelRequest, label_questions, relabel_questions
from sdrpn.workflows.train import TrainedRpn, train_rpn
from sdrpn.workflows.train_gate import GateTrainingRequest, TrainedGate, train_gate
from tests.families.qwen.models import spec_3, spec_25
from tests.tolerances import GOLDEN_GATE_SCORE_ABS, GOLDEN_ROI_LOGITS_ABS
from tests.workflows.test_gate_jobs import learnable

SIZES = ((150, 100), (90, 160), (120, 120), (220, 70), (100, 130), (60, 60), (130, 90), (110, 150)) * 2
TOKENS = (16, 48)
ASKED = ("what is red ?", "where is the tag ?")
OPTIONS = TrainOptions(
    tap_layer=3,
    rpn_layers=2,
    learning_rate=1e-3,
    batch=8,
    micro_batch=4,
    steps=24,
    precision="fp32",
    taps="fp32",
    validation_share=0.25,
)


RESOLUTIONS = (16, 25, 36)
GATE_OPTIONS = GateOptions(
    layers=1,
    learning_rate=3e-3,
    batch=8,
    micro_batch=8,
    steps=12,
    precision="fp32",
    taps="fp32",
    validation_share=0.3,
)


@dataclass(frozen=True)
class Chain:
    """What each stage wrote."""

    folder: Path
    trained: TrainedRpn
    gate: TrainedGate

    def at(self, name: str) -> Path:
        return self.folder / name


def scene(number: int, width: int, height: int) -> Image.Image:
    """Plates of few colours on grey: the attention of any model follows them, and so can be learned."""
    rng = np.random.default_rng(number)
    pixels = np.full((height, width, 3), 128, np.uint8)
    for colour in ((230, 20, 20), (20, 200, 40), (30, 40, 240)):
        x, y = rng.integers(0, width - 30), rng.integers(0, height - 30)
        pixels[y : y + 30, x : x + 30] = colour
    return Image.fromarray(pixels)


@pytest.fixture(scope="module", params=[spec_25, spec_3], ids=["2.5", "3"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    write_random_checkpoint(folder / "bare", request.param(None), with_tokenizer=True)
    (folder / "images").mkdir()
    lines = []
    for number, (width, height) in enumerate(SIZES):
        scene(number, width, height).save(folder / "images" / f"{number}.png")
        lines += [json.dumps({"image": f"{number}.png", "question": question}) for question in ASKED]
    data, images = folder / "questions.jsonl", folder / "images"
    data.write_text("\n".join(lines), "utf-8")

    asked = sdrpn.TeacherRequest(
        sdrpn.CheckpointParts(folder / "bare"), data, images, max_new_tokens=4, image_tokens=TOKENS, batch=8
    )
    sdrpn.find_heads(sdrpn.HeadsRequest(asked, out=folder / "heads"))
    for name, batch in (("labels", 8), ("alone", 1)):
        label_questions(
            folder / "bare",
            data,
            images,
            folder / f"{name}-all",
            heads=str(folder / "heads"),
            max_new_tokens=4,
            image_tokens=TOKENS,
            batch=batch,
        )
        # A random model's attention is nearly flat, so that only a raw rule labels anything.
        relabel_questions(RelabelRequest(folder / f"{name}-all", folder / name, foreground_share=0.7, raw=True))
    trained = train_rpn(folder / "bare", folder / "labels", folder / "rpn", OPTIONS, device="cpu")

    parts = sdrpn.CheckpointParts(folder / "bare", rpn=folder / "rpn")
    views: dict[str, Any] = {"resolutions": RESOLUTIONS, "agree_with": "highest", "max_new_tokens": 2}
    label_gate(GateLabelRequest(parts, data, images, folder / "gate-labels", **views, limit=8))
    learnable(folder / "gate-labels", copies=4)  # a random model's answers are what they are
    gate = train_gate(GateTrainingRequest(parts, folder / "gate-labels", folder / "gated", GATE_OPTIONS, device="cpu"))
    export_bundle(folder / "bare", folder / "bundle", rpn=folder / "gated")
    return Chain(folder, trained, gate)


def test_labels_have_the_shape_of_their_pictures(chain: Chain) -> None:
    labels = read_labels(chain.at("labels"))
    assert len({prompt.cells.shape for prompt in labels.prompts}) > 3
    assert (labels.fit, labels.image_tokens) == ("whole", TOKENS)


def test_labels_do_not_depend_on_the_batch(chain: Chain) -> None:
    together, alone = (list(read_shards(chain.at(f"{name}-all") / "attention")) for name in ("labels", "alone"))
    for row, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(row.pop("grounding"), expected.pop("grounding"), atol=1e-5, rtol=0)
        assert row == expected
    assert list(read_shards(chain.at("labels") / "labels")) == list(read_shards(chain.at("alone") / "labels"))


def test_pictures_that_were_padded_are_trained_on_padded(chain: Chain) -> None:
    """By Q-Zoom's rule cells of the padding are background."""
    asked: dict[str, Any] = {"limit": 4, "max_new_tokens": 2, "image_tokens": (36, 36), "shape": "square"}
    data, images, out = chain.at("questions.jsonl"), chain.at("images"), chain.at("square-all")
    label_questions(chain.at("bare"), data, images, out, heads=str(chain.at("heads")), **asked)
    wide: dict[str, Any] = {"foreground_share": 0.8, "background_share": 0.7, "largest_box_share": 1.0}
    relabel_questions(RelabelRequest(out, chain.at("square"), **wide, rule="q-zoom"))
    labels = read_labels(chain.at("square"))
    assert {(prompt.image, prompt.cells.shape) for prompt in labels.prompts} <= {("0.png", (6, 6)), ("1.png", (6, 6))}
    for prompt in labels.prompts:
        ends = prompt.cells if prompt.image == "0.png" else prompt.cells.T  # wider than high, and higher than wide
        assert not ends[[0, -1]].any()
    options = dataclasses.replace(OPTIONS, steps=2, validation_share=0.0)
    trained = train_rpn(chain.at("bare"), chain.at("square"), chain.at("square-rpn"), options, device="cpu")
    assert trained.report.pairs == len(labels.prompts) > 0


def test_prompts_are_those_of_a_model_that_may_look_again(chain: Chain) -> None:
    """With the system turn, which the bare Qwen3-VL's template does not write."""
    for row in read_shards(chain.at("labels") / "labels"):
        with open_checkpoint(chain.at("bare"), rpn=chain.at("rpn")) as checkpoint:
            own = prompt_of(checkpoint.spec, tokenizer_of(checkpoint), row["question"])
        assert (tuple(row["ids_before"]), tuple(row["ids_after"])) == (own.ids_before, own.ids_after)
        assert len(row["ids_before"]) > len("You are a helpful assistant."), "of bytes"


def test_the_validation_loss_falls(chain: Chain) -> None:
    before, after = chain.trained.report.history.validations
    assert after.loss < before.loss
    assert chain.gate.report.after.loss < chain.gate.report.before.loss


def test_the_bundle_looks_where_the_trained_rpn_looks(chain: Chain) -> None:
    picture = open_image(chain.at("images") / "3.png")
    with open_checkpoint(chain.at("bare"), rpn=chain.at("gated")) as checkpoint:
        assert checkpoint.rpn_trained
        model = model_from_checkpoint(checkpoint)
    prompt = read_labels(chain.at("labels")).prompts[0]
    policy = RoiPolicy(0.05, min_cells=1, gate_threshold=-1.0)
    expected = reference_answer(model, picture, prompt.ids_before, prompt.ids_after, roi=policy, max_new_tokens=4)
    with sdrpn.Session.open(chain.at("bundle"), threads=1) as session:
        found = session.answer_ids(
            picture, prompt.ids_before, prompt.ids_after, roi=policy, max_new_tokens=4, trace=True
        )
    policies = [read_rpn(chain.at(name)).policy for name in ("rpn", "gated")]
    assert policies[0] is not None
    assert policies[1] is not None
    assert policies[1].roi.threshold == policies[0].roi.threshold, "a gate changes no map"
    assert found.trace is not None
    assert found.trace.gate_score is not None
    assert expected.gate_logit is not None
    assert abs(found.trace.gate_score - gate_score(expected.gate_logit)) < GOLDEN_GATE_SCORE_ABS
    assert found.trace.roi_logits is not None
    assert expected.roi_logits is not None
    np.testing.assert_allclose(found.trace.roi_logits, expected.roi_logits, atol=GOLDEN_ROI_LOGITS_ABS, rtol=0)
    assert found.token_ids == expected.token_ids
    rpn = family_of(model.spec).trained_rpn(2)
    assert dataclasses.replace(rpn, gate_layers=1) == model.spec.rpn
