"""Every job on this family: labels, a training, an export, its comparison with the checkpoint, an evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.calibration import CalibrationPrompts
from sdrpn.checkpoint import open_checkpoint, read_rpn, write_random_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.evaluation.methods import METHODS
from sdrpn.evaluation.records import read_records
from sdrpn.families.family import CropTokens, Layout
from sdrpn.families.registry import family_of, registered
from sdrpn.labels.questions import DataQuestion
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import PromptSpec
from sdrpn.model import model_from_checkpoint
from sdrpn.model.reference import reference_answer
from sdrpn.train.options import TrainOptions
from sdrpn.workflows.evaluate import evaluate_model
from sdrpn.workflows.export import export_bundle
from sdrpn.workflows.label import RelabelRequest, label_questions, relabel_questions
from sdrpn.workflows.train import train_rpn
from sdrpn.workflows.verify import verify_bundle
from tests.families.wide.checkpoint import write_wide
from tests.families.wide.numpy_model import NumpyModel
from tests.families.wide.test_wide import BEFORE, LLM, QUESTIONS, SIZES, SPEC, TOKENS, answered, looked_at, picture
from tests.tolerances import PARITY_ABS

# Words take more room than the ids of the other tests.
WORDS = dataclasses.replace(
    SPEC,
    llm=dataclasses.replace(LLM, vocabulary=300, max_context=256),
    prompt=PromptSpec(image_token="<image>", bos_token_id=None),
)
ASKED = ("what is red ?", "where is the tag ?")
OPTIONS = TrainOptions(
    tap_layer=2,
    rpn_layers=2,
    learning_rate=1e-3,
    batch=3,
    micro_batch=2,
    steps=3,
    precision="fp32",
    taps="fp32",
    validation_share=0.34,
)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with registered("wide", "tests.families.wide.family:FAMILY"):
        yield


@pytest.fixture(scope="module")
def folder(known: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, pictures of different grids, questions and heads."""
    folder = tmp_path_factory.mktemp("wide")
    write_random_checkpoint(folder / "checkpoint", WORDS, with_tokenizer=True)
    (folder / "images").mkdir()
    lines = []
    for number, size in enumerate(SIZES):
        picture(size).save(folder / "images" / f"{number}.png")
        lines += [json.dumps({"image": f"{number}.png", "question": question}) for question in ASKED]
    (folder / "questions.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "heads").mkdir()
    heads = {"format_version": 1, "grounding": [[1, 0], [2, 1]]}
    (folder / "heads" / "heads.json").write_text(json.dumps(heads), "utf-8")
    return folder


@pytest.fixture(scope="module")
def rpn(folder: Path) -> Path:
    """Trained on its own labels; a random model's attention is nearly flat, so that only a raw rule labels anything."""
    checkpoint, heads = folder / "checkpoint", str(folder / "heads")
    label_questions(
        checkpoint, folder / "questions.jsonl", folder / "images", folder / "all", heads=heads, max_new_tokens=4
    )
    labelled = relabel_questions(RelabelRequest(folder / "all", folder / "labels", foreground_share=0.9, raw=True))
    assert labelled.counts.labelled == len(SIZES) * len(ASKED)
    train_rpn(checkpoint, folder / "labels", folder / "rpn", OPTIONS, device="cpu")
    return folder / "rpn"


@pytest.fixture(scope="module")
def bundle(folder: Path, rpn: Path) -> Path:
    export_bundle(folder / "checkpoint", folder / "bundle", rpn=rpn)
    return folder / "bundle"


@pytest.mark.parametrize("size", SIZES)
def test_the_reference_is_numpy(tmp_path: Path, size: tuple[int, int]) -> None:
    """Positions, map, crops and answer of the model in PyTorch."""
    model, image, after = NumpyModel(SPEC, write_wide(tmp_path / "c", SPEC)), picture(size), QUESTIONS[0]
    with open_checkpoint(tmp_path / "c") as checkpoint:
        found = reference_answer(
            model_from_checkpoint(checkpoint),
            image,
            BEFORE,
            after,
            roi=RoiPolicy(0.3, min_cells=1, max_share=1),
            max_new_tokens=TOKENS,
        )
    assert found.roi_logits is not None
    assert found.decision is not None
    np.testing.assert_allclose(found.roi_logits, looked_at(model, image, after), atol=PARITY_ABS)
    ids, logits = answered(model, image, after, found.decision.crops)
    assert list(found.token_ids) == ids
    np.testing.assert_allclose(found.step_logits, logits, atol=PARITY_ABS)


def test_labels_have_the_grid_of_their_picture(folder: Path, rpn: Path) -> None:
    from sdrpn.train.label_set import read_labels

    labels = read_labels(folder / "labels")
    assert {prompt.cells.shape for prompt in labels.prompts} == {(4, 8), (5, 4), (2, 8)}
    assert labels.about["fit"] == "whole"
    assert labels.about["sink_limit"] == 0.05
    with Image.open(folder / "labels" / "samples" / "00.jpg") as drawn:
        assert drawn.width > 2 * drawn.height  # two pictures of 160 x 70, side by side


def test_the_rpn_says_by_what_to_look(rpn: Path) -> None:
    training = json.loads((rpn / "training.json").read_text("utf-8"))
    assert training["steps"] == OPTIONS.steps
    assert all(np.isfinite(training["losses"]))
    file = read_rpn(rpn)
    assert file.policy is not None
    assert (file.policy.origin, file.policy.roi.min_cells) == ("labels", 1)


def test_the_bundle_is_its_checkpoint(folder: Path, rpn: Path, bundle: Path) -> None:
    assert open_bundle(bundle).manifest.policy == read_rpn(rpn).policy
    for exact in (False, True):
        found = verify_bundle(bundle, folder / "checkpoint", rpn=rpn, exact=exact, threads=1)
        found.require_ok()


def test_the_bundle_answers_as_its_checkpoint(folder: Path, rpn: Path, bundle: Path) -> None:
    methods = ["plain", "sdrpn", "oracle-crop", "oracle-lowres", "blind"]
    answers = []
    for name, model, more in (("a", bundle, {}), ("b", folder / "checkpoint", {"rpns": [str(rpn)]})):
        evaluate_model(model, "tags", samples=2, methods=methods, threads=1, out=folder / name, **more)  # type: ignore[arg-type]
        answers.append(
            [
                (record.index, record.method, record.answer, record.crops_xyxy_px)
                for record in read_records(folder / name)
            ]
        )
    assert sorted(answers[0]) == sorted(answers[1])


def test_every_method_of_a_checkpoint(folder: Path, rpn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdrpn.evaluation.tasks.tags.UNLABELLED", 2)
    found = evaluate_model(
        folder / "checkpoint",
        "tags",
        samples=2,
        methods=["all"],
        rpns=[str(rpn)],
        heads=str(folder / "heads"),
        attention_threshold=0.3,
        threads=1,
        out=folder / "every",
    )
    assert set(found.methods) == set(METHODS) - {"always"}, "which is for models with a gate"
    assert all(method.problems == 0 for method in found.methods.values())


def test_calibration_has_its_positions(folder: Path) -> None:
    questions = tuple(DataQuestion(str(number), f"{number}.png", ASKED[0], "red") for number in range(2))
    with open_checkpoint(folder / "checkpoint") as checkpoint:
        prompts = CalibrationPrompts(questions, folder / "images", tokenizer_of(checkpoint))
        plain, cropped = prompts.rows(checkpoint)
        family, tokenizer = family_of(WORDS), tokenizer_of(checkpoint)
    prompt = family.prompt(tokenizer, WORDS, ASKED[0])
    after = len(prompt.ids_after) + len(tokenizer.encode("red", add_special_tokens=False).ids)
    grid = WORDS.vision.grid(SIZES[1])
    inserted = CropTokens(grid.crop_hw((17, 40, 53, 120)))
    axis_of = family.axis_of(WORDS)
    for rows, hw, crops in ((plain, (4, 8), ()), (cropped, grid.hw, (inserted,))):
        expected = family.positions(WORDS, Layout(len(prompt.ids_before), hw, crops, after))
        assert expected is not None
        assert axis_of is not None
        assert torch.equal(rows.positions[0], torch.from_numpy(expected.rows[axis_of].T))
        assert len(rows.embeds) == rows.positions.shape[1]
