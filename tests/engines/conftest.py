"""Bundles in fp16, which TensorRT has attention kernels for."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec


@pytest.fixture(scope="session")
def wide_bundle(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_spec` with heads of 128 channels, as LLaVA-1.5 has them, in both dialects. Not to be written to."""
    folder = tmp_path_factory.mktemp("wide")
    llm = dataclasses.replace(tiny_spec.llm, width=256, head_dim=128, mlp_width=256)
    write_random_checkpoint(folder / "checkpoint", dataclasses.replace(tiny_spec, llm=llm))
    for dialect in ("fused", "primitive"):
        export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions("fp16", dialect))
    return folder / "bundle"


@pytest.fixture
def bundle(wide_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it that may be built in."""
    shutil.copytree(wide_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"
