"""LLaVAs made of transformers' own parts, with random weights, in the folders that people have; and what must come out.

The decoder, the tower and the projector are transformers' and PyTorch's modules; a bundle's answers are compared with
theirs, token by token and logit by logit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sdrpn.bundle.bundle import open_bundle
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.images.image import base_pixels, open_image
from sdrpn.runtime import Session
from tests.export.graph_runner import GraphRunner
from tests.tolerances import TRANSFORMERS_LOGITS_ABS

__all__ = ["AFTER", "BEFORE", "IMAGE_ID", "ReferenceLlava", "make_llava", "randomize", "require_same_answers"]

IMAGE_ID = 90
BEFORE, AFTER = [1, 5, 9], [7, 8, 11, 12]
STOP_ID = 2
ANSWER_TOKENS = 10
_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": STOP_ID,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}


@dataclass
class ReferenceLlava:
    """`text` has a head; `tower`'s last hidden state but one goes through `projector`."""

    text: Any
    tower: Any
    projector: nn.Module

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """(1,3,R,R) -> (G*G,D)."""
        features: Tensor = self.projector(self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])[0]
        return features

    @torch.inference_mode()
    def logits(self, pixels: Tensor, answer: list[int]) -> Tensor:
        """(S,V) of the prompt and some tokens of an answer after it."""
        embed = self.text.get_input_embeddings()
        ids = (torch.tensor(part, dtype=torch.long) for part in (BEFORE, [*AFTER, *answer]))
        before, after = (embed(part) for part in ids)
        logits: Tensor = self.text(inputs_embeds=torch.cat((before, self.features(pixels), after))[None]).logits[0]
        return logits

    def greedy(self, pixels: Tensor) -> list[int]:
        """The answer, without the stop token."""
        answer: list[int] = []
        while len(answer) < ANSWER_TOKENS:
            token = int(self.logits(pixels, answer)[-1].argmax())
            if token == STOP_ID:
                break
            answer.append(token)
        return answer

    def save(self, folder: Path, *, without: str | None = None, **changes: Any) -> Path:
        """LLaVA's own layout, the tower in `clip/`; `changes` of its config, no tensor with `without` in its name."""
        folder.mkdir(parents=True)
        self.tower.save_pretrained(folder / "clip")
        config = self.text.config.to_dict() | {
            "model_type": "llava_llama",
            "mm_hidden_size": _VISION["hidden_size"],
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": "./clip",
        }
        (folder / "config.json").write_text(json.dumps(config | changes, default=str))
        tensors = self.text.state_dict() | projector_state(self.projector)
        if self.text.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        kept = {name: tensor.clone() for name, tensor in tensors.items() if without is None or without not in name}
        save_file(kept, folder / "model.safetensors")
        return folder


def projector_state(projector: nn.Module) -> dict[str, Tensor]:
    """Under LLaVA's names."""
    return {f"model.mm_projector.{name}": tensor for name, tensor in projector.state_dict().items()}


def make_llava(*, mistral: bool = False, projector_layers: int = 2, **text: Any) -> ReferenceLlava:
    """`text`: what differs in the decoder's config; one layer of a projector is a Linear by itself."""
    torch.manual_seed(0)
    decoder: Any = MistralForCausalLM(MistralConfig(**_TEXT | text)) if mistral else None
    if decoder is None:
        decoder = LlamaForCausalLM(LlamaConfig(**_TEXT | text))
    layers: list[nn.Module] = [nn.Linear(_VISION["hidden_size"], _TEXT["hidden_size"])]
    for _ in range(projector_layers - 1):
        layers += [nn.GELU(), nn.Linear(_TEXT["hidden_size"], _TEXT["hidden_size"])]
    projector = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    llava = ReferenceLlava(decoder, CLIPVisionModel(CLIPVisionConfig(**_VISION)), projector)
    for module in (llava.text, llava.tower, llava.projector):
        randomize(module)
        module.eval()
    return llava


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    """Weights that keep the variance of what they multiply, and tell tokens apart."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.25 if "embed" in name else 2.0 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(noise * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        if "lm_head" in name:
            parameter[STOP_ID] = 0.0  # so that no answer is short


def require_same_answers(bundle: Path, reference: ReferenceLlava, picture: Path) -> None:
    """The same greedy ids in a session, and logits of the prompt and of every token, in all variants of the bundle."""
    spec = open_bundle(bundle).spec
    pixels = torch.from_numpy(base_pixels(open_image(picture), clip_of(spec)))[None]
    expected_ids = reference.greedy(pixels)
    assert len(set(expected_ids)) > 2, f"the model says the same over and over and proves nothing: {expected_ids}"
    expected = reference.logits(pixels, expected_ids)
    for variant in open_bundle(bundle).manifest.variants:
        with Session.open(bundle, variant=variant, threads=1) as session:
            answer = session.answer_ids(str(picture), BEFORE, AFTER, roi=None, max_new_tokens=ANSWER_TOKENS)
        assert [token for token in answer.token_ids if token != STOP_ID] == expected_ids, variant
        first = len(expected) - 1 - len(expected_ids)
        found = _logits(GraphRunner(bundle, variant), pixels.numpy(), expected_ids, range(first, len(expected)))
        difference = np.abs(found - expected[first:].numpy()).max()
        assert difference < TRANSFORMERS_LOGITS_ABS, f"{variant}: logits differ by {difference:.2e}"


def _logits(runner: GraphRunner, pixels: Any, answer: list[int], rows: range) -> Any:
    """(rows,V), each from a prefill of all that stands before it."""
    bundle, variant = runner.bundle, runner.variant
    table = np.fromfile(bundle.file(variant.embedding), dtype=variant.embedding_dtype)
    table = table.reshape(runner.spec.llm.vocabulary, -1).astype(np.float32)
    features = runner.call("vision", {"pixel_values": pixels})["image_embeds"][0]
    embeds = np.concatenate([table[BEFORE], features, table[[*AFTER, *answer]]])[None]
    length = embeds.shape[1]
    tap = runner.run("trunk", embeds, runner.caches("trunk", length), 0)["tap"]
    return np.concatenate(
        [runner.run("tail", tap[:, : row + 1], runner.caches("tail", length), 0)["logits"] for row in rows]
    )
