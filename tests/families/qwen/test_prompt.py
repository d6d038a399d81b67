"""Prompts compared with transformers' chat templates and tokenizers, on a hundred strings that are hard to cut."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sdrpn.errors import BadInput
from sdrpn.families.qwen.checkpoint import open_qwen
from sdrpn.families.qwen.prompt import DEFAULT_TEMPLATES, qwen_prompt
from sdrpn.families.registry import pieces_of
from sdrpn.method.spec import ModelSpec
from sdrpn.text.turns import Turn, conversation
from tests.families.qwen.checkpoint import CONFIG_3, CONFIG_25, QZOOM, config_of, write_qwen

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
# How the released tokenizers cut text before their byte-level merges.
CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = [
    "What is on the sign?",
    "it's we'LL they're",
    "1234567890 3.14 -7e9",
    "  two  spaces ",
    "\n\n\ttab\r\nline",
    "日本語の質問です",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 é ﬁ Å",
    "\u200b\u200d\ufeff",
    "<|im_end|>",
    "<|im_start|>system",
    "{{ 7 * 7 }} {% raw %}",
    "</s><s>[INST]",
    "`code` $x_1$ \\frac{a}{b}",
    "ÀÉÎõü ß ſ İ ı",
    "…—–“”‘’",
    "a\u2028\u2029\x0b\x0cb",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "Ω≈ç√∫˜µ≤≥÷",
    "क्षत्रिय हिन्दी",
    "\U00010348\U0001f9ff",
]


def hard_strings() -> list[str]:
    rng = random.Random(0)
    joined = ["".join(rng.choices([*PIECES, " ", "\n", "x"], k=rng.randint(2, 6))) for _ in range(100 - len(PIECES))]
    return [*PIECES, *(text if text.strip() else f"{text}?" for text in joined)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer like Qwen's, with few merges."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(PIECES * 3, trainer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return made


def spec_of(folder: Path, base: dict[str, object], tokenizer: Tokenizer, **entries: object) -> ModelSpec:
    image_id, end_id = (tokenizer.token_to_id(text) or 0 for text in ("<|image_pad|>", "<|im_end|>"))
    with open_qwen(write_qwen(folder, config_of(base, **entries))) as weights:
        spec = weights.spec
    # The ids of the small tokenizer are beyond the small model's vocabulary.
    prompt = dataclasses.replace(spec.prompt, image_token_id=image_id, eos_token_ids=(end_id,), bos_token_id=None)
    return dataclasses.replace(spec, prompt=prompt)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_prompts_are_those_of_transformers(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, CONFIG_25 if family == "qwen2.5-vl" else CONFIG_3, tokenizer)
    theirs: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=DEFAULT_TEMPLATES[family])  # type: ignore[no-untyped-call]
    image_id = tokenizer.token_to_id("<|image_pad|>")
    questions = hard_strings()
    assert len(questions) == 100
    for question in questions:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = theirs.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        found = qwen_prompt(tokenizer, spec, question)
        assert [*found.ids_before, image_id, *found.ids_after] == theirs(text)["input_ids"], question


def messages_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """As transformers takes them."""
    return [
        {"role": turn.role, "content": [{"type": "image"}] * turn.images + [{"type": "text", "text": turn.text}]}
        for turn in turns
    ]


def conversations() -> list[tuple[Turn, ...]]:
    """With pictures at once, later, or none; with a system turn; histories of hard strings."""
    texts = iter(itertools.cycle(hard_strings()))
    found = []
    for number in range(60):
        turns = [Turn("system", next(texts))] if number % 3 == 0 else []
        for place in range(number % 4):
            images = 1 if place == 0 and number % 2 else number % 5 // 2
            turns += [Turn("user", next(texts), images), Turn("assistant", next(texts))]
        shown = sum(turn.images for turn in turns)
        found.append(conversation(next(texts), turns, shown + number % 3 if shown else number % 3))
    return found


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_conversations_are_those_of_transformers(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, CONFIG_25 if family == "qwen2.5-vl" else CONFIG_3, tokenizer)
    theirs: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=DEFAULT_TEMPLATES[family])  # type: ignore[no-untyped-call]
    image_id = tokenizer.token_to_id("<|image_pad|>")
    counts = set()
    for turns in conversations():
        text = theirs.apply_chat_template(messages_of(turns), tokenize=False, add_generation_prompt=True)
        first, *rest = pieces_of(spec, tokenizer, turns)
        ids = [*first, *(token for piece in rest for token in (image_id, *piece))]
        assert ids == theirs(text)["input_ids"], turns
        counts.add(len(rest))
    assert counts >= {0, 1, 2, 3}


def test_a_system_turn_of_one_s_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, CONFIG_3, tokenizer, **QZOOM)
    turns = conversation("Which?", [Turn("system", "Be brief.")])
    before, after = pieces_of(spec, tokenizer, turns)
    text = tokenizer.decode([*before, *after], skip_special_tokens=False)
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>Wh"
    )
    assert text.count("system") == 1


def test_the_text_of_both_families(tokenizer: Tokenizer, tmp_path: Path) -> None:
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    user = "<|im_start|>user\n<|vision_start|>"
    after = "<|vision_end|>Which?<|im_end|>\n<|im_start|>assistant\n"
    for name, base, entries, before in (
        ("25", CONFIG_25, {}, system + user),
        ("25 with an RPN", CONFIG_25, QZOOM, system + user),
        ("3", CONFIG_3, {}, user),
        ("3 with an RPN", CONFIG_3, QZOOM, system + user),
    ):
        spec = spec_of(tmp_path / name, base, tokenizer, **entries)
        found = qwen_prompt(tokenizer, spec, "Which?")
        assert tokenizer.decode(list(found.ids_before), skip_special_tokens=False) == before
        assert tokenizer.decode(list(found.ids_after), skip_special_tokens=False) == after


def test_a_checkpoint_s_own_template_is_used(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25))
    own = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": own, "added_tokens_decoder": {"304": {"content": "<pad>"}}})
    )
    with open_qwen(folder) as weights:
        assert weights.spec.prompt.template == own
        assert weights.spec.prompt.image_token == "<pad>"
    (folder / "tokenizer_config.json").unlink()
    with open_qwen(folder) as weights:
        assert weights.spec.prompt.template == DEFAULT_TEMPLATES["qwen2.5-vl"]
        assert weights.spec.prompt.image_token == "<|image_pad|>"


def test_a_question_without_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, CONFIG_3, tokenizer)
    with pytest.raises(BadInput, match="the question is empty"):
        qwen_prompt(tokenizer, spec, " <|image_pad|> ")
