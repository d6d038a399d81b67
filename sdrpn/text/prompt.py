"""Turn a question, or a conversation, into token ids around images. Knows no model and no image."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from tokenizers import Tokenizer

from sdrpn.errors import BadInput
from sdrpn.method.spec import PromptSpec
from sdrpn.text.tokenizer import TextStream, decode_text, encode_text, load_tokenizer, token_text
from sdrpn.text.turns import Turn

__all__ = [
    "Pieces",
    "Prompt",
    "TextStream",
    "build_pieces",
    "build_prompt",
    "cleaned_question",
    "cleaned_turns",
    "decode_text",
    "load_tokenizer",
]

# The ids of a conversation about n images, in n + 1 pieces: an image stands between each two.
Pieces: TypeAlias = tuple[tuple[int, ...], ...]

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
    before, after = build_pieces(tokenizer, spec, (Turn("user", question, images=1),))
    return Prompt(before, after)


def build_pieces(tokenizer: Tokenizer, spec: PromptSpec, turns: Sequence[Turn]) -> Pieces:
    """Tokenise a conversation by a chat template, cut at its images.

    Raises: BadInput for a last turn without text, or a chat template that does not place the images of the turns;
        BadBundle where the tokenizer fails.
    """
    from sdrpn.text.chat_template import render_turns

    turns = cleaned_turns(tokenizer, spec, turns)
    images = sum(turn.images for turn in turns)
    special_tokens = _special_tokens(tokenizer, spec)
    text = render_turns(spec.template, turns, spec.image_token, special_tokens)
    # A template may write the BOS token itself: then the tokenizer must not add a second one.
    bos = special_tokens.get("bos_token")
    add_special_tokens = not (bos and text.startswith(bos))
    if spec.image_token_id is not None and token_text(tokenizer, spec.image_token_id):
        ids = encode_text(tokenizer, text, add_special_tokens=add_special_tokens)
        return _split_ids(ids, spec.image_token_id, images)
    parts = re.split(f"(?:{re.escape(spec.image_token)})+", text)
    if len(parts) != images + 1:
        _refuse_template(len(parts) - 1, images)
    first, *rest = parts
    before = encode_text(tokenizer, first, add_special_tokens=add_special_tokens)
    return (tuple(before), *(tuple(encode_text(tokenizer, part)) for part in rest))


def cleaned_turns(tokenizer: Tokenizer, spec: PromptSpec, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns without the image tokens that are written in them; the last one, the question, has text.

    Raises: BadInput
    """
    image_texts = _image_texts(tokenizer, spec)
    earlier = (dataclasses.replace(turn, text=_checked_text(turn.text, image_texts)) for turn in turns[:-1])
    question = dataclasses.replace(turns[-1], text=cleaned_question(tokenizer, spec, turns[-1].text))
    return (*earlier, question)


def cleaned_question(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> str:
    """The question without the image tokens that are written in it, so that they cannot become a second image.

    Raises: BadInput for a question without text
    """
    return _cleaned(question, _image_texts(tokenizer, spec))


def _image_texts(tokenizer: Tokenizer, spec: PromptSpec) -> list[str]:
    return [text for text in {spec.image_token, token_text(tokenizer, spec.image_token_id)} if text]


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
    cleaned = _checked_text(question, image_texts)
    if not cleaned.strip():
        raise BadInput(f"the question is empty (got {question[:40]!r}); expected some text")
    return cleaned if cleaned == question else cleaned.strip()


def _checked_text(question: str, image_texts: Sequence[str]) -> str:
    if not isinstance(question, str):
        raise BadInput(f"the question is {type(question).__name__}; expected text")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise BadInput(f"the question has {len(question)} characters; expected {MAX_QUESTION_CHARACTERS} at most")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the question is not valid Unicode text ({error.reason}); decode it as UTF-8 first") from error
    return _without(question, image_texts)


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


def _split_ids(ids: Sequence[int], image_token_id: int, images: int) -> Pieces:
    pieces: list[tuple[int, ...]] = []
    start, runs = 0, 0
    for is_image, run in itertools.groupby(range(len(ids)), key=lambda place: ids[place] == image_token_id):
        if not is_image:
            continue
        places = list(run)
        runs += 1
        pieces.append(tuple(ids[start : places[0]]))
        start = places[-1] + 1
    if runs != images:
        _refuse_template(runs, images)
    return (*pieces, tuple(ids[start:]))


def _refuse_template(found: int, images: int) -> NoReturn:
    if images == 1:
        raise BadInput(
            f"the chat template places {found or 'no'} images; expected exactly one for a question about one image"
        )
    raise BadInput(
        f"the chat template places {found or 'no'} images of {images or 'none'}; expected one that places every image "
        "by itself, with a text between each two"
    )
