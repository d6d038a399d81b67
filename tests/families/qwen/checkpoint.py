"""Small random checkpoints in the official layouts, with the configs of both families."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdrpn.checkpoint.safetensors_file import SafetensorsWriter
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.families.qwen.config import family_name, qwen_spec
from sdrpn.families.qwen.names import NameTable

METHOD = {
    "enable_twig": True,
    "roi_branch": True,
    "roi_source": "qk",
    "roi_loss": "bce",
    "roi_multi_head": True,
    "twig_K": 2,
    "twig_T": 2,
}
QZOOM = {**METHOD, "enable_high_res": True, "reuse_src_pos": False}

CONFIG_25: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "mrope"},
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "vocab_size": 320,
    "image_token_id": 304,
    "bos_token_id": 300,
    "eos_token_id": 301,
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 64,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
        "window_size": 112,
    },
}
CONFIG_3: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "image_token_id": 304,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 4, 4], "rope_type": "default"},
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "vocab_size": 320,
        "bos_token_id": 300,
        "eos_token_id": 301,
    },
    "vision_config": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    },
}
OLD = NameTable("model.", "visual.", "lm_head.weight", "qwen2.5-vl")
NEW_25 = NameTable("model.language_model.", "model.visual.", "lm_head.weight", "qwen2.5-vl")
NEW_3 = NameTable("model.language_model.", "model.visual.", "lm_head.weight", "qwen3-vl")


def config_of(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A config with entries replaced; None leaves one out."""
    config = {**copy.deepcopy(base), **changes}
    return {key: value for key, value in config.items() if value is not None}


def write_qwen(
    folder: Path,
    config: dict[str, Any],
    table: NameTable | None = None,
    *,
    more: Mapping[str, tuple[int, ...]] | None = None,
    keep: Callable[[str], bool] = lambda name: True,
) -> Path:
    """Write a checkpoint with random weights.

    Args:
        table: how its tensors are called; by default as transformers 4.51 (Qwen2.5) and 4.57 (Qwen3) save them
        more: further tensors by their names in the file
        keep: which names of the file are written
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if table is None:
        table = OLD if family_name(config) == "qwen2.5-vl" else NEW_3
    claimed = {f"{table.llm}twig_layers.0.x"} if config.get("enable_twig") else set()
    # Only whose RPN it is depends on names: that of the shapes does not.
    shapes = {table.file_name(name): shape for name, shape in tensor_shapes(qwen_spec(folder, claimed)).items()}
    shapes = {name: shape for name, shape in {**shapes, **(more or {})}.items() if keep(name)}
    rng = np.random.default_rng(0)
    with SafetensorsWriter(folder / "model.safetensors", shapes, np.dtype(np.float32)) as writer:
        for name, shape in shapes.items():
            writer.write(name, rng.normal(0, 0.05, shape).astype(np.float32))
    return folder
