"""Its checkpoints: config.json is the spec, weights have their canonical names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.checkpoint import Checkpoint
from sdrpn.checkpoint.random import random_tensor, write_byte_tokenizer
from sdrpn.checkpoint.request import CheckpointRequest, rpn_file_of
from sdrpn.checkpoint.safetensors_file import SafetensorsWriter
from sdrpn.checkpoint.source import PARTS, Source, gate_source, rpn_source
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


def write_random(path: Path, spec: ModelSpec, *, seed: int, with_tokenizer: bool, **others: Any) -> None:
    """It has nothing of what the layouts of other families have, `others`."""
    write_wide(path, spec, seed)
    if with_tokenizer:
        write_byte_tokenizer(path / "tokenizer.json", spec)


def open_wide(request: CheckpointRequest) -> Checkpoint:
    request.require_without("vision_tower", "base", "projector")
    folder, file = request.folder, rpn_file_of(request.folder, request.rpn)
    config = folder / "config.json"
    spec = spec_from_json(json.loads(config.read_text("utf-8"))["spec"])
    files = (folder / "model.safetensors",)
    source = Source(folder, files, TensorFolder(files), lambda name: name, "wide")
    sources = {part: [source] for part in PARTS}
    if file is None:
        return Checkpoint(folder, spec, "wide", sources, (config,), rpn_trained=False)
    spec = dataclasses.replace(spec, tap_layer=file.tap_layer, rpn=file.rpn)
    sources["rpn"], sources["gate"] = [rpn_source(file)], [gate_source(file)]
    return Checkpoint(folder, spec, "wide", sources, (config, file.config), policy=file.policy)
