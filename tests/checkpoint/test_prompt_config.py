"""Special tokens and chat templates of checkpoints, as training code and converters write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdrpn.errors import BadCheckpoint
from sdrpn.families.llava.config import read_spec
from sdrpn.method.spec import PromptSpec
from tests.checkpoint.test_config import CLIP_LARGE, HUB_CONFIG, LLAVA_CONFIG

ABSENT: Any = object()


def with_entries(config: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**config, **entries}.items() if value is not ABSENT}


def prompt_of(
    folder: Path,
    top: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
) -> PromptSpec:
    """The prompt of a checkpoint in Hugging Face's layout, with these entries in its files."""
    config = with_entries(HUB_CONFIG, {"pad_token_id": ABSENT, **(top or {})})
    config["text_config"] = with_entries(config["text_config"], text or {})
    files = {"config.json": config, "generation_config.json": generation, "tokenizer_config.json": tokenizer}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return read_spec(folder, None).prompt


@pytest.mark.parametrize(
    ("generation", "text", "top", "ids"),
    [
        (None, {}, {}, (2,)),
        ({}, {"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": 7}, {"eos_token_id": 5}, {}, (7,)),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, {}, (7, 9)),
        ({"eos_token_id": None}, {"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": []}, {"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": -1}, {"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": [-1, 7]}, {"eos_token_id": 5}, {}, (7,)),
        ({"eos_token_id": 99_999}, {"eos_token_id": 5}, {}, (5,)),  # no token of the model
        (None, {"eos_token_id": [5, 6]}, {}, (5, 6)),
        (None, {"eos_token_id": None}, {"eos_token_id": 8}, (8,)),
        (None, {"eos_token_id": -1}, {"eos_token_id": 8}, (8,)),
        (None, {"eos_token_id": None}, {"eos_token_id": None}, (2,)),
        (None, {"eos_token_id": -1}, {}, ()),
        (None, {}, {"eos_token_id": 8}, (8,)),
    ],
)
def test_what_ends_an_answer(
    tmp_path: Path, generation: dict[str, Any] | None, text: dict[str, Any], top: dict[str, Any], ids: tuple[int, ...]
) -> None:
    assert prompt_of(tmp_path, top, text, generation).eos_token_ids == ids


@pytest.mark.parametrize("said", [None, -1, [], [-1]])
@pytest.mark.parametrize("places", [("tokenizer",), ("added",), ("json",), ("legacy", "json")])
def test_the_tokenizer_says_what_the_configs_do_not(tmp_path: Path, said: object, places: tuple[str, ...]) -> None:
    named = {"eos_token": {"content": "<|eot|>"}, "bos_token": "<|begin|>"}
    tokenizer: dict[str, Any] = {} if "legacy" in places else dict(named)
    if "legacy" in places:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    ids = {"<|begin|>": 300, "<|eot|>": 301}
    if "tokenizer" in places:
        tokenizer["added_tokens_decoder"] = {str(token_id): {"content": text} for text, token_id in ids.items()}
    if "added" in places:
        (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    if "json" in places:
        added = [{"id": token_id, "content": text} for text, token_id in ids.items()]
        (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    prompt = prompt_of(tmp_path, text={"eos_token_id": said, "bos_token_id": said}, tokenizer=tokenizer)
    assert (prompt.bos_token_id, prompt.eos_token_ids) == (300, (301,))


@pytest.mark.parametrize(
    ("text", "top", "bos", "pad"),
    [
        ({}, {}, 1, None),
        ({"bos_token_id": 4, "pad_token_id": 0}, {"bos_token_id": 5, "pad_token_id": 6}, 4, 0),
        ({"bos_token_id": None, "pad_token_id": None}, {"bos_token_id": 5, "pad_token_id": 6}, 5, 6),
        ({"bos_token_id": -1, "pad_token_id": -1}, {"bos_token_id": 5, "pad_token_id": 6}, 5, 6),
        ({"bos_token_id": -1, "pad_token_id": -1}, {}, None, None),
        ({"bos_token_id": [4], "pad_token_id": [-1, 0]}, {}, 4, 0),
        ({"bos_token_id": None, "pad_token_id": 32_001}, {}, 1, 32_001),
    ],
)
def test_start_and_padding(
    tmp_path: Path, text: dict[str, Any], top: dict[str, Any], bos: int | None, pad: int | None
) -> None:
    prompt = prompt_of(tmp_path, top, text)
    assert (prompt.bos_token_id, prompt.pad_token_id) == (bos, pad)


@pytest.mark.parametrize("entry", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_original_layouts_have_the_same_ids(tmp_path: Path, entry: str) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps(CLIP_LARGE))
    for value in (-1, None, [7]):
        (tmp_path / "config.json").write_text(json.dumps(LLAVA_CONFIG | {entry: value}))
        prompt = read_spec(tmp_path, tmp_path / "clip").prompt
        ids = {"bos_token_id": prompt.bos_token_id, "pad_token_id": prompt.pad_token_id}
        found = [ids[entry]] if entry in ids else list(prompt.eos_token_ids)
        assert all(token_id is None or token_id >= 0 for token_id in found)
        assert value != [7] or found == [7]


@pytest.mark.parametrize("where", ["top", "text", "generation"])
@pytest.mark.parametrize("value", [True, "2", 2.0, {}, ["x"], [True], [None], 2**31, 10**30])
def test_ids_that_are_none(tmp_path: Path, where: str, value: object) -> None:
    entries: dict[str, Any] = {"text": {"eos_token_id": None}, where: {"eos_token_id": value}}
    with pytest.raises(BadCheckpoint, match=r"eos_token_id is .*; expected a token id or a list of them"):
        prompt_of(tmp_path, **entries)


@pytest.mark.parametrize(
    ("entries", "token_id"),
    [
        ({}, 32000),
        ({"image_token_index": ABSENT}, 32000),
        ({"image_token_index": ABSENT, "image_token_id": 7}, 7),
        ({"image_token_index": 9, "image_token_id": 7}, 9),
        ({"image_token_index": -200}, None),
        ({"image_token_index": -200, "image_token_id": 7}, 7),
        ({"image_token_index": None, "image_token_id": 7}, 7),
    ],
)
def test_the_image_token(tmp_path: Path, entries: dict[str, Any], token_id: int | None) -> None:
    assert prompt_of(tmp_path, entries).image_token_id == token_id


# --- templates

TEMPLATE = "{{ a }}"


@pytest.mark.parametrize(
    "value",
    [
        TEMPLATE,
        [{"name": "tool_use", "template": "t"}, {"name": "default", "template": TEMPLATE}],
        [{"name": "only", "template": TEMPLATE}],
        {"tool_use": "t", "default": TEMPLATE},
    ],
)
def test_one_template_or_several(tmp_path: Path, value: object) -> None:
    assert prompt_of(tmp_path, tokenizer={"chat_template": value}).template == TEMPLATE


@pytest.mark.parametrize("value", [None, "", "  \n", []])
def test_templates_without_text(tmp_path: Path, value: object) -> None:
    (tmp_path / "chat_template.jinja").write_text(" \n")
    assert prompt_of(tmp_path, tokenizer={"chat_template": value}).template == "vicuna_v1"


@pytest.mark.parametrize("value", [7, ["x"], [{"name": "default"}], {"default": 1}])
def test_templates_of_another_type(tmp_path: Path, value: object) -> None:
    with pytest.raises(BadCheckpoint, match=r"chat_template is .*; expected a template, or several with their names"):
        prompt_of(tmp_path, tokenizer={"chat_template": value})


def test_templates_know_the_tokenizers_names(tmp_path: Path) -> None:
    tokenizer = {"chat_template": TEMPLATE, "bos_token": {"content": "<b>"}, "eos_token": "<e>", "pad_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<u>", "eos_token": {"content": "<f>"}}))
    prompt = prompt_of(tmp_path, tokenizer=tokenizer)
    assert prompt.special_tokens == {"bos_token": "<b>", "eos_token": "<f>", "unk_token": "<u>", "pad_token": ""}
    prompt = prompt_of(tmp_path, tokenizer=tokenizer | {"added_tokens_decoder": {}})  # the other file is of old then
    assert prompt.special_tokens == {"bos_token": "<b>", "eos_token": "<e>", "pad_token": ""}
    prompt = prompt_of(tmp_path, tokenizer=tokenizer | {"chat_template": None})
    assert prompt.special_tokens == {}


def test_marks_and_placeholders(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf" + TEMPLATE.encode())
    (tmp_path / "generation_config.json").write_bytes(b'\xef\xbb\xbf{"eos_token_id": 9}')
    prompt = prompt_of(tmp_path)
    assert (prompt.template, prompt.eos_token_ids) == (TEMPLATE, (9,))
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = tmp_path / name
        before = path.read_bytes() if path.exists() else None
        for content in (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", b"<!doctype html>"):
            path.write_bytes(content)
            with pytest.raises(BadCheckpoint, match=rf"{name} is a (git-lfs pointer|web page).*fetch"):
                prompt_of(tmp_path)
        path.unlink() if before is None else path.write_bytes(before)
