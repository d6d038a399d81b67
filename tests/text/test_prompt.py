"""Prompts around an image, with small tokenizers of the families that occur."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from sdrpn.errors import BadBundle, BadInput
from sdrpn.families.llava.conversations import CONVERSATIONS
from sdrpn.families.llava.prompt import build_prompt
from sdrpn.method.spec import PromptSpec
from sdrpn.text.prompt import Prompt, TextStream, decode_text, load_tokenizer
from sdrpn.text.tokenizer import KEPT_TOKENS, WINDOW_TOKENS
from tests.tiny_tokenizers import gpt_like, llama_like

IMAGE_ID = 3


def word_like() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "what": 1, "is": 2, "?": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def ids_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


# --- vicuna_v1


@pytest.mark.parametrize("adds_bos", [True, False])
def test_vicuna_prompt_equals_llavas(adds_bos: bool) -> None:
    """LLaVA tokenises both sides of <image>, each with its start token, and drops the second one."""
    tokenizer = llama_like(adds_bos=adds_bos)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    chunks = f"{system} USER: <image>\nwhat is this? ASSISTANT:".split("<image>")
    with_bos = llama_like(adds_bos=True)
    before, after = (tuple(with_bos.encode(chunk).ids) for chunk in chunks)
    assert build_prompt(tokenizer, PromptSpec(), "what is this?") == Prompt(before, after[1:])
    assert before[0] == 1
    assert before.count(1) == 1


def test_vicuna_prompt_without_a_start_token() -> None:
    prompt = build_prompt(gpt_like(), PromptSpec(bos_token_id=None), "what?")
    assert decode_text(gpt_like(), prompt.ids_before) == CONVERSATIONS["vicuna_v1"].before_image
    assert decode_text(gpt_like(), prompt.ids_after) == "\nwhat? ASSISTANT:"


# --- questions


@pytest.mark.parametrize("question", ["", " ", "\n\t", "<image>", " <image>\n", "<im<image>age>"])
def test_empty_questions(question: str) -> None:
    with pytest.raises(BadInput, match="the question is empty"):
        build_prompt(llama_like(), PromptSpec(), question)


@pytest.mark.parametrize(
    ("question", "match"),
    [(None, "is NoneType; expected text"), (b"what?", "is bytes"), ("\udcff?", "not valid Unicode")],
)
def test_questions_that_are_no_text(question: Any, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        build_prompt(llama_like(), PromptSpec(), question)


@pytest.mark.parametrize(
    "question", ["<image>\nwhat?", "wh<image>at?", "what?<image><image>", "<im<image>age>what?", "what?"]
)
@pytest.mark.parametrize(
    "template", ["vicuna_v1", "{% for m in messages %}<image>{{ m.content[1].text }}:{% endfor %}"]
)
def test_image_tokens_in_the_question_are_removed(question: str, template: str) -> None:
    tokenizer = llama_like(image=True)
    spec = PromptSpec(template=template, image_token_id=IMAGE_ID)
    prompt = build_prompt(tokenizer, spec, question)
    assert prompt == build_prompt(tokenizer, spec, "what?")
    assert IMAGE_ID not in prompt.ids_before + prompt.ids_after


@pytest.mark.parametrize(
    "question", ["これは何ですか？", "ما هذا؟", "что это?", "🤔👩‍👩‍👧", "e\u0301 é", "a\0b", "x" * 10_240]
)
def test_any_text_survives(question: str) -> None:
    for tokenizer in (llama_like(), gpt_like()):
        prompt = build_prompt(tokenizer, PromptSpec(), question)
        assert decode_text(tokenizer, prompt.ids_after).strip() == f"{question} ASSISTANT:"


def calls_in(work: Callable[[], object]) -> int:
    """How many functions are called, those of C among them: work that no other process slows down."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("question", ["what is this? ", "<ima<image>ge>what? ", "<image"])
def test_work_grows_with_the_length_of_a_question(question: str) -> None:
    tokenizer, spec = llama_like(image=True), PromptSpec(image_token_id=IMAGE_ID)
    short, long = (calls_in(partial(build_prompt, tokenizer, spec, question * n)) for n in (100, 400))
    assert long < 4.1 * short


def test_a_prompt_needs_tokens_after_the_image() -> None:
    with pytest.raises(BadInput, match="no token after the image"):
        Prompt((1, 2), ())


# --- chat templates

LLAVA_HF = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_template_is_tokenised_whole() -> None:
    tokenizer = llama_like(image=True)
    prompt = build_prompt(tokenizer, PromptSpec(template=LLAVA_HF, image_token_id=IMAGE_ID), "what?")
    ids = tokenizer.encode("USER: <image>\nwhat? ASSISTANT:").ids
    place = ids.index(IMAGE_ID)
    assert prompt == Prompt(tuple(ids[:place]), tuple(ids[place + 1 :]))
    assert prompt.ids_before[0] == 1


def test_template_that_writes_the_start_token() -> None:
    tokenizer = llama_like(image=True)
    spec = PromptSpec(template="{{ bos_token }}" + LLAVA_HF, image_token_id=IMAGE_ID)
    assert build_prompt(tokenizer, spec, "what?").ids_before.count(1) == 1


def test_image_token_outside_the_vocabulary() -> None:
    tokenizer = llama_like()
    prompt = build_prompt(tokenizer, PromptSpec(template=LLAVA_HF, image_token_id=99_999), "what?")
    assert prompt == Prompt((1, *ids_of(tokenizer, "USER: ")), ids_of(tokenizer, "\nwhat? ASSISTANT:"))
    assert prompt == build_prompt(tokenizer, PromptSpec(template=LLAVA_HF), "what?")


@pytest.mark.parametrize("image_token_id", [None, IMAGE_ID])
def test_a_run_of_image_tokens_is_one_image(image_token_id: int | None) -> None:
    tokenizer = llama_like(image=True)
    runs = PromptSpec(template="A<image><image><image>{{ messages[0].content[1].text }}", image_token_id=image_token_id)
    single = PromptSpec(template="A<image>{{ messages[0].content[1].text }}", image_token_id=image_token_id)
    assert build_prompt(tokenizer, runs, "what?") == build_prompt(tokenizer, single, "what?")


@pytest.mark.parametrize("image_token_id", [None, IMAGE_ID])
@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{{ messages[0].content[1].text }}", "places no images; expected exactly one"),
        ("<image>a<image>{{ messages[0].content[1].text }}", "places 2 images; expected exactly one"),
        ("{{ messages[0].content[1].text }}<image>", "no token after the image"),
        ("{% if %}", "cannot be filled"),
        ("{{ raise_exception('only text here') }}", r"cannot be filled \(only text here\)"),
        ("{{ 'a' + messages }}", "cannot be filled"),
        ("{{ messages.append(1) }}", "cannot be filled"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be filled"),
    ],
)
def test_templates_that_are_refused(template: str, match: str, image_token_id: int | None) -> None:
    spec = PromptSpec(template=template, image_token_id=image_token_id)
    with pytest.raises(BadInput, match=match) as caught:
        build_prompt(llama_like(image=True), spec, "what?")
    assert "\n" not in str(caught.value)


def test_blocks_leave_no_lines_behind() -> None:
    template = (
        "{% for m in messages %}\n    {% if true %}\n<image>{{ m.content[1].text }}\n    {% endif %}\n{% endfor %}\n"
    )
    prompt = build_prompt(
        gpt_like(), PromptSpec(template=template, bos_token_id=None, image_token_id=IMAGE_ID), "what?"
    )
    assert decode_text(gpt_like(), prompt.ids_after) == "what?\n"


# --- tokenizer files


def test_tokenizer_file(tmp_path: Path) -> None:
    tokenizer = llama_like()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert build_prompt(loaded, PromptSpec(), "what?") == build_prompt(llama_like(), PromptSpec(), "what?")


def test_tokenizer_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="does not exist; questions need a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadBundle, match="is not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


# --- streams


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    text = TextStream(tokenizer)
    return [*(text.push(token_id) for token_id in ids), text.finish()]


@pytest.mark.parametrize("tokenizer", [llama_like(), gpt_like()], ids=["llama", "gpt"])
@pytest.mark.parametrize("text", ["", "the thing is this", "これは何ですか？", "a🤔b👩‍👩‍👧c", "é e\u0301"])
def test_streams_end_between_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = ids_of(tokenizer, text)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == decode_text(tokenizer, ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_streams_come_word_by_word() -> None:
    tokenizer = llama_like()
    assert stream(tokenizer, ids_of(tokenizer, "that the")) == ["th", "a", "t", " th", "e", ""]


def test_streams_skip_special_tokens() -> None:
    tokenizer = llama_like()
    assert "".join(stream(tokenizer, [1, *ids_of(tokenizer, "the"), 2])) == "the"


@pytest.mark.parametrize("tokenizer", [llama_like(), gpt_like(), word_like()], ids=["llama", "gpt", "word"])
@given(data=st.data())
def test_streams_equal_decoding_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any ids: halves of characters, bytes in a row, special tokens, ids outside the vocabulary."""
    token_id = st.integers(0, tokenizer.get_vocab_size() + 2)
    ids = data.draw(st.lists(token_id, max_size=30)) * data.draw(st.sampled_from([1, 12]))
    assert "".join(stream(tokenizer, ids)) == decode_text(tokenizer, ids)


@pytest.mark.parametrize("between", [1, 10_000])
def test_a_token_without_text_does_not_end_a_row_of_bytes(between: int) -> None:
    tokenizer = llama_like()
    byte_a, half_character, word = (tokenizer.encode(text).ids[-1] for text in ("\x01", "\u4e2d", "the"))
    ids = [byte_a, between, half_character, word]
    assert "".join(stream(tokenizer, ids)) == decode_text(tokenizer, ids) == "\ufffd\ufffde"


def test_long_streams_stay_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token costs the decoding of a window, however long the answer has become."""
    tokenizer, decoded = llama_like(), []

    def counted(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return decode_text(tokenizer, ids)

    ids = ids_of(tokenizer, "what is this thing? ") * 200
    monkeypatch.setattr("sdrpn.text.tokenizer.decode_text", counted)
    assert "".join(stream(tokenizer, ids)) == decode_text(tokenizer, ids)
    assert len(decoded) >= len(ids) > 2 * WINDOW_TOKENS
    assert sum(decoded) <= len(ids) * (WINDOW_TOKENS + 1 + KEPT_TOKENS)
