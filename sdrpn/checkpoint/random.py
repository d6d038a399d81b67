"""Untrained checkpoints of any family and size with random weights, for tests, examples and measurements.

Weights are drawn and written tensor by tensor: a 7B model needs memory for its largest tensor only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.safetensors_file import SafetensorsWriter
from sdrpn.checkpoint.tensor_shapes import Shapes
from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of, load_part
from sdrpn.method.spec import ModelSpec

__all__ = ["random_tensor", "write_byte_tokenizer", "write_random_checkpoint", "write_random_weights"]


def write_random_checkpoint(
    path: Path | str,
    spec: ModelSpec,
    *,
    layout: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    with_tokenizer: bool = False,
    roi_gain: float = 1.0,
) -> None:
    """Write a model of `spec` to the new or empty folder `path`; `open_checkpoint` reads `spec` back from it.

    The same seed gives the same weights in every layout. What a layout cannot express is dropped: the tap of a model
    without RPN, and a chat template.

    Args:
        layout: of names and config, as its family calls them; None: its usual one
        dtype: float32, float16 or bfloat16
        with_tokenizer: also write a byte-level tokenizer, for a vocabulary of 260 tokens or more
        roi_gain: factor on the RoI logits; over the map they vary by about roi_gain / sqrt(heads) around an offset
            that depends on the question
    Raises BadInput for a spec that the layout cannot express, or a folder that is not empty.
    """
    write = load_part(family_of(spec).random_writer)
    write(path, spec, layout=layout, seed=seed, dtype=dtype, with_tokenizer=with_tokenizer, roi_gain=roi_gain)


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Draw one tensor; it depends only on its canonical name, its shape and the seed.

    Matrices keep the variance of their input, norms are near 1, embeddings have unit variance: activations and
    logits stay in the range of float16, and logits differ between tokens.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    noise = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(shape, dtype=np.float32)
    noise *= np.float32(_deviation(name, shape))  # in place: only one copy of the largest tensor in memory
    return noise + 1 if "norm" in name and name.endswith("weight") else noise


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    if name.endswith("bias"):
        return 0.05
    if "norm" in name:
        return 0.1
    if name == "llm.embed.weight":
        return 1.0
    if name.endswith("_embedding"):  # a single one, or a table of positions
        return 0.3
    return float(math.prod(shape[1:]) ** -0.5)


def write_random_weights(
    folder: Path,
    shapes: Shapes,
    file_names: dict[str, str],
    dtype: np.dtype[Any],
    seed: int,
    gains: dict[str, float],
) -> None:
    """Draw and write `model.safetensors`.

    Args:
        shapes, file_names, gains: by canonical name; what has no gain is as `random_tensor` draws it
    """
    stored_shapes = {file_names[name]: shape for name, shape in shapes.items()}
    with SafetensorsWriter(folder / "model.safetensors", stored_shapes, dtype) as writer:
        for name, shape in shapes.items():
            array = random_tensor(name, shape, seed)
            array *= np.float32(gains.get(name, 1.0))
            writer.write(file_names[name], array)


def write_byte_tokenizer(path: Path, spec: ModelSpec, texts: Mapping[int, str] = MappingProxyType({})) -> None:
    """Write a byte-level BPE without merges: a token is a byte. Special tokens have the ids of the spec.

    texts: of further special tokens, or other texts of these
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = {
        token_id: "</s>" if rank == 0 else f"</s{rank}>" for rank, token_id in enumerate(spec.prompt.eos_token_ids)
    }
    if spec.prompt.bos_token_id is not None:
        special[spec.prompt.bos_token_id] = "<s>"
    if spec.prompt.image_token_id is not None:
        special[spec.prompt.image_token_id] = spec.prompt.image_token
    special |= texts
    special.setdefault(0, "<unk>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    free_ids = [token_id for token_id in range(spec.llm.vocabulary) if token_id not in special]
    if len(free_ids) < len(alphabet):
        raise BadInput(
            f"a vocabulary of {spec.llm.vocabulary} has no room for a byte-level tokenizer; "
            f"expected at least {len(alphabet) + len(special)}"
        )
    vocabulary = {text: token_id for token_id, text in special.items()} | dict(zip(alphabet, free_ids, strict=False))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special.values()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if spec.prompt.bos_token_id is not None and special[spec.prompt.bos_token_id] == "<s>":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", spec.prompt.bos_token_id)]
        )
    tokenizer.save(str(path))


# Its name in the release before; goes with the next version.
_write_tokenizer = write_byte_tokenizer
