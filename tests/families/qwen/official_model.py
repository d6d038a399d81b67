"""The models that made the official outputs of tests/golden/qwen: weights, drawn again from their seeds.

As in `tests/official_model.py`: normal numbers of PyTorch's generator, one parameter after the other in the order of
the official modules, here after the numbers that their initialisation took. What was set by other means is kept as it
is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

__all__ = ["MODELS", "official_tensors", "write_official_checkpoint"]

Float32 = npt.NDArray[np.float32]
SMALL = Path(__file__).parents[2] / "golden" / "qwen"
BLOCK = 16  # numbers that PyTorch makes together
LAYERS, BESIDE, WIDTH, MLP, VOCABULARY = 6, 3, 64, 128, 320  # BESIDE: layers of the twig, and of the gate
TOWER_BLOCKS, TOWER_WIDTH, TOWER_MLP = 4, 32, 64


@dataclass(frozen=True)
class Model:
    """A model: its seed, and how many raw numbers its initialisation took."""

    seed: int
    taken: int
    has_head_norms: bool  # Qwen3-VL


MODELS = {"q25_K3T3": Model(7, 1176001, has_head_norms=False), "q3_K3T3": Model(27, 1431137, has_head_norms=True)}
Named = tuple[str, tuple[int, ...]]


def official_tensors(model: str) -> dict[str, Float32]:
    """All of a model's, by the names in its checkpoint; within 5e-7 of it."""
    made = MODELS[model]
    raw = np.random.RandomState(made.seed).randint(0, 2**32, made.taken + 900_000, np.uint32)
    uniform = (raw & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)
    tensors, at = {}, made.taken
    for name, shape in _parameters(made):
        count = int(np.prod(shape))
        if count < BLOCK:  # one number of double precision; it is kept
            at += 4
            continue
        numbers, taken = _normal(uniform, at, count)
        at += taken
        mean, scale = _distribution(name, shape)
        tensors[name] = (numbers * np.float32(scale) + np.float32(mean)).reshape(shape)
    with np.load(SMALL / model / "kept.npz") as kept:
        return {**tensors, **{name: kept[name] for name in kept.files}}


def write_official_checkpoint(model: str, folder: Path) -> None:
    """Its checkpoint, as the whole set has it."""
    folder.mkdir(parents=True)
    for path in (SMALL / model).glob("*config.json"):
        shutil.copyfile(path, folder / path.name)
    save_file(official_tensors(model), folder / "model.safetensors")


def _normal(uniform: Float32, at: int, count: int) -> tuple[Float32, int]:
    """(count,) from the uniform numbers from `at` on, and how many those are.

    Of a count that is not whole blocks, the last block is made once more, of further numbers.
    """
    whole = count // BLOCK * BLOCK
    numbers = _box_muller(uniform[at : at + whole])
    if whole == count:
        return numbers, count
    last = _box_muller(uniform[at + count : at + count + BLOCK])
    return np.concatenate((numbers[: count - BLOCK], last)), count + BLOCK


def _box_muller(uniform: Float32) -> Float32:
    pairs = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and scale."""
    if len(shape) == 1:
        return (0.0, 0.1) if name.endswith("bias") else (1.0, 0.15)
    known = {"patch_embed.proj.weight": 1.5, "lm_head.weight": 2.8, "embed_tokens.weight": 5.6}
    known |= {"high_res_head.weight": 0.96, "pos_embed.weight": 0.3 * TOWER_WIDTH**0.5}
    gain = next((gain for ending, gain in known.items() if name.endswith(ending)), 0.9)
    return 0.0, gain / float(np.prod(shape[1:])) ** 0.5


def _parameters(made: Model) -> Iterator[Named]:
    """In the order of the official modules."""
    prefix, tower = ("model.language_model.", "model.visual.") if made.has_head_norms else ("model.", "visual.")
    for name, shape in _tower_3() if made.has_head_norms else _tower_25():
        yield tower + name, shape
    yield f"{prefix}embed_tokens.weight", (VOCABULARY, WIDTH)
    for number in range(LAYERS):
        yield from _layer(f"{prefix}layers.{number}", made)
    yield f"{prefix}norm.weight", (WIDTH,)
    for number in range(BESIDE):
        yield from _layer(f"{prefix}twig_layers.{number}", made)
    yield f"{prefix}high_res_head.weight", (1, WIDTH)
    yield f"{prefix}high_res_head.bias", (1,)
    for number in range(BESIDE):
        yield from _layer(f"{prefix}high_res_layers.{number}", made)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def _layer(prefix: str, made: Model) -> Iterator[Named]:
    head_dim = 24 if made.has_head_norms else 16
    for part, heads in (("q", 4), ("k", 2), ("v", 2)):
        yield f"{prefix}.self_attn.{part}_proj.weight", (heads * head_dim, WIDTH)
        if not made.has_head_norms:
            yield f"{prefix}.self_attn.{part}_proj.bias", (heads * head_dim,)
    yield f"{prefix}.self_attn.o_proj.weight", (WIDTH, 4 * head_dim)
    if made.has_head_norms:
        yield f"{prefix}.self_attn.q_norm.weight", (head_dim,)
        yield f"{prefix}.self_attn.k_norm.weight", (head_dim,)
    yield f"{prefix}.mlp.gate_proj.weight", (MLP, WIDTH)
    yield f"{prefix}.mlp.up_proj.weight", (MLP, WIDTH)
    yield f"{prefix}.mlp.down_proj.weight", (WIDTH, MLP)
    yield f"{prefix}.input_layernorm.weight", (WIDTH,)
    yield f"{prefix}.post_attention_layernorm.weight", (WIDTH,)


def _tower_25() -> Iterator[Named]:
    yield "patch_embed.proj.weight", (TOWER_WIDTH, 3, 2, 14, 14)
    for number in range(TOWER_BLOCKS):
        block = f"blocks.{number}"
        yield f"{block}.norm1.weight", (TOWER_WIDTH,)
        yield f"{block}.norm2.weight", (TOWER_WIDTH,)
        yield from _linear(f"{block}.attn.qkv", 3 * TOWER_WIDTH, TOWER_WIDTH)
        yield from _linear(f"{block}.attn.proj", TOWER_WIDTH, TOWER_WIDTH)
        yield from _linear(f"{block}.mlp.gate_proj", TOWER_MLP, TOWER_WIDTH)
        yield from _linear(f"{block}.mlp.up_proj", TOWER_MLP, TOWER_WIDTH)
        yield from _linear(f"{block}.mlp.down_proj", TOWER_WIDTH, TOWER_MLP)
    yield "merger.ln_q.weight", (TOWER_WIDTH,)
    yield from _linear("merger.mlp.0", 4 * TOWER_WIDTH, 4 * TOWER_WIDTH)
    yield from _linear("merger.mlp.2", WIDTH, 4 * TOWER_WIDTH)


def _tower_3() -> Iterator[Named]:
    yield "patch_embed.proj.weight", (TOWER_WIDTH, 3, 2, 16, 16)
    yield "patch_embed.proj.bias", (TOWER_WIDTH,)
    yield "pos_embed.weight", (64, TOWER_WIDTH)
    for number in range(TOWER_BLOCKS):
        block = f"blocks.{number}"
        yield from _norm(f"{block}.norm1", TOWER_WIDTH)
        yield from _norm(f"{block}.norm2", TOWER_WIDTH)
        yield from _linear(f"{block}.attn.qkv", 3 * TOWER_WIDTH, TOWER_WIDTH)
        yield from _linear(f"{block}.attn.proj", TOWER_WIDTH, TOWER_WIDTH)
        yield from _linear(f"{block}.mlp.linear_fc1", TOWER_MLP, TOWER_WIDTH)
        yield from _linear(f"{block}.mlp.linear_fc2", TOWER_WIDTH, TOWER_MLP)
    for merger in ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1"):
        yield from _norm(f"{merger}.norm", TOWER_WIDTH if merger == "merger" else 4 * TOWER_WIDTH)
        yield from _linear(f"{merger}.linear_fc1", 4 * TOWER_WIDTH, 4 * TOWER_WIDTH)
        yield from _linear(f"{merger}.linear_fc2", WIDTH, 4 * TOWER_WIDTH)


def _linear(name: str, rows: int, columns: int) -> Iterator[Named]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _norm(name: str, width: int) -> Iterator[Named]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
