"""From a question to token ids around an image, and from token ids back to text. Knows no model and no image."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tokenizers import Tokenizer

from sdrpn.errors import BadBundle, BadInput
from sdrpn.spec import PromptSpec

__all__ = ["Prompt", "TextStream", "build_prompt", "decode_text", "load_tokenizer"]

# The conversation that LLaVA-1.5 was trained with.
VICUNA_V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

INCOMPLETE = "\ufffd"  # what decoders put for bytes that are no character, or not yet one
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
WINDOW_TOKENS = 64  # a stream decodes this many tokens at most, again and again
KEPT_TOKENS = 16


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the one image."""

    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ids_after:
            raise BadInput("the prompt has no token after the image; expected the question there")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a `tokenizer.json`, without the truncation and padding that may be stored in it."""
    if not Path(path).is_file():
        raise BadBundle(f"{path} does not exist; questions need a tokenizer: export from a checkpoint that has one")
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exceptions
        raise BadBundle(f"{path} is not a tokenizer ({_one_line(error)}); export the checkpoint again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def build_prompt(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> Prompt:
    """Tokenise a question about one image.

    An image token that is written in the question is removed, as LLaVA does it: it can never become a second image.
    Raises: BadInput for a question without text, or a chat template that does not place exactly one image.
    """
    question = _cleaned(question, _image_texts(tokenizer, spec))
    if spec.template == "vicuna_v1":
        return _vicuna_v1_prompt(tokenizer, spec, question)
    text = _rendered(tokenizer, spec, question)
    # A template may write the start token itself: then the tokenizer's own rules must not add another.
    bos = _token_text(tokenizer, spec.bos_token_id)
    add_special_tokens = not (bos and text.startswith(bos))
    if spec.image_token_id is not None and tokenizer.id_to_token(spec.image_token_id) is not None:
        return _split_ids(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids, spec.image_token_id)
    parts = re.split(f"(?:{re.escape(spec.image_token)})+", text)
    if len(parts) != 2:
        _refuse_template(len(parts) - 1)
    before = tokenizer.encode(parts[0], add_special_tokens=add_special_tokens).ids
    return Prompt(tuple(before), tuple(tokenizer.encode(parts[1], add_special_tokens=False).ids))


def decode_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids, without special tokens."""
    text: str = tokenizer.decode([int(token_id) for token_id in ids], skip_special_tokens=True)
    return text


class TextStream:
    """Text piece by piece while tokens arrive; the pieces together are what `decode_text` makes of all tokens.

    A piece ends between characters. Single bytes are held back until a token that is none follows, because whether
    they are text depends on all bytes in a row.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the latest tokens
        self._window_text = ""  # what has been returned of them
        self._in_bytes = False

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is certain now, often none."""
        self._window.append(int(token_id))
        if BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(int(token_id)) or ""):
            self._in_bytes = True
        elif self._in_bytes:  # a token without text, such as a special one, does not end the bytes
            self._in_bytes = decode_text(self._tokenizer, [token_id]) == ""
        if self._in_bytes:
            return ""
        text = decode_text(self._tokenizer, self._window)
        return "" if text.endswith(INCOMPLETE) else self._returned(text)

    def finish(self) -> str:
        """The text that was held back; incomplete characters show as U+FFFD."""
        return self._returned(decode_text(self._tokenizer, self._window))

    def _returned(self, text: str) -> str:
        piece = text[len(self._window_text) :]
        self._window_text = text
        if len(self._window) > WINDOW_TOKENS:
            self._shorten()
        return piece

    def _shorten(self) -> None:
        """Forget old tokens, so that a long answer does not take ever longer; only where the rest reads the same."""
        kept = self._window[-KEPT_TOKENS:]
        text = decode_text(self._tokenizer, kept)
        if text and self._window_text.endswith(text):
            self._window, self._window_text = kept, text


def _vicuna_v1_prompt(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> Prompt:
    """The two sides of the image are tokenised apart, the start token comes first: LLaVA's ids, whatever the
    tokenizer's own rules add."""
    bos = () if spec.bos_token_id is None else (spec.bos_token_id,)
    before = tokenizer.encode(f"{VICUNA_V1_SYSTEM} USER: ", add_special_tokens=False).ids
    after = tokenizer.encode(f"\n{question} ASSISTANT:", add_special_tokens=False).ids
    return Prompt((*bos, *before), tuple(after))


def _cleaned(question: str, image_texts: Sequence[str]) -> str:
    if not isinstance(question, str):
        raise BadInput(f"the question is {type(question).__name__}; expected text")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"the question is not valid Unicode text ({error.reason}); decode it as UTF-8 first") from error
    cleaned = question
    while any(text in cleaned for text in image_texts):  # removing one can join another
        for text in image_texts:
            cleaned = cleaned.replace(text, "")
    if not cleaned.strip():
        raise BadInput(f"the question is empty (got {question[:40]!r}); expected some text")
    return cleaned if cleaned == question else cleaned.strip()


def _image_texts(tokenizer: Tokenizer, spec: PromptSpec) -> list[str]:
    texts = {spec.image_token, _token_text(tokenizer, spec.image_token_id)}
    return [text for text in texts if text]


def _token_text(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.id_to_token(token_id) or ""


def _rendered(tokenizer: Tokenizer, spec: PromptSpec, question: str) -> str:
    """Fill a chat template as Hugging Face does. It comes with a checkpoint, so it runs in a sandbox."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    content = [{"type": "image"}, {"type": "text", "text": question}]
    try:
        return environment.from_string(spec.template).render(
            messages=[{"role": "user", "content": content}],
            add_generation_prompt=True,
            bos_token=_token_text(tokenizer, spec.bos_token_id),
            eos_token=_token_text(tokenizer, next(iter(spec.eos_token_ids), None)),
            pad_token=_token_text(tokenizer, spec.pad_token_id),
            image_token=spec.image_token,
        )
    except Exception as error:  # templates are programs: they fail in any way
        raise BadInput(f"the chat template cannot be filled ({_one_line(error)}); expected one for images") from error


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
