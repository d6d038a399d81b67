"""Untrusted tokenizer files: what could loop or grow is refused before it runs, what panics is one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sdrpn.errors import BadBundle
from sdrpn.families.llava.prompt import build_prompt
from sdrpn.method.spec import PromptSpec
from sdrpn.text.tokenizer import MAX_DECODED_CHARACTERS, decode_text, encode_text, load_tokenizer, token_text
from sdrpn.text.tokenizer_limits import find_excess
from tests.tiny_tokenizers import gpt_like, llama_like

# As published tokenizers have them.
GOOD = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    r"[\p{Han}&&[^\p{L}]]+",
    r"[0-9][0-9][0-9]",
    r"\A +",
]
BAD = {
    r"(a+)+$": "can match in several ways",
    r"(a*)*": "can match in several ways",
    r"(?:a|a)*b": "can match in several ways",
    r"(?:a?a?)*": "can match in several ways",
    r"(?=(x|x)+)y": "can match in several ways",
    r"(.*)(.*)(.*)(.*)(.*)$": "repeats too much in a row",
    r"a{1,100}b{1,100}c*d+e*f": "repeats too much in a row",
    r"a**": "repeats a repeat",
    r"a{1001}": "more than 1000 times",
    r"(a)\1": "refers to itself",
    r"(?<n>a)\k<n>": "refers to itself",
    r"\g<0>": "refers to itself",
    r"(?(1)a|b)": "cannot be understood",
    r"(?~a)": "cannot be understood",
    r"(" * 40 + "a" + ")" * 40: "nested too deeply",
}


@pytest.mark.parametrize("pattern", GOOD)
def test_expressions_of_published_tokenizers(pattern: str) -> None:
    assert find_excess({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}}}) is None


@pytest.mark.parametrize("pattern", BAD)
@pytest.mark.parametrize("where", ["pre_tokenizer", "normalizer", "decoder"])
def test_expressions_that_may_never_end(pattern: str, where: str) -> None:
    key = {"pre_tokenizer": "pretokenizers", "normalizer": "normalizers", "decoder": "decoders"}[where]
    step = {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
    excess = find_excess({where: {"type": "Sequence", key: [step]}})
    assert excess is not None
    assert excess.startswith(f"its {where} has the regular expression")
    assert BAD[pattern] in excess


def replace(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def chain(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", name: steps}


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}}, "regular expression"),
        ("normalizer", replace("a", "b" * 2000), "its normalizer can make more than 1000 characters of one"),
        ("normalizer", chain("normalizers", [replace("a", "aa")] * 12), "more than 1000 characters"),
        ("normalizer", replace("", "b" * 1000), "more than 1000 characters"),
        ("normalizer", chain("normalizers", [{"type": "NFKD"}] * 3), "more than 1000 characters"),
        ("normalizer", {"type": "Prepend", "prepend": "b" * 1000}, "more than 1000 characters"),
        ("normalizer", chain("normalizers", [{"type": "Lowercase"}] * 65), "has 65 steps; expected 64 at most"),
        ("decoder", replace("a", "b" * 20), "its decoder can make more than 16 characters of one"),
        ("post_processor", {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}, "repeats the text"),
        (
            "post_processor",
            {"single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {"<s>": {"ids": [1] * 300}}},
            "adds more than 256 tokens",
        ),
        ("model", {"max_input_chars_per_word": 10**9}, "takes words of 1000000000 characters"),
    ],
)
def test_what_is_too_much(part: str, value: dict[str, Any], match: str) -> None:
    assert match in str(find_excess({part: value}))


def edited(path: Path, tokenizer: Tokenizer, **parts: Any) -> Path:
    value = json.loads(tokenizer.to_str())
    value.update(parts)
    path.write_text(json.dumps(value))
    return path


def test_real_ones_are_not_too_much(tmp_path: Path) -> None:
    for tokenizer in (llama_like(image=True), gpt_like()):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        {"normalizer": chain("normalizers", [replace("a", "aa")] * 40)},
        {"decoder": replace("a", "a" * 10_000)},
    ],
)
def test_files_that_are_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    path = edited(tmp_path / "tokenizer.json", llama_like(), **parts)
    with pytest.raises(BadBundle, match=r"tokenizer\.json is not used: its .*; use the tokenizer\.json that the model"):
        load_tokenizer(path)


def test_placeholders_and_large_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1795188\n")
    with pytest.raises(BadBundle, match=r"is a git-lfs pointer to the file of 1\.8 MB, not the file; fetch it: "):
        load_tokenizer(path)
    with path.open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(BadBundle, match=r"has 68\.2 MB; expected a tokenizer of 67\.1 MB at most"):
        load_tokenizer(path)


def test_a_panic_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Rust's panics are not an `Exception`. Such a tokenizer does not get through `load_tokenizer`."""
    value = json.loads(llama_like().to_str())
    value["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(value))
    with pytest.raises(
        BadBundle, match=r"the tokenizer cannot read this text .*; its tokenizer\.json is faulty"
    ) as one:
        encode_text(tokenizer, "a" * 40 + "!")
    assert "\n" not in str(one.value)
    with pytest.raises(BadBundle, match="cannot read this text"):
        build_prompt(tokenizer, PromptSpec(), "a" * 40 + "!")
    capfd.readouterr()  # Rust reports its panics by itself


def test_tokens_that_are_too_long() -> None:
    tokenizer = llama_like()
    tokenizer.add_tokens(["x" * (MAX_DECODED_CHARACTERS // 2)])
    token_id = tokenizer.get_vocab_size() - 1
    assert len(decode_text(tokenizer, [token_id])) == MAX_DECODED_CHARACTERS // 2
    with pytest.raises(BadBundle, match=r"cannot write these tokens .*more than 1000000 characters"):
        decode_text(tokenizer, [token_id] * 3)


@pytest.mark.parametrize("token_id", [None, -1, 2**32, 10**30])
def test_ids_that_no_tokenizer_has(token_id: int | None) -> None:
    assert token_text(llama_like(), token_id) == ""
