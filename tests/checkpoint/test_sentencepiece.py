"""What a `tokenizer.model` says about itself is followed, or refused by name: never other ids than SentencePiece's."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sdrpn.checkpoint.sentencepiece import tokenizer_from_sentencepiece
from sdrpn.errors import BadCheckpoint
from sdrpn.text.tokenizer import load_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

WORDS = "a blue cat code dog in is number of on plate red reads sat says the user what where which yes hyphenation"
CHARACTERS = "abcdehost  \n\t.,01é語к🙂-+*()[]{}|^$\\"


def train(folder: Path, **options: Any) -> Path:
    """A small BPE model as LLaMA's; `options` of SentencePiece's trainer."""
    rng = random.Random(0)
    lines = [(" " * rng.choice((1, 1, 1, 2, 4))).join(rng.choices(WORDS.split(), k=9)) for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        **{
            "vocab_size": 420,
            "hard_vocab_limit": False,
            "model_type": "bpe",
            "byte_fallback": True,
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "normalization_rule_name": "identity",
            "unk_id": 0,
            "bos_id": 1,
            "eos_id": 2,
            "pad_id": -1,
            "minloglevel": 2,
            **options,
        },
    )
    return folder / "tokenizer.model"


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    """The same model after a change of what its file says."""
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = messages.ModelProto.FromString(path.read_bytes())
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def converted(path: Path) -> Tokenizer:
    """As it is in a bundle: written, judged and read."""
    target = path.with_name("tokenizer.json")
    tokenizer_from_sentencepiece(path, add_bos=False).save(str(target))
    return load_tokenizer(target)


def require_same(path: Path, *texts: str) -> None:
    tokenizer, original = converted(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    rng = random.Random(1)
    random_texts = ["".join(rng.choices([*CHARACTERS, *texts], k=rng.randrange(30))) for _ in range(500)]
    for text in (*texts, *random_texts):
        assert tokenizer.encode(text).ids == original.encode(text), repr(text)


@pytest.mark.parametrize(
    "symbols",
    [
        ["hen"],
        ["<|im_start|>", "<|im_end|>"],
        ["th", "the", "at"],  # the longest of several at one place counts
        ["abc", "bcd"],  # the first of two that overlap
        ["▁▁", "▁▁▁", "\n\n", "\t"],
        ["a.b*c", "(x)", "[y]", "\\d+", "é語", "🙂", "-"],
        [str(digit) for digit in range(10)],
    ],
)
def test_user_defined_pieces_are_found_first(tmp_path: Path, symbols: list[str]) -> None:
    """Inside words too: that is what the conversion of user-defined pieces to added tokens gets wrong."""
    path = train(tmp_path, user_defined_symbols=symbols)
    contexts = ("{}", "a{}b", "hyp{}ation", " {} ", "{}{}", "x {} y", "{}the", "\n{}\n")
    texts = [context.replace("{}", symbol.replace("▁", " ")) for symbol in symbols for context in contexts]
    require_same(path, *symbols, *texts, "abcd", "bcdabc", "that the bath")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("remove", [True, False])
def test_spaces(tmp_path: Path, prefix: bool, remove: bool) -> None:
    path = train(tmp_path, add_dummy_prefix=prefix, remove_extra_whitespaces=remove, allow_whitespace_only_pieces=True)
    require_same(path, "", " ", "   ", " the  cat ", "  a", "a  ", "\n  \n", "the\tcat")
    for text in ("the cat", "cat"):
        tokenizer = converted(path)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_no_bytes_to_fall_back_on(tmp_path: Path) -> None:
    require_same(train(tmp_path, byte_fallback=False, vocab_size=160), "語", "a語語b", "語 語", "🙂")


@pytest.mark.parametrize("rules", ["nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"])
def test_changed_characters_are_refused(tmp_path: Path, rules: str) -> None:
    """No normaliser of the library is exactly SentencePiece's: marks in a row, for one."""
    with pytest.raises(BadCheckpoint, match=f"changes characters by the rules '{rules}', .*; put a tokenizer.json"):
        converted(train(tmp_path, normalization_rule_name=rules))


@pytest.mark.parametrize("model_type", ["unigram", "word", "char"])
def test_other_models_are_refused(tmp_path: Path, model_type: str) -> None:
    path = train(tmp_path, model_type=model_type, byte_fallback=False, vocab_size=60)
    with pytest.raises(BadCheckpoint, match=f"is a {model_type.title().replace('Bpe', 'BPE')} model, which"):
        converted(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda proto: setattr(proto.normalizer_spec, "escape_whitespaces", False), "keeps spaces as they are"),
        (lambda proto: setattr(proto.trainer_spec, "treat_whitespace_as_suffix", True), "puts spaces after words"),
        (
            lambda proto: setattr(proto.denormalizer_spec, "precompiled_charsmap", proto.normalizer_spec.name.encode()),
            "changes characters of decoded text",
        ),
    ],
)
def test_what_the_library_cannot_do(tmp_path: Path, change: Callable[[Any], None], match: str) -> None:
    path = changed(train(tmp_path), change)
    with pytest.raises(BadCheckpoint, match=rf"tokenizer\.model ({match}, which cannot be converted|cannot be conv)"):
        converted(path)


def test_equal_scores_that_decide(tmp_path: Path) -> None:
    """Pieces that were added without scores: SentencePiece takes the leftmost, the library the first in its list."""

    def add(proto: Any) -> None:
        for text in ("xy", "yz", "zx", "xz", "zy", "yx"):
            proto.pieces.add(piece=text, score=-1.0, type=1)
        for text in "xyz":
            if text not in {piece.piece for piece in proto.pieces}:
                proto.pieces.add(piece=text, score=-2.0, type=1)

    path = changed(train(tmp_path), add)
    with pytest.raises(BadCheckpoint, match=r"cannot be converted exactly: .* became .*, expected .*; put a token"):
        converted(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:9e5\nsize 499723\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_placeholders(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=f"is a {what}.*; fetch"):
        converted(path)
