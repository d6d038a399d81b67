"""Random models of both families, made and saved by transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.families.qwen.checkpoint import CONFIG_3, CONFIG_25

__all__ = ["IMAGE", "saved_model", "token_types"]

IMAGE = 304


def saved_model(family: str, folder: Path, *, tied: bool = False) -> Any:
    """transformers' model with random weights, saved to `folder`."""
    torch.manual_seed(0)
    model = _configured(family, tied=tied).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases as well: at 1 and 0 a mistake in them would not be seen.
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.08))
    model.save_pretrained(folder)
    return model


def token_types(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What transformers 5 asks for beside ids: which of them are an image's."""
    return {} if _before_5() else {"mm_token_type_ids": (ids == IMAGE).int()}


def _before_5() -> bool:
    import transformers

    return transformers.__version__.startswith("4.")


def _configured(family: str, *, tied: bool) -> Any:
    import transformers

    base = CONFIG_25 if family == "qwen2.5-vl" else CONFIG_3
    text = dict(base) if family == "qwen2.5-vl" else dict(base["text_config"])
    vision = {key: value for key, value in base["vision_config"].items() if key != "in_chans"}
    rope = {**text["rope_scaling"], "rope_theta": text["rope_theta"]}
    text = {key: value for key, value in text.items() if key not in ("model_type", "vision_config", "image_token_id")}
    text["tie_word_embeddings"] = tied  # transformers 4 looks here
    if not _before_5():
        del text["rope_scaling"], text["rope_theta"]
        text["rope_parameters"] = {key: value for key, value in rope.items() if key != "type"}
    kinds: dict[str, tuple[Any, Any]] = {
        "qwen2.5-vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
        "qwen3-vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
    }
    config_kind, model_kind = kinds[family]
    ids = {"image_token_id": IMAGE, "video_token_id": 305, "vision_start_token_id": 302, "vision_end_token_id": 303}
    return model_kind(config_kind(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids))
