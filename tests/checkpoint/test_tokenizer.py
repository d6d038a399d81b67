"""`tokenizer.json`, copied or converted, gives the ids that LLaVA's own (slow, "legacy") tokenizer gives."""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sdrpn.checkpoint.tokenizer import write_tokenizer
from sdrpn.errors import BadCheckpoint, MissingDependency

sentencepiece = pytest.importorskip("sentencepiece")

WORDS = "a blue cat code dog in is number of on plate red reads sat says the user what where which yes"
TEXTS = [
    "",
    " ",
    "  ",
    "what is on the plate",
    " leading",
    "trailing ",
    "   many     spaces" + " " * 23 + "here   ",
    "\n",
    "\nWhat is on the plate? ASSISTANT:",
    "tabs\tand\r\nlines\n\n\nhere",
    "日本語 Привет ไทย",
    "e\u0301 é 🙂👩‍👩‍👧",
    "1234567890 3.14",
    "under_score ▁ and <0x0A> as text",
    "\u00a0\u200b",
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model trained as LLaMA's: BPE with byte fallback, nothing normalised, ids 0, 1, 2."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    rng = random.Random(0)
    lines = [(" " * rng.choice((1, 1, 1, 2, 4))).join(rng.choices(WORDS.split(), k=9)) for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return folder


@pytest.fixture
def source(model_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint's folder with nothing but `tokenizer.model`."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes((model_dir / "tokenizer.model").read_bytes())
    return folder


def converted(source: Path) -> Tokenizer:
    target = source.parent / "tokenizer.json"
    assert write_tokenizer(source, target)
    return Tokenizer.from_file(str(target))


def original(source: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


class TestConverted:
    @pytest.mark.parametrize("text", TEXTS)
    def test_the_ids_are_those_of_sentencepiece(self, source: Path, text: str) -> None:
        found = converted(source).encode(text, add_special_tokens=False).ids
        assert found == original(source).encode(text)

    def test_the_ids_are_those_of_sentencepiece_for_random_text(self, source: Path) -> None:
        rng, tokenizer, expected = random.Random(1), converted(source), original(source)
        for _ in range(500):
            text = "".join(rng.choices("abcdehost  \n\t.,01é語к🙂", k=rng.randrange(40)))
            assert tokenizer.encode(text, add_special_tokens=False).ids == expected.encode(text), repr(text)

    def test_runs_of_spaces_are_merged_by_score_not_by_id(self, source: Path) -> None:
        """As in LLaMA's vocabulary, where "▁▁" has a low id and the worst score of all."""
        edited = source / "tokenizer.model"
        edited.write_bytes(with_worst_score_for_spaces(edited.read_bytes()))
        pieces = original(source)
        spaces = [i for i in range(pieces.get_piece_size()) if set(pieces.id_to_piece(i)) == {"▁"}]
        assert len(spaces) > 1
        tokenizer = converted(source)
        for text in ("  the  cat", "a" + " " * 9 + "dog", " ", "   ", " " * 17, "the cat  "):
            assert tokenizer.encode(text, add_special_tokens=False).ids == pieces.encode(text), repr(text)

    @pytest.mark.parametrize("text", [text for text in TEXTS if text and "▁" not in text])
    def test_text_comes_back(self, source: Path, text: str) -> None:
        tokenizer = converted(source)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text

    def test_bos_comes_first(self, source: Path) -> None:
        tokenizer = converted(source)
        assert tokenizer.encode("the cat").ids == [1, *original(source).encode("the cat")]
        assert tokenizer.encode("").ids == [1]

    @pytest.mark.parametrize("legacy", [None, True, False])
    def test_a_special_token_in_the_text_is_followed_by_a_new_piece_of_text(
        self, source: Path, legacy: bool | None
    ) -> None:
        """The slow tokenizer hands SentencePiece what lies between special tokens, which puts a space before each."""
        if legacy is not None:
            write_json(source / "tokenizer_config.json", {"legacy": legacy, "tokenizer_class": "LlamaTokenizer"})
        pieces = original(source)
        found = converted(source).encode("the cat</s>dog<unk> red", add_special_tokens=False).ids
        assert found == [*pieces.encode("the cat"), 2, *pieces.encode("dog"), 0, *pieces.encode(" red")]

    def test_a_config_may_ask_for_no_bos(self, source: Path) -> None:
        write_json(source / "tokenizer_config.json", {"add_bos_token": False})
        assert converted(source).encode("the cat").ids == original(source).encode("the cat")

    def test_tokens_added_later_keep_their_ids(self, source: Path) -> None:
        size = original(source).get_piece_size()
        write_json(source / "added_tokens.json", {"<im_patch>": size + 1, "<pad>": size})
        special = {"content": "<image>", "special": True, "lstrip": False, "rstrip": False, "single_word": False}
        write_json(source / "tokenizer_config.json", {"added_tokens_decoder": {str(size + 2): special}})
        tokenizer = converted(source)
        assert [tokenizer.token_to_id(text) for text in ("<pad>", "<im_patch>", "<image>")] == [
            size,
            size + 1,
            size + 2,
        ]
        assert tokenizer.encode("cat<image>dog", add_special_tokens=False).ids.count(size + 2) == 1
        assert tokenizer.decode([size + 2, *original(source).encode("cat")]) == "cat"

    def test_an_added_token_whose_id_leaves_a_gap(self, source: Path) -> None:
        write_json(source / "added_tokens.json", {"<pad>": 32000})
        with pytest.raises(BadCheckpoint, match=r"'<pad>' should have the id 32000 and would get \d+; put a tokenizer"):
            converted(source)

    @pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff\xff\xff\xff"])
    def test_a_broken_model(self, source: Path, content: bytes) -> None:
        (source / "tokenizer.model").write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"tokenizer\.model cannot be converted .*; put a tokenizer\.json"):
            converted(source)
        assert not (source.parent / "tokenizer.json").exists()

    def test_a_model_that_would_not_give_the_same_ids(self, source: Path) -> None:
        """A Unigram model has no merges that could be derived from its scores."""
        lines = iter([" ".join(random.Random(i).choices(WORDS.split(), k=9)) for i in range(300)])
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_prefix=str(source / "tokenizer"),
            vocab_size=320,
            hard_vocab_limit=False,
            model_type="unigram",
            byte_fallback=True,
            minloglevel=2,
        )
        with pytest.raises(BadCheckpoint, match=r"is a Unigram model, which cannot be converted exactly; put a token"):
            converted(source)

    def test_without_sentencepiece(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sentencepiece", None)
        with pytest.raises(MissingDependency, match=r"needs sentencepiece; install it: pip install 'sdrpn\[export\]'"):
            converted(source)


def with_worst_score_for_spaces(model: bytes) -> bytes:
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = messages.ModelProto.FromString(model)
    for piece in proto.pieces:
        if set(piece.piece) == {"▁"}:
            piece.score = -1e9
    content: bytes = proto.SerializeToString()
    return content


class TestCopied:
    def test_a_tokenizer_json_goes_before_the_model(self, source: Path) -> None:
        Tokenizer.from_str(converted(source).to_str()).save(str(source / "tokenizer.json"))
        (source / "tokenizer.model").write_bytes(b"never read")
        target = source.parent / "copy.json"
        assert write_tokenizer(source, target)
        assert target.read_bytes() == (source / "tokenizer.json").read_bytes()

    @pytest.mark.parametrize("text", ["", "{", "{}", '{"model": 1}'])
    def test_a_broken_one(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(BadCheckpoint, match=r"tokenizer\.json is not a tokenizer that can be read .*; replace or"):
            write_tokenizer(tmp_path, tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("with_folder", [True, False])
def test_no_tokenizer_at_all_drops_an_older_one(tmp_path: Path, with_folder: bool) -> None:
    (tmp_path / "out.json").write_text("from an older export")
    assert not write_tokenizer(tmp_path if with_folder else None, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
