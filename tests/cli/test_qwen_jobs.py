"""Jobs on these families: calibration on real prompts, quantised exports, their comparison, costs of rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.calibration import CalibrationPrompts, LayerInputs
from sdrpn.calibration.layer_inputs import CalibrationRows
from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.labels.questions import DataQuestion
from sdrpn.model import model_from_checkpoint
from sdrpn.workflows.verify import verify_bundle
from tests.cli.command import Command, refusal
from tests.families.qwen.models import KINDS

ASKED = ("what is red ?", "where is the tag ?")
KIND = pytest.mark.parametrize("kind", ["sd-rpn", "q-zoom-gate", "q-zoom-3"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and pictures of different shapes with questions."""
    folder = tmp_path_factory.mktemp("jobs")
    for kind in ("sd-rpn", "q-zoom-gate", "q-zoom-3"):
        write_random_checkpoint(folder / kind, KINDS[kind], with_tokenizer=True, roi_gain=3.0)
    (folder / "images").mkdir()
    lines = []
    for number, size in enumerate([(180, 120), (90, 210)]):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": ASKED[number], "answer": "red"}))
    (folder / "questions.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def rows_of(folder: Path, kind: str) -> list[CalibrationRows]:
    questions = tuple(DataQuestion(str(number), f"{number}.png", ASKED[number], "red") for number in range(2))
    with open_checkpoint(folder / kind) as checkpoint:
        return CalibrationPrompts(questions, folder / "images", tokenizer_of(checkpoint)).rows(checkpoint)


@KIND
def test_the_crop_of_a_calibration_stands_where_the_scheme_has_it(kind: str, folder: Path) -> None:
    spec, (plain, cropped) = KINDS[kind], rows_of(folder, kind)
    assert len(plain.deepstack) == (2 if kind == "q-zoom-3" else 0)
    with open_checkpoint(folder / kind) as checkpoint:
        table, tokenizer = np.asarray(checkpoint.read("llm.embed.weight")), tokenizer_of(checkpoint)
    start, end = (table[tokenizer.token_to_id(f"<|vision_{name}|>")] for name in ("start", "end"))
    marks = [
        "start" if np.array_equal(row, start) else "end"
        for row in cropped.embeds.numpy()
        if np.array_equal(row, start) or np.array_equal(row, end)
    ]
    inside = spec.rpn is not None and spec.rpn.scheme == "sd-rpn"
    assert marks == (["start", "start", "end", "end"] if inside else ["start", "end", "start", "end"])
    for rows in (plain, cropped):
        for feature in rows.deepstack:
            assert feature.shape == rows.embeds.shape
            assert 0 < int((feature != 0).any(dim=1).sum()) < len(feature)  # image rows alone


@KIND
def test_statistics_are_those_of_the_model(kind: str, folder: Path) -> None:
    rows = rows_of(folder, kind)
    with open_checkpoint(folder / kind) as checkpoint:
        model = model_from_checkpoint(checkpoint)
        found = LayerInputs(checkpoint, rows, "digest")
        names = ["llm.layers.2.attention.k.weight", "llm.layers.5.mlp.down.weight", "rpn.layers.1.attention.q.weight"]
        names += ["gate.layers.0.mlp.up.weight", "gate.layers.1.attention.o.weight"] if model.gate is not None else []
        places = ["trunk.layers.2.attention.k", "tail.layers.2.mlp.down", "rpn.layers.1.attention.q"]
        places += ["gate.layers.0.mlp.up", "gate.layers.1.attention.o"] if model.gate is not None else []
        for name, place in zip(names, places, strict=True):
            module, inputs = model.get_submodule(place), list[torch.Tensor]()
            handle = module.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0][0]))
            with torch.inference_mode():
                for prompt in rows:
                    deepstack = [feature[None] for feature in prompt.deepstack]
                    tap = model.trunk(prompt.embeds[None], prompt.positions, deepstack=deepstack)
                    model.tail(tap, prompt.positions)
                    # Scored for every token, since a query is multiplied with the last one's row alone.
                    assert model.rpn is not None
                    model.rpn.row_scores(tap, prompt.positions, 0)
                    if model.gate is not None:
                        model.gate(tap, prompt.positions)
            handle.remove()
            every = torch.cat(inputs)
            expected = (every.T @ every / len(every)).numpy()
            np.testing.assert_allclose(found.second_moment(name), expected, rtol=1e-4, atol=1e-5)
            assert found.largest(name) == pytest.approx(float(every.abs().max()), rel=1e-5)


def test_gate_and_rpn_are_calibrated(folder: Path, tmp_path: Path, sdrpn: Command) -> None:
    options = ("--precision", "int4", "--method", "gptq", "--keep", "vision", "--threads", 1)
    data = ("--calibrate", folder / "questions.jsonl", "--images", folder / "images")
    sdrpn("export", folder / "q-zoom-3", "--out", tmp_path / "bundle", *options, *data)
    graphs = open_bundle(tmp_path / "bundle").variant("fused-int4").graphs
    for graph, layers in (("gate", 2), ("rpn", 2), ("trunk", 3)):
        files = [file for file in graphs[graph].weights if "gptq" in file and not file.endswith(".scale.bin")]
        assert len(files) == layers


def test_verify_says_how_noisy_the_tower_is(folder: Path, tmp_path: Path, sdrpn: Command) -> None:
    sdrpn("export", folder / "sd-rpn", "--out", tmp_path / "bundle", "--precision", "fp16")
    out = sdrpn("verify", tmp_path / "bundle", "--checkpoint", folder / "sd-rpn", "--threads", 1).out
    line = next(line for line in out.splitlines() if "fused-fp16 vision, noise" in line)
    assert "of float32; the tower in bf16 has" in line
    assert "graph" in out
    shown = sdrpn("inspect", tmp_path / "bundle").out
    assert "windows of 112 px" in shown
    assert "gate" not in shown


def test_inspect_says_when_the_gate_ends_it(folder: Path, tmp_path: Path, sdrpn: Command) -> None:
    sdrpn("export", folder / "q-zoom-gate", "--out", tmp_path / "bundle")
    shown = " ".join(sdrpn("inspect", tmp_path / "bundle").out.split())
    assert "RPN 2 layers, loss bce, Q-Zoom's second pass gate 2 layers; a score below 0.05 ends with the first" in shown


def test_an_exact_comparison(folder: Path, tmp_path: Path, sdrpn: Command) -> None:
    for dialect in ("fused", "primitive"):
        sdrpn("export", folder / "q-zoom-gate", "--out", tmp_path / "bundle", "--dialect", dialect)
    found = verify_bundle(tmp_path / "bundle", folder / "q-zoom-gate", exact=True, threads=1)
    found.require_ok()
    assert {check.graph for check in found.checks} >= {"vision", "trunk", "gate", "rpn", "tail", "answer"}


def test_the_cost_of_rounding(folder: Path, sdrpn: Command) -> None:
    data = ("--data", folder / "questions.jsonl", "--images", folder / "images", "--threads", 1)
    options = ("--choices", "int4-b16-rtn", "--parts", "rpn,layers.1", "--max-new-tokens", 2)
    costs = sdrpn("quantize", folder / "q-zoom-gate", *data, *options, "--json").json()["costs"]
    assert [cost["part"] for cost in costs] == ["rpn", "layers.1"]
    gate = KINDS["q-zoom-gate"]
    assert gate.rpn is not None
    llm, layers = gate.llm, gate.rpn.gate_layers + gate.rpn.layers - 1
    layer = llm.width * (2 * llm.heads + 2 * llm.kv_heads) * llm.head_dim + 3 * llm.width * llm.mlp_width
    assert costs[0]["weights"] == layers * layer + llm.width * (llm.heads + llm.kv_heads) * llm.head_dim


def test_a_bundle_is_of_one_scheme(folder: Path, tmp_path: Path, sdrpn: Command) -> None:
    bundle = tmp_path / "bundle"
    sdrpn("export", folder / "q-zoom-gate", "--out", bundle, "--scheme", "sd-rpn")
    sdrpn("export", folder / "q-zoom-gate", "--out", bundle, "--precision", "fp16")  # as it was exported before
    assert set(open_bundle(bundle).manifest.variants) == {"fused-fp32", "fused-fp16"}
    other = sdrpn("export", folder / "q-zoom-gate", "--out", bundle, "--scheme", "q-zoom")
    assert "holds another export: its model description differs" in refusal(other)
    assert "SD-RPN has no Qwen3-VL" in refusal(sdrpn("export", folder / "q-zoom-3", "--out", bundle))
