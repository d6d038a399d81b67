"""`sdrpn export` of adapters and projectors apart: the options, what is said, and `compare` of the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sdrpn.checkpoint import write_random_checkpoint
from tests.cli.command import Command, refusal
from tests.tiny_models import tiny_spec

PROJECTION = "base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_random_checkpoint(tmp_path / "base", tiny_spec(rpn=None), layout="llava")
    return tmp_path / "base"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """An adapter of rank 2, on the queries of all layers; alone in its folder."""
    folder, rng = tmp_path / "lora", np.random.default_rng(0)
    folder.mkdir()
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "a/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(4):
        for part, shape in ("A", (2, 48)), ("B", (64, 2)):
            tensors[PROJECTION.format(layer=layer, part=part)] = rng.standard_normal(shape).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter(sdrpn: Command, tmp_path: Path, base: Path, lora: Path) -> None:
    line = refusal(sdrpn("export", lora, "--out", tmp_path / "b"))
    assert "lora holds only an adapter; name the folder of its base ('a/base') (--base)" in line
    assert not (tmp_path / "b").exists()
    exported = sdrpn("export", lora, "--base", base, "--out", tmp_path / "b")
    assert exported.code == 0
    assert f"the adapter in {lora} is merged into its base: 4 tensors are changed by it" in exported.out
    assert sdrpn("verify", "--exact", tmp_path / "b", "--checkpoint", lora, "--base", base).code == 0
    assert sdrpn("verify", "--exact", tmp_path / "b", "--checkpoint", base).code != 0, "the base alone is another model"


def test_notes_as_json(sdrpn: Command, tmp_path: Path, base: Path, lora: Path) -> None:
    exported = sdrpn("export", lora, "--base", base, "--out", tmp_path / "b", "--json")
    notes = json.loads(exported.out)["notes"]
    assert [note for note in notes if "is merged into its base" in note]


def test_a_projector(sdrpn: Command, tmp_path: Path, base: Path) -> None:
    projector = {
        "model.mm_projector.0.weight": torch.ones(48, 24),
        "model.mm_projector.0.bias": torch.ones(48),
        "model.mm_projector.2.weight": torch.ones(48, 48),
        "model.mm_projector.2.bias": torch.ones(48),
    }
    torch.save(projector, base / "mm_projector.bin")
    exported = sdrpn("export", base, "--out", tmp_path / "own")
    assert "mm_projector.bin beside them is not" in exported.out
    exported = sdrpn("export", base, "--projector", base, "--out", tmp_path / "b")
    assert exported.code == 0
    assert "mm_projector.bin" not in exported.out
    assert sdrpn("verify", "--exact", tmp_path / "b", "--checkpoint", base, "--projector", base).code == 0
    assert sdrpn("verify", "--exact", tmp_path / "b", "--checkpoint", base).code != 0
    line = refusal(sdrpn("export", base, "--projector", tmp_path / "none.bin", "--out", tmp_path / "c"))
    assert "none.bin does not exist; expected a projector as LLaVA saves it, mm_projector.bin" in line
