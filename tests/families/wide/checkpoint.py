"""Its checkpoints: config.json is the spec, weights have their canonical names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.checkpoint import Checkpoint
from sdrpn.checkpoint.random import random_tensor
from sdrpn.checkpoint.safetensors_file import SafetensorsWriter
from sdrpn.checkpoint.source import PARTS, Source
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.checkpoint.tensors import TensorFolder
from sdrpn.families.registry import spec_from_json
from sdrpn.method.spec import ModelSpec


def write_wide(folder: Path, spec: ModelSpec, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A random one; returns its tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "wide", "spec": spec.to_json()}), "utf-8")
    shapes = tensor_shapes(spec)
    tensors = {name: random_tensor(name, shape, seed) for name, shape in shapes.items()}
    with SafetensorsWriter(folder / "model.safetensors", shapes, np.dtype(np.float32)) as writer:
        for name, values in tensors.items():
            writer.write(name, values)
    return tensors


def open_wide(folder: Path, template: str | None) -> Checkpoint:
    config = folder / "config.json"
    spec = spec_from_json(json.loads(config.read_text("utf-8"))["spec"])
    files = (folder / "model.safetensors",)
    source = Source(folder, files, TensorFolder(files), lambda name: name, "wide")
    return Checkpoint(folder, spec, "wide", {part: [source] for part in PARTS}, (config,))
