"""What several test files need."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec
from tests.official_model import write_small_set
from tests.workers import (
    cores,
    give_whole_files,
    longest_first,
    made_once,
    use_one_thread,
    whole_file_scheduler,
)

# Hypothesis gives an example 200 ms; how long one takes depends on what else the machine does.
settings.register_profile("sdrpn", settings(), deadline=None)
settings.load_profile("sdrpn")
use_one_thread()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own
def pytest_cmdline_main(config: pytest.Config) -> None:
    give_whole_files(config)


@pytest.hookimpl(optionalhook=True)  # .ci/lowest has no pytest-xdist
def pytest_xdist_auto_num_workers() -> int | None:
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else cores()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return whole_file_scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


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
    return made_once(tmp_path_factory, "tiny/checkpoint", lambda path: write_random_checkpoint(path, tiny_spec))


def exported(factory: pytest.TempPathFactory, name: str, checkpoint: Path, *variants: dict[str, Any]) -> Path:
    """A bundle of a checkpoint with these variants, made once."""
    from sdrpn.export import ExportOptions, export_bundle

    def export(path: Path) -> None:
        for options in variants:
            export_bundle(checkpoint, path, ExportOptions(**options))

    return made_once(factory, name, export)


BOTH_DIALECTS = ({"dialect": "fused"}, {"dialect": "primitive"})


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` as fused-fp32 and primitive-fp32. Not to be written to."""
    return exported(tmp_path_factory, "tiny/bundle", tiny_checkpoint, *BOTH_DIALECTS)


@pytest.fixture(scope="session")
def coded_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` as fused-fp32, and with keys and values in 8 bits as far as that goes. Not to be written to."""
    caches = (("fused", "int8"), ("primitive", "int8"), ("primitive", "fp8"))
    variants = [{}, *({"dialect": dialect, "kv_cache": kv_cache} for dialect, kv_cache in caches)]
    return exported(tmp_path_factory, "coded/bundle", tiny_checkpoint, *variants)


@pytest.fixture(scope="session")
def text_checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_checkpoint`, with a tokenizer of bytes, two query heads per key head, and room for a prompt in bytes.

    The gain makes some cells of its RoI map stand out. Not to be written to.
    """
    llm = dataclasses.replace(tiny_spec.llm, vocabulary=288, kv_heads=2, max_context=512)
    spec = dataclasses.replace(tiny_spec, llm=llm)
    options: dict[str, Any] = {"with_tokenizer": True, "roi_gain": 3.0}
    return made_once(tmp_path_factory, "text/checkpoint", lambda path: write_random_checkpoint(path, spec, **options))


@pytest.fixture(scope="session")
def text_bundle(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`text_checkpoint` as fused-fp32 and primitive-fp32: answers questions in words. Not to be written to."""
    return exported(tmp_path_factory, "text/bundle", text_checkpoint, *BOTH_DIALECTS)


@pytest.fixture(scope="session")
def plain_checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sizes of `text_checkpoint` in LLaVA's own layout, without an RPN. Not to be written to."""
    llm = dataclasses.replace(tiny_spec.llm, vocabulary=288, max_context=512)
    spec = dataclasses.replace(tiny_spec, llm=llm, rpn=None)
    options: dict[str, Any] = {"layout": "llava", "with_tokenizer": True}
    return made_once(tmp_path_factory, "plain/checkpoint", lambda path: write_random_checkpoint(path, spec, **options))


@pytest.fixture(scope="session")
def plain_bundle(plain_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain_checkpoint` as fused-fp32. Not to be written to."""
    return exported(tmp_path_factory, "plain/bundle", plain_checkpoint, {})
