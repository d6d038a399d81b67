"""The prompts of these families: the checkpoint's chat template, and what the official evaluation puts around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.checkpoint.config_section import ConfigSection
from sdrpn.checkpoint.prompt_config import TokenDefaults, chat_template, prompt_spec
from sdrpn.method.spec import ModelSpec, PromptSpec
from sdrpn.text.turns import Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sdrpn.text.prompt import Pieces, Prompt

__all__ = ["DEFAULT_TEMPLATES", "qwen_pieces", "qwen_prompt", "read_prompt"]

_IMAGE_TOKEN_ID = 151655  # where the config does not say it
# Turns end with <|im_end|>.
_DEFAULTS = TokenDefaults({"eos_token_id": 151645}, "<|image_pad|>", 151936)
_SYSTEM = "You are a helpful assistant."
_SYSTEM_TURN = f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n"
_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the base models' templates write for text and images, for folders without one: fine-tunes are saved so.
DEFAULT_TEMPLATES = {
    "qwen2.5-vl": f"{{% if messages[0]['role'] != 'system' %}}{_SYSTEM_TURN}{{% endif %}}{_TURNS}",
    "qwen3-vl": _TURNS,
}


def read_prompt(text: ConfigSection, config: ConfigSection, folder: Path, family: str) -> PromptSpec:
    """The prompt of the checkpoint in `folder`; `text` is the section with the ids of special tokens.

    Raises BadCheckpoint for entries of another type.
    """
    template = chat_template(folder) or DEFAULT_TEMPLATES[family]
    image_id = config.whole("image_token_id", _IMAGE_TOKEN_ID)
    return prompt_spec(text, config, folder, template=template, image_token_id=image_id, defaults=_DEFAULTS)


def qwen_prompt(tokenizer: Tokenizer, spec: ModelSpec, question: str) -> Prompt:
    """The token ids on both sides of the image: the last before it starts the vision part, the first after it ends it.

    Raises BadInput for a question without text.
    """
    from sdrpn.text.prompt import Prompt

    before, after = qwen_pieces(tokenizer, spec, (Turn("user", question, images=1),))
    return Prompt(before, after)


def qwen_pieces(tokenizer: Tokenizer, spec: ModelSpec, turns: Sequence[Turn]) -> Pieces:
    """The token ids of a conversation, cut at its images.

    Qwen3-VL's template has no system turn of its own. Q-Zoom's evaluation adds one wherever it may look again, and so
    does this for every answer of a model with a region proposal network, unless the conversation has one.
    """
    from sdrpn.text.prompt import build_pieces

    if spec.vision.family == "qwen3-vl" and spec.rpn is not None and turns[0].role != "system":
        turns = (Turn("system", _SYSTEM), *turns)
    return build_pieces(tokenizer, spec.prompt, turns)
