"""`sdrpn eval` on tiny models with random weights: every method runs, whatever they answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.checkpoint.random import write_random_checkpoint
from sdrpn.evaluation.causal import CONTROLS
from sdrpn.evaluation.methods import METHODS
from sdrpn.evaluation.records import RECORDS_NAME, read_records
from sdrpn.labels.denoise import LabelRule, denoise
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec
from tests.cli.command import Command, Outcome, refusal
from tests.damage import copied, edit_json

TAGS = ("--task", "tags", "--samples", 2, "--threads", 1)
WITHOUT_GATE = [name for name in METHODS if name != "always"]
OF_A_CHECKPOINT = ("attention-crop", "teacher-crop", "vicrop", "untrained-rpn")
ON_A_BUNDLE = [name for name in WITHOUT_GATE if name not in OF_A_CHECKPOINT]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    (folder / "heads.json").write_text(json.dumps({"format_version": 1, "grounding": [[1, 0], [2, 1]]}))
    return folder


def result_of(outcome: Outcome) -> Any:
    """stdout as JSON; stderr may say how far a slow machine is."""
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.fixture(autouse=True)
def few_questions_for_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdrpn.evaluation.tasks.tags.UNLABELLED", 2)


def test_every_method_of_a_checkpoint(sdrpn: Command, text_checkpoint: Path, heads: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("eval", text_checkpoint, *TAGS, "--methods", "all", "--heads", heads, "--out", out, "--json")
    found = result_of(sdrpn(*command, "--attention-threshold", 0.3))
    assert (found["task"], found["samples"], found["settings"]["split"]) == ("tags", 2, "heldout")
    assert list(found["methods"]) == WITHOUT_GATE
    assert found == json.loads((out / "results.json").read_text())
    for name, result in found["methods"].items():
        assert result["problems"] == 0, name
        assert result["seconds_per_question"] > 0
        looks = name not in ("plain", "blind")
        assert all((result[entry] is not None) is looks for entry in ("mean_iou", "contains", "recall"))
    assert found["methods"]["oracle-crop"]["contains"] == 1.0
    zooms = [found["methods"][name]["mean_zoom"] for name in ("oracle-crop", "oracle-lowres")]
    assert zooms[0] == pytest.approx(zooms[1], rel=0.05)
    assert zooms[0] > 2
    assert found["methods"]["tiles"]["roi_tokens"] == 64
    assert found["settings"]["thresholds"] == {"sdrpn": 0.15, "attention-crop": -0.3}
    assert len(found["differences"]) == len(WITHOUT_GATE) * (len(WITHOUT_GATE) - 1) // 2
    assert (found["causal"], found["curve"]) == (None, None)
    assert "| oracle-crop |" in (out / "results.md").read_text()
    assert {record.method for record in read_records(out)} == set(WITHOUT_GATE)
    pictures = {path.name for path in (out / "worst").iterdir()}
    assert pictures >= {"000.jpg", "000-map.jpg", "001.jpg", "001-map.jpg", "index.html"}
    for record in read_records(out):
        mapped = record.method in ("sdrpn", "untrained-rpn", "attention-crop")
        assert mapped <= (record.map_percent is not None), record.method
        assert (record.crops_xyxy_px != ()) or (record.note is not None) or record.method in ("plain", "blind")


def test_a_bundle_answers_as_its_checkpoint(
    sdrpn: Command, text_checkpoint: Path, text_bundle: Path, tmp_path: Path
) -> None:
    answers: list[dict[tuple[int, str], Any]] = []
    for model in (text_checkpoint, text_bundle):
        out = tmp_path / model.name
        methods = ",".join(ON_A_BUNDLE)
        assert sdrpn("eval", model, *TAGS, "--methods", methods, "--threshold", 0.5, "--out", out).code == 0
        answers.append(
            {
                (found.index, found.method): (found.answer, found.crops_xyxy_px, found.note)
                for found in read_records(out)
            }
        )
    assert answers[0] == answers[1]


def test_the_threshold_is_that_of_the_training(
    sdrpn: Command, text_checkpoint: Path, text_bundle: Path, tmp_path: Path
) -> None:
    """A task without a published threshold takes the model's own, and so does a task with one if it was trained."""
    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.checkpoint.rpn_file import write_rpn

    with open_checkpoint(text_checkpoint) as checkpoint:
        chosen = ModelPolicy(RoiPolicy(0.35, "bbox"), "labels")
        write_rpn(tmp_path / "rpn", checkpoint.spec, checkpoint.read, policy=chosen)
    asked = (*TAGS, "--methods", "sdrpn", "--no-answers", "--json")
    rpns = ("--rpn", tmp_path / "rpn", "--rpn", f"b={tmp_path / 'rpn'}")
    settings = result_of(sdrpn("eval", text_checkpoint, *asked, *rpns))["settings"]
    assert (settings["thresholds"], settings["upscale"]) == ({"sdrpn": 0.35, "sdrpn:b": 0.35}, "bbox")
    settings = result_of(sdrpn("eval", text_checkpoint, *asked, *rpns, "--threshold", 0.5))["settings"]
    assert settings["thresholds"] == {"sdrpn": 0.5, "sdrpn:b": 0.5}
    bundle = copied(text_bundle, tmp_path)
    edit_json(bundle / "manifest.json", lambda manifest: manifest["policy"].update(threshold=0.4, origin="given"))
    assert result_of(sdrpn("eval", bundle, *asked))["settings"]["thresholds"] == {"sdrpn": 0.4}


def test_crops_without_answers(sdrpn: Command, text_checkpoint: Path, text_bundle: Path) -> None:
    methods, look = ("--methods", ",".join(ON_A_BUNDLE), "--threshold", 0.5), ("--no-answers",)
    runs = ((text_checkpoint, ()), (text_checkpoint, look), (text_bundle, look))
    whole, *looked = (
        result_of(sdrpn("eval", model, *TAGS, *methods, *more, "--json"))["methods"] for model, more in runs
    )
    for found in looked:
        for name, result in found.items():
            assert result["accuracy"] is None
            for entry in ("mean_iou", "contains", "recall", "point_in_box", "roi_tokens"):
                assert result[entry] == pytest.approx(whole[name][entry]), (name, entry)


def test_what_the_crop_and_the_second_look_are_worth(
    sdrpn: Command, text_checkpoint: Path, text_bundle: Path, tmp_path: Path
) -> None:
    """On a bundle and on its checkpoint: the same answers, with as many tokens whatever the crop shows."""
    found = {}
    for model in (text_bundle, text_checkpoint):
        out = tmp_path / model.name
        command = ("eval", model, *TAGS, "--causal", "--curve", "--threshold", 0.15, "--out", out, "--json")
        found[model] = result_of(sdrpn(*command))
        assert list(found[model]["methods"]) == ["plain", "sdrpn", *CONTROLS, "oracle-crop"]
        records = read_records(out)
        for index in range(2):
            crops = {record.method: record for record in records if record.index == index}
            assert bool(crops["sdrpn"].roi_tokens) is (index == 0)  # the second picture gets no crop
            for name in CONTROLS:
                assert crops[name].roi_tokens == crops["sdrpn"].roi_tokens
                assert crops[name].crops_xyxy_px == crops["sdrpn"].crops_xyxy_px
            assert {name: record.other_score is not None for name, record in crops.items()} == {
                name: name == "crop-swapped" and index == 0 for name in crops
            }
            assert crops["sdrpn"].confidence is not None
            assert crops["sdrpn"].image_tokens == 16
        for name in ("causal.png", "curve.png"):
            with Image.open(out / name) as chart:
                chart.load()
        assert "## Right and wrong, question by question" in (out / "results.md").read_text()
    answers = [
        {(record.index, record.method): record.answer for record in read_records(tmp_path / model.name)}
        for model in found
    ]
    assert answers[0] == answers[1]
    for results in found.values():
        assert (results["causal"]["questions"], results["causal"]["with_crop"]) == (2, 1)
        assert results["curve"]["questions"] == 2
        assert [table["control"] for table in results["causal"]["tables"]] == ["plain", *CONTROLS]
        assert [point["name"] for point in results["curve"]["fixed"]] == [
            "plain",
            "sdrpn",
            "oracle-gate",
            "oracle-crop",
        ]
        assert [curve["judge"] for curve in results["curve"]["curves"]] == ["confidence"]
        assert results["curve"]["own"] is None


def test_a_run_is_continued(sdrpn: Command, text_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("eval", text_bundle, *TAGS, "--methods", "plain,sdrpn", "--out", out)
    whole = result_of(sdrpn(*command, "--json"))
    path = out / RECORDS_NAME
    first = path.read_text().splitlines(keepends=True)[0]
    path.write_text(first)
    (out / "results.json").unlink()
    assert "already holds a run; resume it, or name a new folder (--resume)" in refusal(sdrpn(*command))
    again = result_of(sdrpn(*command, "--resume", "--json"))
    assert path.read_text().splitlines(keepends=True)[0] == first
    assert again["methods"]["sdrpn"]["accuracy"] == whole["methods"]["sdrpn"]["accuracy"]
    assert (out / "results.json").is_file()
    assert "other settings (seed)" in refusal(sdrpn(*command, "--resume", "--seed", 3)).replace("draw_seed, ", "")


def test_the_table(sdrpn: Command, text_bundle: Path) -> None:
    outcome = sdrpn("eval", text_bundle, *TAGS, "--split", "shifted", "--methods", "plain,blind")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "tags: exact match, 2 questions"
    assert [line.split()[0] for line in lines[2:4]] == ["plain", "blind"]


def test_several_rpns(sdrpn: Command, text_checkpoint: Path, tmp_path: Path) -> None:
    """One of the same weights as the checkpoint's own looks where that one looks."""
    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.checkpoint.rpn_file import write_rpn

    with open_checkpoint(text_checkpoint) as checkpoint:
        write_rpn(tmp_path / "rpn", checkpoint.spec, checkpoint.read)
    file = tmp_path / "rpn" / "rpn.safetensors"
    command = ("eval", text_checkpoint, *TAGS, "--methods", "plain,sdrpn", "--rpn", file, "--rpn")
    for more, name in ((f"b={file}", "b"), (file, "rpn"), (file.parent, "rpn")):
        found = result_of(sdrpn(*command, more, "--json"))
        assert list(found["methods"]) == ["plain", "sdrpn", f"sdrpn:{name}"]
        assert found["methods"]["sdrpn"]["mean_iou"] == found["methods"][f"sdrpn:{name}"]["mean_iou"]
        assert found["rpn_mean"]["methods"] == ["sdrpn", f"sdrpn:{name}"]
    assert "the name '' is taken" in refusal(sdrpn(*command, f"={file}"))
    assert "the name 'rpn' is taken" in refusal(sdrpn(*command, file, "--rpn", file))
    unknown = ("eval", text_checkpoint, *TAGS, "--methods", "sdrpn:b", "--rpn", file, "--rpn", f"c={file}")
    assert "names no RPN of this run (c)" in refusal(sdrpn(*unknown))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "plain,vicrop"), "the method vicrop needs attention maps, which a bundle does not give"),
        (("--methods", "magic"), "the method magic does not exist; expected some of plain, "),
        (("--methods", ","), "no method was named"),
        (("--split", ""), "the split is ''; the task tags has heldout, shifted, mixed (--split)"),
        (("--split", "train"), "the split is 'train'; the task tags has heldout, shifted, mixed (--split)"),
        (("--resume",), "continuing a run needs its folder; name it (--out)"),
        (("--rpn", "x"), "rpn is for a checkpoint, and "),
        (("--vision-tower", "x"), "vision_tower is for a checkpoint, and "),
        (("--precision", "bf16"), "precision is for a checkpoint, and "),
        (("--device", "cuda"), "device is for a checkpoint, and "),
        (("--heads", "h"), "heads is h, which is for the attention of a checkpoint, and "),
        (("--vicrop-layer", "3"), "vicrop_layer is 3, which is for the attention of a checkpoint, and "),
        (("--attention-threshold", "0.3"), "attention_threshold is 0.3, which is for the attention of a checkpoint"),
        (("--seed", "-1"), "seed is -1; expected a whole number of at least 0 (--seed)"),
        (("--threshold", "auto"), "an automatic threshold needs attention, which a bundle does not give"),
        (("--threshold", "high"), "argument --threshold: 'high' is not a number from -1 to 1, or auto"),
        (
            ("--causal", "--no-answers"),
            "what a crop is worth is measured by answers; ask for answers as well (--causal)",
        ),
        (("--samples", "0"), "argument --samples: 0 is not a whole number of at least 1"),
    ],
)
def test_refusals_of_a_bundle(sdrpn: Command, text_bundle: Path, options: tuple[str, ...], message: str) -> None:
    assert message in refusal(sdrpn("eval", text_bundle, "--task", "tags", *options))


def test_refusals_of_a_checkpoint(
    sdrpn: Command, text_checkpoint: Path, plain_checkpoint: Path, heads: Path, tmp_path: Path
) -> None:
    def refused(model: Path, *options: object) -> str:
        return refusal(sdrpn("eval", model, *TAGS, *options))

    for option, value in (("backend", "onnxruntime"), ("variant", "fused-fp32")):
        assert f"{option} is for a bundle, and {text_checkpoint} is a checkpoint" in refused(
            text_checkpoint, f"--{option}", value
        )

    assert "leave the method out, or name them (--heads)" in refused(text_checkpoint, "--methods", "attention-crop")
    assert "sdrpn needs an RPN, and the model has none" in refused(plain_checkpoint, "--methods", "sdrpn")
    assert "sdrpn needs an RPN, and the model has none" in refused(plain_checkpoint, "--causal")
    assert "ViCrop's layer is 4; the model has layers 0 to 3: name one (--vicrop-layer)" in refused(
        text_checkpoint, "--vicrop-layer", 4
    )
    (tmp_path / "heads.json").write_text(json.dumps({"format_version": 1, "grounding": [[9, 0]]}))
    assert "layer 9 head 0 does not exist" in refused(text_checkpoint, "--heads", tmp_path)
    assert "does not exist; expected the folder of a bundle or of a checkpoint" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty is empty; expected the folder of a bundle or of a checkpoint" in refused(tmp_path / "empty")


def test_thresholds_by_labels(
    sdrpn: Command, text_checkpoint: Path, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random attention is spread over all of 4 x 4 cells, too wide for a label; with these shares a few are left."""
    command = ("eval", text_checkpoint, *TAGS, "--methods", "sdrpn,attention-crop", "--heads", heads, "--json")
    assert "none of 2 answers gave a label" in refusal(sdrpn(*command, "--threshold", "auto"))
    rule = LabelRule(foreground_share=0.9, background_share=0.8)
    monkeypatch.setattr(
        "sdrpn.evaluation.survey.denoise", lambda strength, sinks, usual: denoise(strength, sinks, rule)
    )
    thresholds = result_of(sdrpn(*command, "--threshold", "auto"))["settings"]["thresholds"]
    assert 0.05 <= thresholds["sdrpn"] <= 0.95
    assert -0.95 <= thresholds["attention-crop"] <= -0.05


def test_a_prompt_too_long_for_a_method_is_counted(sdrpn: Command, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    """Four tiles do not fit: that method scores 0 and says how often, the others go on."""
    import dataclasses

    llm = dataclasses.replace(tiny_spec.llm, vocabulary=288, max_context=250)
    write_random_checkpoint(tmp_path / "short", dataclasses.replace(tiny_spec, llm=llm), with_tokenizer=True)
    found = result_of(sdrpn("eval", tmp_path / "short", *TAGS, "--methods", "plain,tiles", "--json"))
    assert (found["methods"]["plain"]["problems"], found["methods"]["tiles"]["problems"]) == (0, 2)
    assert found["methods"]["tiles"]["seconds_per_question"] is None


def test_a_bundle_needs_no_extra(text_bundle: Path, picture: Path, tmp_path: Path) -> None:
    """For tasks in official files of JSON."""
    row = {"image_id": "a", "question_id": 1, "question": "what is it?", "answers": ["a"] * 10}
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": [row]}))
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train_images" / "a.jpg").write_bytes(picture.read_bytes())
    refused = ["torch", "transformers", "onnx", "onnxscript", "ml_dtypes", "pyarrow", "matplotlib", "safetensors"]
    arguments = ["eval", text_bundle, "--task", "textvqa", "--data", tmp_path, "--methods", "plain,sdrpn", "--json"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({refused}))\n"
        f"from sdrpn.cli.main import main; sys.exit(main({[str(argument) for argument in arguments]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 1
