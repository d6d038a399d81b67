"""Text to token ids and back, with an untrusted `tokenizer.json`. Knows no prompt and no model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sdrpn.errors import BadBundle
from sdrpn.host.placeholder import describe_placeholder
from sdrpn.host.sizes import text_from_bytes
from sdrpn.text.tokenizer_limits import MAX_TOKENIZER_BYTES, find_excess

__all__ = ["TextStream", "decode_text", "encode_text", "load_tokenizer", "prepared_tokenizer", "token_text"]

INCOMPLETE = "\ufffd"  # what decoders write for bytes that are not a character, or not yet one
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
WINDOW_TOKENS = 64  # a stream decodes at most this many tokens at each step
KEPT_TOKENS = 16
MAX_DECODED_CHARACTERS = 1_000_000  # an answer of thousands of tokens has a tenth of this
_PUBLISHED = "its tokenizer.json is faulty: use the one that the model was published with"
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a `tokenizer.json`, ignoring truncation and padding stored in it.

    Raises: BadBundle for a file that is not a tokenizer, or whose rules could loop or make the text grow.
    """
    path = Path(path)
    _require_tokenizer_file(path)
    with _failing(f"{path} is not a tokenizer that can be read", "export the checkpoint again"):
        return prepared_tokenizer(Tokenizer.from_file(os.fspath(path)), path)


def prepared_tokenizer(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """The same, without truncation and padding.

    Args:
        path: the file that it came from, for messages
    Raises: BadBundle for one that could loop or grow
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    excess = find_excess({name: _state(getattr(tokenizer, name)) for name in _PARTS} | {"model": _model(tokenizer)})
    if excess is not None:
        raise BadBundle(f"{path} is not used: {excess}; use the tokenizer.json that the model was published with")
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text. Raises BadBundle where the tokenizer fails on it."""
    with _failing("the tokenizer cannot read this text", _PUBLISHED):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return ids


def decode_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids, without special tokens. Raises BadBundle where the tokenizer fails on them."""
    with _failing("the tokenizer cannot write these tokens", _PUBLISHED):
        ids = [int(token_id) for token_id in ids]
        if sum(len(token_text(tokenizer, token_id)) for token_id in ids) > MAX_DECODED_CHARACTERS:
            raise ValueError(f"they have more than {MAX_DECODED_CHARACTERS} characters")
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def token_text(tokenizer: Tokenizer, token_id: int | None) -> str:
    """The text of a token; empty for None and for ids that no tokenizer has, such as -1."""
    if token_id is None or not 0 <= token_id < 2**32:
        return ""
    text: str | None = tokenizer.id_to_token(token_id)
    return text or ""


class TextStream:
    """Decode text piece by piece as tokens arrive; joined, the pieces equal `decode_text` of all tokens.

    A piece ends at a character boundary. Byte tokens are held back until another token follows, because whether they
    are text depends on the whole run of bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the latest tokens
        self._window_text = ""  # the part of their text that has been returned
        self._in_bytes = False

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is final now, often none."""
        self._window.append(int(token_id))
        if BYTE_TOKEN.fullmatch(token_text(self._tokenizer, int(token_id))):
            self._in_bytes = True
        elif self._in_bytes:  # a token without text, such as a special one, does not end the bytes
            self._in_bytes = decode_text(self._tokenizer, [token_id]) == ""
        if self._in_bytes:
            return ""
        text = decode_text(self._tokenizer, self._window)
        return "" if text.endswith(INCOMPLETE) else self._returned(text)

    def finish(self) -> str:
        """The text that was held back; incomplete characters become U+FFFD."""
        return self._returned(decode_text(self._tokenizer, self._window))

    def _returned(self, text: str) -> str:
        piece = text[len(self._window_text) :]
        self._window_text = text
        if len(self._window) > WINDOW_TOKENS:
            self._shorten()
        return piece

    def _shorten(self) -> None:
        """Drop old tokens, so that the cost per token stays constant; only where the rest decodes to the same text."""
        kept = self._window[-KEPT_TOKENS:]
        text = decode_text(self._tokenizer, kept)
        if text and self._window_text.endswith(text):
            self._window, self._window_text = kept, text


def _require_tokenizer_file(path: Path) -> None:
    if not path.is_file():
        raise BadBundle(f"{path} does not exist; questions need a tokenizer: export from a checkpoint that has one")
    placeholder = describe_placeholder(path)
    if placeholder is not None:
        raise BadBundle(placeholder)
    size_bytes = path.stat().st_size
    if size_bytes > MAX_TOKENIZER_BYTES:
        raise BadBundle(
            f"{path} has {text_from_bytes(size_bytes)}; expected a tokenizer of "
            f"{text_from_bytes(MAX_TOKENIZER_BYTES)} at most: use the one that the model was published with"
        )


@contextmanager
def _failing(what: str, advice: str) -> Iterator[None]:
    """Turn errors of the library into BadBundle: bare Exceptions, and BaseExceptions where its Rust code panics."""
    try:
        yield
    except BadBundle:
        raise
    except Exception as error:
        raise BadBundle(f"{what} ({_one_line(error)}); {advice}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise BadBundle(f"{what} ({_one_line(error)}); {advice}") from None


def _state(part: Any) -> Any:
    """The JSON of a part, as in the file."""
    return None if part is None else json.loads(part.__getstate__())


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `model` section of the file without its vocabulary."""
    longest = getattr(tokenizer.model, "max_input_chars_per_word", None)
    return {} if longest is None else {"max_input_chars_per_word": longest}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
