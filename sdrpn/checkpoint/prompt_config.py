"""From a checkpoint's JSON files to the prompt: template and special tokens.

Ids are read from the same places as in transformers, in the same order. Training code writes -1 or null for a missing
token, and lists for several; ids outside the vocabulary are ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.checkpoint.config_section import ConfigSection, read_config, read_optional_config, read_text_file
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.registry import prompt_names
from sdrpn.method.spec import ModelSpec, PromptSpec

__all__ = ["TokenDefaults", "chat_template", "named_template", "prompt_spec", "token_ids", "with_template"]

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_TOKENIZER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class TokenDefaults:
    """What a family's configs mean where they and the tokenizer leave something out.

    ids: special tokens by the name of their entry: "bos_token_id", "eos_token_id"
    image_token: the text of the image token
    vocabulary: V
    """

    ids: Mapping[str, int]
    image_token: str
    vocabulary: int


def chat_template(folder: Path) -> str:
    """The folder's Jinja template, newest place first; empty where there is none. Raises BadCheckpoint."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        template = read_text_file(jinja)
        if template.strip():
            return template
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        named = _named_templates(read_optional_config(folder / name))
        if named:
            return named.get("default", next(iter(named.values())))
    return ""


def named_template(text: str) -> str:
    """Resolve a template: a name that a family knows, or a file with a Jinja template.

    Files as Hugging Face writes them hold it as `chat_template`. Raises BadInput for a name or a file without one.
    """
    names = prompt_names()
    if text in names:
        return text
    path = Path(text)
    if not path.is_file():
        similar = difflib.get_close_matches(text, names, n=1)
        hint = f"did you mean {similar[0]}? " if similar else ""
        raise BadInput(f"{text} is neither a file nor a template's name; {hint}names: {', '.join(names)}")
    if path.suffix != ".json":
        template = read_text_file(path)
    else:
        named = _named_templates(read_config(path))
        template = named.get("default", next(iter(named.values()), ""))
    if not template.strip():
        raise BadInput(f"{path} has no chat template; expected one in Jinja, or JSON with a chat_template")
    return template


def with_template(spec: ModelSpec, template: str, folder: Path) -> ModelSpec:
    """The spec with another prompt template; `folder` has the tokenizer's config."""
    special: dict[str, str] = {} if template in prompt_names() else _texts(folder)
    prompt = dataclasses.replace(spec.prompt, template=template, special_tokens=special)
    return dataclasses.replace(spec, prompt=prompt)


def _named_templates(config: ConfigSection) -> dict[str, str]:
    """The templates by name, from one template, or from a list or an object of several."""
    value = config.get("chat_template", "")
    if isinstance(value, str):
        return {"default": value} if value.strip() else {}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise config.wrong("chat_template", value, "a template, or several with their names")
    return {name: template for name, template in value.items() if template.strip()}


def prompt_spec(
    tokens: ConfigSection,
    config: ConfigSection,
    folder: Path,
    *,
    template: str,
    image_token_id: int | None,
    defaults: TokenDefaults,
) -> PromptSpec:
    """The prompt's template and special tokens; `tokens` is the section with their ids, `config` the whole file."""
    generation = read_optional_config(folder / "generation_config.json")
    model = (tokens, config)
    tokenizer = read_optional_config(folder / "tokenizer_config.json")
    special = _SpecialTokens(folder, tokenizer, tokens.whole("vocab_size", defaults.vocabulary), defaults.ids)
    return PromptSpec(
        template=template,
        image_token=_image_token(tokenizer, image_token_id, defaults.image_token),
        image_token_id=image_token_id,
        bos_token_id=next(iter(special.ids("bos_token_id", *model, generation)), None),
        eos_token_ids=special.ids("eos_token_id", generation, *model),
        pad_token_id=next(
            (pad for section in (*model, generation) for pad in token_ids(section, "pad_token_id")), None
        ),
        repetition_penalty=generation.number("repetition_penalty", 1.0),
        special_tokens={} if template in prompt_names() else _texts(folder),
    )


class _SpecialTokens:
    """The special tokens according to the configs and the tokenizer of one folder."""

    def __init__(self, folder: Path, tokenizer: ConfigSection, vocabulary: int, default_ids: Mapping[str, int]) -> None:
        self._folder, self._tokenizer, self._vocabulary = folder, tokenizer, vocabulary
        self._default_ids = default_ids

    def ids(self, key: str, *sections: ConfigSection) -> tuple[int, ...]:
        """The ids in the first section that has any, else the tokenizer's, else the defaults."""
        for section in sections:
            known = tuple(token_id for token_id in token_ids(section, key) if token_id < self._vocabulary)
            if known:
                return known
        text = _texts(self._folder).get(key.removesuffix("_id"))
        found = next((token_id for token_id, name in self._added_tokens() if name == text), None) if text else None
        if found is not None:
            return (found,)
        said = any(section.get(key) is not None for section in sections)
        return () if said or key not in self._default_ids else (self._default_ids[key],)

    def _added_tokens(self) -> Iterator[tuple[int, str]]:
        """Ids and texts of added tokens, from all files that may list them."""
        for token_id, token in self._tokenizer.section("added_tokens_decoder").values.items():
            if token_id.isdecimal() and isinstance(token, dict):
                yield int(token_id[:10]), str(token.get("content"))
        for text, token_id in read_optional_config(self._folder / "added_tokens.json").values.items():
            if isinstance(token_id, int):
                yield token_id, text
        path = self._folder / "tokenizer.json"
        added = read_optional_config(path, _MAX_TOKENIZER_BYTES).get("added_tokens", [])
        for token in added if isinstance(added, list) else []:
            if isinstance(token, dict) and isinstance(token.get("id"), int):
                yield token["id"], str(token.get("content"))


def _texts(folder: Path) -> dict[str, str]:
    """Special tokens by the names that chat templates use; an empty text: the tokenizer says that it has none."""
    entries = dict(read_optional_config(folder / "tokenizer_config.json").values)
    if "added_tokens_decoder" not in entries:  # written by transformers before 4.34, with a second file
        entries |= read_optional_config(folder / "special_tokens_map.json").values
    texts = {}
    for name in _TOKEN_NAMES:
        value = entries.get(name, ...)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) or value is None:
            texts[name] = value or ""
    return texts


def token_ids(section: ConfigSection, key: str) -> tuple[int, ...]:
    """The ids of an entry, which may be one id or a list; negative ids mean none."""
    value = section.get(key, [])
    ids = tuple(value) if isinstance(value, list) else (value,)
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id >= 2**31:
            raise section.wrong(key, value, "a token id or a list of them")
    return tuple(token_id for token_id in ids if token_id >= 0)


def _image_token(tokenizer: ConfigSection, image_token_id: int | None, default: str) -> str:
    token: Any = tokenizer.section("added_tokens_decoder").get(str(image_token_id), {})
    text = token.get("content", default) if isinstance(token, dict) else None
    if not isinstance(text, str) or not text:
        raise BadCheckpoint(f"{tokenizer.where}: added token {image_token_id} is {token!r}; expected one with a text")
    return text
