"""Real engines on a real GPU against ONNX Runtime on the CPU, through the same session."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.engines import BuildOptions, Target, build_engines, plan_engines
from sdrpn.errors import MissingDependency
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host.machine import read_gpus
from sdrpn.method.roi import Crop, RoiDecision
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import EngineOptions, Session
from sdrpn.runtime.backends.tensorrt_library import FLAVOURS, library_version
from tests.runtime.gpu_targets import require_capability
from tests.tolerances import ENGINE_LOGITS_ABS

pytestmark = pytest.mark.gpu

BEFORE, QUESTION, OTHER = (1, 5, 6, 7), (8, 9, 10, 11, 12), (20, 21, 22)


def one_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (Crop((10, 5, 60, 50)),), None, logits)


def target_here(flavour: str, dialect: str) -> Target:
    """This machine's GPU; skips where the flavour is not installed."""
    try:
        version = library_version(flavour)
    except MissingDependency as error:
        pytest.skip(str(error))
    capability = (read_gpus()[0].compute_capability or "0.0").replace(".", "")
    require_capability(flavour, f"SM{capability}")
    return Target(
        name=f"here-{flavour}-{dialect}",
        device="the GPU of this machine",
        compute_capabilities=(f"SM{capability}",),
        flavour="tensorrt" if flavour == "tensorrt" else "tensorrt-rtx",
        tensorrt_min=version,
        dialect=dialect,
        precisions=("fp16",),
        memory_gb=8,
        unified_memory=False,
        built="device" if flavour == "tensorrt" else "here",
    )


@pytest.fixture(scope="module")
def fp16_bundle(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 128 channels, as LLaVA-1.5 has them, in both dialects."""
    folder = tmp_path_factory.mktemp("gpu")
    llm = dataclasses.replace(tiny_spec.llm, width=256, head_dim=128, mlp_width=256)
    write_random_checkpoint(folder / "checkpoint", dataclasses.replace(tiny_spec, llm=llm))
    for dialect in ("fused", "primitive"):
        export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions("fp16", dialect))
    return folder / "bundle"


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["captured", "enqueued"])
@pytest.mark.parametrize("dialect", ["fused", "primitive"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engines_answer_as_onnxruntime_does(fp16_bundle: Path, flavour: str, dialect: str, cuda_graph: bool) -> None:
    target = target_here(flavour, dialect)
    build_engines(plan_engines(fp16_bundle, target, BuildOptions(max_batch=2)))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    answers = {}
    for backend, options in (
        ("onnxruntime", {"variant": f"{dialect}-fp16"}),
        ("tensorrt", {"target": target.name, "engine_options": EngineOptions(cuda_graph=cuda_graph)}),
    ):
        with Session.open(fp16_bundle, backend=backend, **options) as session:
            answers[backend] = [
                session.answer_ids(image, BEFORE, question, roi=None, decide=one_box, max_new_tokens=6, trace=True)
                for question in (QUESTION, OTHER)
            ]
    for found, expected in zip(answers["tensorrt"], answers["onnxruntime"], strict=True):
        assert found.trace is not None
        assert expected.trace is not None
        assert found.token_ids == expected.token_ids
        difference = np.abs(found.trace.step_logits - expected.trace.step_logits).max()
        assert difference <= ENGINE_LOGITS_ABS, f"logits differ by {difference:.2e}"
