"""The model that made the official outputs of tests/golden: weights, drawn again from their seeds.

Parameters were filled with normal numbers one after the other, in the order of the official modules, by PyTorch's
generator. It is MT19937 with a Box-Muller transform in blocks of 16, which is a few lines of NumPy: a checkpoint of
2 MB need not be kept, and no PyTorch is needed to make it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

__all__ = ["SMALL_SET", "normal_numbers", "official_outputs", "official_tensors", "write_small_set"]

SMALL_SET = Path(__file__).parent / "golden"
TOWER_SEED, MODEL_SEED = 34, 35
TOWER_PREFIX = "model.vision_tower.vision_tower."
# Queries of the last RPN layer were set by other means: they are kept as they are.
LAST_QUERY = "model.twig_layers.2.self_attn.q_proj.weight"
LAST_KEY = "model.twig_layers.2.self_attn.k_proj.weight"

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Drawn:
    """A parameter: mean + scale * normal numbers."""

    name: str
    shape: tuple[int, ...]
    scale: float
    mean: float = 0.0


def normal_numbers(seed: int, count: int) -> Float32:
    """(count,) of PyTorch's `torch.manual_seed(seed)` and `randn` on a CPU; `count` a multiple of 16."""
    raw = np.random.RandomState(seed).randint(0, 2**32, count, np.uint32)
    uniform = (raw & np.uint32(2**24 - 1)).astype(np.float32).reshape(-1, 2, 8) * np.float32(2**-24)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniform[:, 0]))
    angle = np.float32(2 * np.pi) * uniform[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)


def draw(seed: int, parameters: list[Drawn]) -> dict[str, Float32]:
    """Each parameter from where the one before it ended."""
    numbers = normal_numbers(seed, sum(int(np.prod(parameter.shape)) for parameter in parameters))
    drawn, at = {}, 0
    for parameter in parameters:
        size = int(np.prod(parameter.shape))
        values = numbers[at : at + size] * np.float32(parameter.scale) + np.float32(parameter.mean)
        drawn[parameter.name] = values.reshape(parameter.shape)
        at += size
    return drawn


def _weight_and_bias(name: str, shape: tuple[int, ...], scale: float, bias_scale: float) -> list[Drawn]:
    return [Drawn(f"{name}.weight", shape, scale), Drawn(f"{name}.bias", shape[:1], bias_scale)]


def _layer_norm(name: str) -> list[Drawn]:
    return [Drawn(f"{name}.weight", (32,), 0.2, mean=1.0), Drawn(f"{name}.bias", (32,), 0.1)]


def _tower() -> Iterator[Drawn]:
    """CLIP, three layers 32 wide, 24 x 24 patches."""
    yield Drawn("vision_model.embeddings.class_embedding", (32,), 0.5)
    yield Drawn("vision_model.embeddings.patch_embedding.weight", (32, 3, 14, 14), 0.08)
    yield Drawn("vision_model.embeddings.position_embedding.weight", (577, 32), 0.1)
    yield from _layer_norm("vision_model.pre_layrnorm")
    for number in range(3):
        layer = f"vision_model.encoder.layers.{number}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _weight_and_bias(f"{layer}.self_attn.{part}", (32, 32), 0.15, 0.05)
        yield from _layer_norm(f"{layer}.layer_norm1")
        yield from _weight_and_bias(f"{layer}.mlp.fc1", (64, 32), 0.15, 0.05)
        yield from _weight_and_bias(f"{layer}.mlp.fc2", (32, 64), 0.15, 0.05)
        yield from _layer_norm(f"{layer}.layer_norm2")
    yield from _layer_norm("vision_model.post_layernorm")


def _decoder_layer(name: str) -> Iterator[Drawn]:
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield Drawn(f"{name}.self_attn.{part}.weight", (64, 64), 0.12)
    for part, shape in (("gate_proj", (128, 64)), ("up_proj", (128, 64)), ("down_proj", (64, 128))):
        yield Drawn(f"{name}.mlp.{part}.weight", shape, 0.12)
    for part in ("input_layernorm", "post_attention_layernorm"):
        yield Drawn(f"{name}.{part}.weight", (64,), 0.25, mean=1.0)


def _model() -> Iterator[Drawn]:
    """Six decoder layers 64 wide, an RPN of three at the third, the projector, both heads."""
    yield Drawn("model.embed_tokens.weight", (320, 64), 1.0)
    for number in range(6):
        yield from _decoder_layer(f"model.layers.{number}")
    yield Drawn("model.norm.weight", (64,), 0.25, mean=1.0)
    for number in range(3):
        yield from _decoder_layer(f"model.twig_layers.{number}")
    yield Drawn("model.twig_norm.weight", (64,), 0.25, mean=1.0)
    yield from _weight_and_bias("model.mm_projector.0", (64, 32), 1.5 / 32**0.5, 0.1)
    yield from _weight_and_bias("model.mm_projector.2", (64, 64), 1.5 / 64**0.5, 0.1)
    yield Drawn("lm_head.weight", (320, 64), 0.3)
    yield Drawn("twig_head.weight", (320, 64), 0.3)
    yield Drawn(LAST_KEY, (64, 64), 0.25)  # once more, and larger


def official_tensors() -> tuple[dict[str, Float32], dict[str, Float32]]:
    """The tensors of the model, with official names, and of its vision tower's own checkpoint."""
    tower = draw(TOWER_SEED, list(_tower()))
    model = draw(MODEL_SEED, list(_model()))
    model[LAST_QUERY] = np.load(SMALL_SET / "tiny_K3T3" / "last_query.npy")
    return model | {TOWER_PREFIX + name: tensor for name, tensor in tower.items()}, tower


def write_small_set(folder: Path) -> Path:
    """Copy the small set to a folder and write the checkpoint that it belongs to into it."""
    shutil.copytree(SMALL_SET, folder)
    model, tower = official_tensors()
    save_file(model, folder / "tiny_K3T3" / "model.safetensors")
    save_file(tower, folder / "tiny_K3T3" / "clip" / "model.safetensors")
    return folder


def official_outputs(golden: Path, case: str) -> dict[str, NDArray[Any]]:
    """What the official implementation put out for one picture; skips a test whose picture is not in the small set."""
    path = golden / "tiny_K3T3" / f"{case}.npz"
    if not path.is_file():
        pytest.skip(f"{case} is not in the small set of official outputs")
    with np.load(path) as outputs:
        return dict(outputs)
