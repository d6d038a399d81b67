"""Engines of both Qwen families: all graphs compile, and the kernel gate passes, in both dialects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.engine_manifest import REMARK, engine_paths
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.engines import BuildOptions, build_engines, plan_engines, read_target
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from tests.engines.recipes import RTX_TARGET
from tests.export.calibration import Largest
from tests.families.qwen.models import GATED, SDRPN, SINKS, spec_3, spec_25
from tests.workers import made_once

pytest.importorskip("tensorrt_rtx_bindings")

ALL = ("vision", "trunk", "gate", "rpn", "tail")
CONTEXT = 512


def _wide(spec: ModelSpec, sections: tuple[int, int, int]) -> ModelSpec:
    """Heads of 128 channels, four to each key head, as the released models have them."""
    llm = dataclasses.replace(
        spec.llm, width=256, heads=8, kv_heads=2, head_dim=128, mlp_width=384, layers=5, rope_sections=sections
    )
    return dataclasses.replace(spec, llm=llm)


MODELS: dict[str, ModelSpec] = {
    "q-zoom": _wide(spec_25(GATED), (16, 24, 24)),
    "sd-rpn": _wide(spec_25(SDRPN), (16, 24, 24)),
    "q-zoom-3": _wide(spec_3(SINKS), (24, 20, 20)),
}


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def export(path: Path) -> None:
        checkpoint = path.with_name(f"{path.name}-checkpoint")
        write_random_checkpoint(checkpoint, MODELS[request.param])
        for dialect in ("fused", "primitive"):
            export_bundle(checkpoint, path, ExportOptions("fp16", dialect))

    return made_once(tmp_path_factory, f"qwen-engines/{request.param}", export)


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
def test_every_graph_becomes_a_fast_engine(bundle: Path, dialect: str) -> None:
    """One fused attention for every layer; in a decode step it reads the caches where they lie."""
    plan = plan_engines(bundle, read_target(RTX_TARGET), BuildOptions(max_context=CONTEXT, dialect=dialect))
    built = {engine.manifest.graph: engine.manifest for engine in build_engines(plan)}
    there = tuple(name for name in ALL if name in plan.variant.graphs)
    assert tuple(built) == there
    assert there == (ALL if "gate" in plan.variant.graphs else tuple(name for name in ALL if name != "gate"))
    for name, manifest in built.items():
        assert manifest.kernel_gate == (), name
    trunk = json.loads(engine_paths(bundle, RTX_TARGET, "trunk")[2].read_text(encoding="utf-8"))
    steps = [kernel for kernel in trunk if kernel["subgraph"] == 0 and "gemv_mha" in kernel["name"]]
    assert len(steps) == plan.bundle.spec.tap_layer
    end = "_out" if dialect == "fused" else ""
    for layer, kernel in enumerate(steps):
        names = {tensor["name"] for tensor in kernel["inputs"]}
        assert {f"key_cache.{layer}{end}", f"value_cache.{layer}{end}"} <= names


# model, precision, dialect, caches, whether inputs are rounded, graphs
SMALL = [
    pytest.param("q-zoom", "fp8", "primitive", None, False, ("trunk",), id="fp8"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("q-zoom", "fp8", "primitive", "int8", True, ("trunk", "rpn")),
            ("q-zoom", "nvfp4", "fused", None, True, ("trunk", "gate")),
            ("sd-rpn", "fp8", "primitive", "fp8", True, None),
            ("sd-rpn", "fp8", "fused", None, True, None),
            ("sd-rpn", "nvfp4", "fused", None, True, None),
        ]
    ),
]


@pytest.mark.parametrize(("model", "precision", "dialect", "kv_cache", "calibrated", "graphs"), SMALL)
def test_small_floats_become_fast_engines(
    model: str, precision: Any, dialect: Any, kv_cache: Any, calibrated: bool, graphs: Any, tmp_path: Path
) -> None:
    """Products read their weights as they are stored, that of the heads' results too. Graphs: None: all."""
    write_random_checkpoint(tmp_path / "checkpoint", MODELS[model])
    options = ExportOptions(precision, dialect, kv_cache=kv_cache, calibration="abc" if calibrated else None)
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", options, calibration=Largest() if calibrated else None)
    wanted = BuildOptions(max_context=CONTEXT, precision=precision, dialect=dialect, kv_cache=kv_cache, graphs=graphs)
    for engine in build_engines(plan_engines(tmp_path / "bundle", read_target("rtx-5090"), wanted)):
        faults = [line for line in engine.manifest.kernel_gate if not line.startswith(REMARK)]
        assert faults == [], engine.manifest.graph
