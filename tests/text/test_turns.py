"""Turns of a conversation: which of them shows which picture, and which orders are refused."""

from __future__ import annotations

from typing import Any

import pytest

from sdrpn.errors import BadInput
from sdrpn.families.llava.prompt import build_pieces
from sdrpn.method.spec import PromptSpec
from sdrpn.text.turns import Turn, conversation
from tests.tiny_tokenizers import llama_like

SYSTEM, ASKED, SAID = Turn("system", "Be brief."), Turn("user", "what?"), Turn("assistant", "a tag")


def images(turns: tuple[Turn, ...]) -> list[int]:
    return [turn.images for turn in turns]


@pytest.mark.parametrize(
    ("history", "count", "expected"),
    [
        ([], 1, [1]),
        ([], 0, [0]),
        ([], 3, [3]),
        ([SYSTEM], 1, [0, 1]),
        ([ASKED, SAID], 1, [1, 0, 0]),  # the conversation is about this picture
        ([SYSTEM, ASKED, SAID], 2, [0, 2, 0, 0]),
        ([Turn("user", "what?", 1), SAID], 2, [1, 0, 1]),
        ([ASKED, SAID, Turn("user", "and?", 1), SAID], 1, [0, 0, 1, 0, 0]),
    ],
)
def test_where_pictures_are_shown(history: list[Turn], count: int, expected: list[int]) -> None:
    turns = conversation("which?", history, count)
    assert images(turns) == expected
    assert [turn.text for turn in turns] == [*(turn.text for turn in history), "which?"]


@pytest.mark.parametrize(
    ("history", "match"),
    [
        ([SAID], "turn 1 of the history is the assistant's; expected the user's"),
        ([ASKED, ASKED], "turn 2 of the history is the user's; expected the assistant's"),
        ([SYSTEM, SYSTEM], "turn 2 of the history is the system's; expected the user's"),
        ([ASKED], "the history ends with the user's turn"),
        ([("what?", "a tag")], "an entry of the history is tuple; expected a Turn"),
        ([Turn("user", "what?", 2), SAID], "the history shows 2 pictures; expected at most 1"),
    ],
)
def test_histories_that_are_refused(history: list[Any], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        conversation("which?", history, 1)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (("robot", "hello"), "the role of a turn is 'robot'; expected system, user, assistant"),
        (("user", 3), "the text of a turn is int; expected text"),
        (("assistant", "a", 1), "a turn of the assistant has 1 images; only the user shows pictures"),
        (("user", "a", -1), "the images of a turn are '-1'; expected a number of at least 0"),
    ],
)
def test_turns_that_are_refused(entries: tuple[Any, ...], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        Turn(*entries)


def text_of(name: str, turns: tuple[Turn, ...]) -> str:
    tokenizer = llama_like(adds_bos=False)
    pieces = build_pieces(tokenizer, PromptSpec(template=name), turns)
    return "|".join(tokenizer.decode(list(piece), skip_special_tokens=False) for piece in pieces)


def test_the_turns_of_llava_s_conversations() -> None:
    """By LLaVA's own rules: separators after each role, the answer after a space."""
    turns = conversation("and where?", [ASKED, SAID])
    before, after = text_of("llava_v1", turns).split("|")
    assert before.endswith("answers to the human's questions. USER: ")
    assert after.replace(" ", "") == "\nwhat?ASSISTANT:atag</s>USER:andwhere?ASSISTANT:"
    assert "[/INST] a tag </s><s> [INST] and where? [/INST]" in text_of("mistral_instruct", turns)
    chatml = text_of("chatml_direct", turns)
    assert "assistant\na tag<|im_end|><|im_start|>user\nand where?<|im_end|><|im_start|>assistant" in chatml
    assert text_of("llava_v1", conversation("what?", images=0)).endswith("USER: what? ASSISTANT:")


@pytest.mark.parametrize(
    ("name", "turns", "match"),
    [
        ("llava_v1", (SYSTEM, Turn("user", "what?", 1)), "'llava_v1' has its own system text; leave the system turn"),
        ("plain", (Turn("user", "what?", 1), SAID, ASKED), "'plain' has one turn only; ask without a history"),
        ("v1_mmtag", (ASKED,), "'v1_mmtag' begins with an image; pass one"),
    ],
)
def test_what_llava_s_conversations_do_not_have(name: str, turns: tuple[Turn, ...], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        text_of(name, turns)
