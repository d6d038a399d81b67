"""What several test files need."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import settings

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec
from tests.official_model import write_small_set

# Hypothesis gives an example 200 ms; how long one takes depends on what else the machine does.
settings.register_profile("sdrpn", settings(), deadline=None)
settings.load_profile("sdrpn")


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of the official SD-RPN implementation: all of them where they lie beside a checkout, else a small set."""
    folder = Path(__file__).parents[1].parent / "shared" / "golden"
    return folder if folder.is_dir() else write_small_set(tmp_path_factory.mktemp("official") / "golden")


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """4 x 4 cells, four layers with the tap in the middle, an RPN of two layers, and as many key as query heads."""
    vision = VisionSpec(image_size_px=56, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
    llm = LlmSpec(vocabulary=96, width=64, layers=4, heads=4, kv_heads=4, head_dim=16, mlp_width=96, max_context=256)
    return ModelSpec(vision, llm, tap_layer=2, rpn=RpnSpec(layers=2))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of `tiny_spec` in the official layout, without a tokenizer. Not to be written to."""
    path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_random_checkpoint(path, tiny_spec)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` as fused-fp32 and primitive-fp32. Not to be written to."""
    from sdrpn.export import ExportOptions, export_bundle

    path = tmp_path_factory.mktemp("tiny") / "bundle"
    for dialect in ("fused", "primitive"):
        export_bundle(tiny_checkpoint, path, ExportOptions(dialect=dialect))
    return path


@pytest.fixture(scope="session")
def coded_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` as fused-fp32, and with keys and values in 8 bits as far as that goes. Not to be written to."""
    from sdrpn.export import ExportOptions, export_bundle

    path = tmp_path_factory.mktemp("coded") / "bundle"
    export_bundle(tiny_checkpoint, path)
    for dialect, kv_cache in (("fused", "int8"), ("primitive", "int8"), ("primitive", "fp8")):
        export_bundle(tiny_checkpoint, path, ExportOptions(dialect=dialect, kv_cache=kv_cache))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="session")
def text_checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_checkpoint`, with a tokenizer of bytes, two query heads a key head, and room for a prompt in bytes.

    The gain makes some cells of its RoI map stand out. Not to be written to.
    """
    llm = dataclasses.replace(tiny_spec.llm, vocabulary=288, kv_heads=2, max_context=512)
    path = tmp_path_factory.mktemp("text") / "checkpoint"
    write_random_checkpoint(path, dataclasses.replace(tiny_spec, llm=llm), with_tokenizer=True, roi_gain=3.0)
    return path


@pytest.fixture(scope="session")
def text_bundle(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`text_checkpoint` as fused-fp32 and primitive-fp32: answers questions in words. Not to be written to."""
    from sdrpn.export import ExportOptions, export_bundle

    path = tmp_path_factory.mktemp("text") / "bundle"
    for dialect in ("fused", "primitive"):
        export_bundle(text_checkpoint, path, ExportOptions(dialect=dialect))
    return path


@pytest.fixture(scope="session")
def plain_checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sizes of `text_checkpoint` in LLaVA's own layout, without an RPN. Not to be written to."""
    llm = dataclasses.replace(tiny_spec.llm, vocabulary=288, max_context=512)
    path = tmp_path_factory.mktemp("plain") / "checkpoint"
    write_random_checkpoint(
        path, dataclasses.replace(tiny_spec, llm=llm, rpn=None), layout="llava", with_tokenizer=True
    )
    return path


@pytest.fixture(scope="session")
def plain_bundle(plain_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain_checkpoint` as fused-fp32. Not to be written to."""
    from sdrpn.export import export_bundle

    path = tmp_path_factory.mktemp("plain") / "bundle"
    export_bundle(plain_checkpoint, path)
    return path
