"""Bundles in fp16, which TensorRT has attention kernels for."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from tests.workers import made_once


@pytest.fixture(scope="session")
def wide_bundle(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_spec` with heads of 128 channels, as LLaVA-1.5 has them, in both dialects. Not to be written to."""
    llm = dataclasses.replace(tiny_spec.llm, width=256, head_dim=128, mlp_width=256)
    spec = dataclasses.replace(tiny_spec, llm=llm)
    checkpoint = made_once(tmp_path_factory, "wide/checkpoint", lambda path: write_random_checkpoint(path, spec))

    def export(path: Path) -> None:
        for dialect in ("fused", "primitive"):
            export_bundle(checkpoint, path, ExportOptions("fp16", dialect))

    return made_once(tmp_path_factory, "wide/bundle", export)


@pytest.fixture
def bundle(wide_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it that may be built in."""
    shutil.copytree(wide_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"
