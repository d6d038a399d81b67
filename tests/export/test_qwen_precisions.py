"""Every precision and cache form of both Qwen families: each graph within the limits of `sdrpn verify`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.compare.parity import gates, graph_parity
from sdrpn.compare.simulation import runnable_bundle
from sdrpn.compare.vision_noise import TowerNoise
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.model import model_from_checkpoint
from sdrpn.model.base import SdRpnModel
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.comparison import GraphRuns, Steps
from sdrpn.workflows.export import CalibrationData, ExportRequest, export
from tests.families.qwen.models import KINDS
from tests.families.qwen.official import vision_25
from tests.pictures import photo

FORMS: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"},
    "fp16-primitive": {"precision": "fp16", "dialect": "primitive"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8", "keep": ()},
    "int4": {"precision": "int4"},
    "int4-primitive": {"precision": "int4", "dialect": "primitive", "keep": ("vision", "rpn")},
    "fp8": {"precision": "fp8", "keep": ()},
    "fp32-int8-caches": {"precision": "fp32", "kv_cache": "int8"},
    "fp16-fp8-caches": {"precision": "fp16", "dialect": "primitive", "kv_cache": "fp8"},
    # Inputs are rounded, too, by what a picture and a question have as the largest.
    "fp8-inputs": {"precision": "fp8", "calibrated": True},
    "fp8-inputs-fp8-caches": {"precision": "fp8", "dialect": "primitive", "kv_cache": "fp8", "calibrated": True},
    "nvfp4": {"precision": "nvfp4", "calibrated": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precisions")
    for kind in ("sd-rpn", "q-zoom-3"):
        write_random_checkpoint(folder / kind, KINDS[kind], roi_gain=3.0, with_tokenizer=True)
    Image.fromarray(photo()).save(folder / "a.png")
    (folder / "questions.jsonl").write_text('{"image": "a.png", "question": "What is it?"}\n')
    return folder


def exported(folder: Path, kind: str, out: Path, *, calibrated: bool = False, **options: Any) -> Bundle:
    data = CalibrationData(folder / "questions.jsonl", folder, threads=1) if calibrated else None
    export(ExportRequest(CheckpointParts(folder / kind), out, calibration=data, **options))
    return open_bundle(out)


_models: dict[str, tuple[SdRpnModel, TowerNoise]] = {}


def model_of(folder: Path, kind: str) -> tuple[SdRpnModel, TowerNoise]:
    if kind not in _models:
        with open_checkpoint(folder / kind) as checkpoint:
            model = model_from_checkpoint(checkpoint)
        _models[kind] = model, TowerNoise(model)
    return _models[kind]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["sd-rpn", "q-zoom-3"])
def test_every_graph_is_within_the_limits(kind: str, form: str, folder: Path, tmp_path: Path) -> None:
    model, tower = model_of(folder, kind)
    bundle = exported(folder, kind, tmp_path / "bundle", **FORMS[form])
    for variant in bundle.manifest.variants.values():
        with (
            runnable_bundle(bundle, variant) as runs,
            GraphRuns(runs, variant.name, Steps(lambda done, total: None, 0, 1), 1) as graphs,
        ):
            context = bundle.manifest.max_context
            checks = list(graph_parity(model, variant, graphs.run, max_context=context, tower=tower))
        found = gates(checks)
        assert {gate.graph for gate in found} == set(variant.graphs)
        assert [gate for gate in found if not gate.ok] == []
        (noise,) = (gate for gate in found if gate.kind == "noise")
        assert isinstance(noise.found, float)
        # A tower that is rounded is noisier than one that is not.
        assert (noise.found > 1e-5) == (not form.startswith("fp32"))


def test_the_gate_and_the_rpn_are_kept_together(folder: Path, tmp_path: Path) -> None:
    export_bundle(folder / "q-zoom-3", tmp_path / "kept", ExportOptions("int4"))
    export_bundle(folder / "q-zoom-3", tmp_path / "rounded", ExportOptions("int4", keep=("vision",)))
    for name, expected in (("kept", False), ("rounded", True)):
        graphs = open_bundle(tmp_path / name).variant("fused-int4").graphs
        for graph in ("gate", "rpn"):
            assert any("int4" in file for file in graphs[graph].weights) is expected


def test_mlps_are_padded_in_the_graph_alone(folder: Path, tmp_path: Path) -> None:
    """Blocks of 32 do not divide a tower's MLP of 48, which the export pads; the spec keeps the checkpoint's."""
    whole = KINDS["sd-rpn"]
    spec = dataclasses.replace(whole, vision=dataclasses.replace(vision_25(4, 144), mlp_width=48), rpn=None)
    write_random_checkpoint(tmp_path / "odd", spec)
    export_bundle(tmp_path / "odd", tmp_path / "bundle", ExportOptions("int8", block=32, keep=("lm_head",)))
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.spec.vision == spec.vision
    with open_checkpoint(tmp_path / "odd") as checkpoint:
        model = model_from_checkpoint(checkpoint)
    variant = bundle.variant("fused-int8-cpu")
    with GraphRuns(bundle, variant.name, Steps(lambda done, total: None, 0, 1), 1) as graphs:
        found = gates(graph_parity(model, variant, graphs.run, max_context=bundle.manifest.max_context))
    assert [gate for gate in found if not gate.ok] == []
