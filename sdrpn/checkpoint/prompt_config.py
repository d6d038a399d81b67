"""From a checkpoint's JSON files to how a question becomes tokens: template and special tokens."""

from __future__ import annotations

from pathlib import Path

from sdrpn.checkpoint.config_section import ConfigSection, read_optional_config
from sdrpn.spec import PromptSpec

__all__ = ["chat_template", "prompt_spec"]


def chat_template(folder: Path) -> str:
    """The folder's Jinja template, newest place first; LLaVA-1.5's prompt where there is none."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text("utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_optional_config(folder / name).get("chat_template")
        if isinstance(template, list):  # several, each with a name
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default", next(iter(named.values()), None))
        if isinstance(template, str):
            return template
    return "vicuna_v1"


def prompt_spec(
    tokens: ConfigSection, config: ConfigSection, folder: Path, *, template: str, image_token_id: int | None
) -> PromptSpec:
    """Template and special tokens; `tokens` is the section that has their ids, `config` the whole file."""
    generation = read_optional_config(folder / "generation_config.json")
    return PromptSpec(
        template=template,
        image_token=_image_token(folder, image_token_id),
        image_token_id=image_token_id,
        bos_token_id=tokens.whole("bos_token_id", 1),
        eos_token_ids=_eos(generation if "eos_token_id" in generation.values else tokens),
        pad_token_id=tokens.get("pad_token_id", config.get("pad_token_id")),
    )


def _eos(config: ConfigSection) -> tuple[int, ...]:
    value = config.get("eos_token_id", 2)
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(token_id, int) for token_id in ids):
        raise config.wrong("eos_token_id", value, "a token id or a list of them")
    return ids


def _image_token(folder: Path, image_token_id: int | None) -> str:
    added = read_optional_config(folder / "tokenizer_config.json").section("added_tokens_decoder")
    return str(added.section(str(image_token_id)).get("content", "<image>"))
