"""Turn a question into token ids around an image. Knows no model and no image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from tokenizers import Tokenizer

from sdrpn.errors import BadInput
from sdrpn.method.spec import PromptSpec
from sdrpn.text.tokenizer import TextStream, decode_text, encode_text, load_tokenizer, token_text

__all__ = ["Prompt", "TextStream", "build_prompt", "cleaned_question", "decode_text", "load_tokenizer"]

MAX_QUESTION_CHARACTERS = 1_000_000  # more than any context holds


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the one image."""

    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ids_after:
            raise BadInput("the prompt has no token after the image; expected the question there")


def build_prompt(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> Prompt:
    """Tokenise a question about one image by a chat template.

    Raises: BadInput for a question without text, or a chat template that does not place exactly one image; BadBundle
        where the tokenizer fails.
    """
    from sdrpn.text.chat_template import render_chat

    question = cleaned_question(tokenizer, spec, question)
    special_tokens = _special_tokens(tokenizer, spec)
    text = render_chat(spec.template, question, spec.image_token, special_tokens)
    # A template may write the BOS token itself: then the tokenizer must not add a second one.
    bos = special_tokens.get("bos_token")
    add_special_tokens = not (bos and text.startswith(bos))
    if spec.image_token_id is not None and token_text(tokenizer, spec.image_token_id):
        ids = encode_text(tokenizer, text, add_special_tokens=add_special_tokens)
        return _split_ids(ids, spec.image_token_id)
    parts = re.split(f"(?:{re.escape(spec.image_token)})+", text)
    if len(parts) != 2:
        _refuse_template(len(parts) - 1)
    before = encode_text(tokenizer, parts[0], add_special_tokens=add_special_tokens)
    return Prompt(tuple(before), tuple(encode_text(tokenizer, parts[1])))


def cleaned_question(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> str:
    """The question without the image tokens that are written in it, so that they cannot become a second image.

    Raises: BadInput for a question without text
    """
    image_text = token_text(tokenizer, spec.image_token_id)
    return _cleaned(question, [text for text in {spec.image_token, image_text} if text])


def _special_tokens(tokenizer: Tokenizer, spec: PromptSpec) -> dict[str, str]:
    """Special tokens by the names that templates use: the tokenizer's own texts, else those of the model's ids."""
    by_ids = {
        "bos_token": token_text(tokenizer, spec.bos_token_id),
        "eos_token": token_text(tokenizer, next(iter(spec.eos_token_ids), None)),
        "pad_token": token_text(tokenizer, spec.pad_token_id),
        "image_token": spec.image_token,
    }
    # A missing token stays undefined in the template, which may test for that.
    return {name: text for name, text in {**by_ids, **spec.special_tokens}.items() if text}


def _cleaned(question: str, image_texts: Sequence[str]) -> str:
    if not isinstance(question, str):
        raise BadInput(f"the question is {type(question).__name__}; expected text")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise BadInput(f"the question has {len(question)} characters; expected {MAX_QUESTION_CHARACTERS} at most")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the question is not valid Unicode text ({error.reason}); decode it as UTF-8 first") from error
    cleaned = _without(question, image_texts)
    if not cleaned.strip():
        raise BadInput(f"the question is empty (got {question[:40]!r}); expected some text")
    return cleaned if cleaned == question else cleaned.strip()


def _without(question: str, texts: Sequence[str]) -> str:
    """Remove texts from a question in one pass, including those that only form once another is removed."""
    if not any(text in question for text in texts):
        return question
    kept: list[str] = []
    endings = {text[-1] for text in texts}
    for character in question:
        kept.append(character)
        if character in endings:
            for text in texts:
                if "".join(kept[-len(text) :]) == text:
                    del kept[-len(text) :]
    return "".join(kept)


def _split_ids(ids: Sequence[int], image_token_id: int) -> Prompt:
    places = [place for place, token_id in enumerate(ids) if token_id == image_token_id]
    runs = sum(place == 0 or ids[place - 1] != image_token_id for place in places)
    if runs != 1:
        _refuse_template(runs)
    return Prompt(tuple(ids[: places[0]]), tuple(ids[places[-1] + 1 :]))


def _refuse_template(images: int) -> NoReturn:
    raise BadInput(
        f"the chat template places {images or 'no'} images; expected exactly one for a question about one image"
    )
