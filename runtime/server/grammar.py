"""Answers by a JSON schema: llguidance says after every token which may follow. Knows no session."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import llguidance
import numpy as np
import numpy.typing as npt

from sdrpn.errors import RunFailed
from sdrpn.runtime.server.faults import Fault, shown
from sdrpn.runtime.server.requests import ResponseFormat

__all__ = ["Grammars", "JsonConstraint"]

_MOST_SCHEMA_BYTES = 64 << 10
_ANY_OBJECT = {"type": "object"}
FloatArray = npt.NDArray[np.float32]


class Grammars:
    """Makes the constraint of each answer with one tokenizer. Its methods block: call them in a thread."""

    def __init__(self, tokenizer_file: Path, vocabulary: int, eos_token_ids: Sequence[int]) -> None:
        self._file, self._vocabulary, self._eos = tokenizer_file, vocabulary, list(eos_token_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def constraint(self, wanted: ResponseFormat | None) -> JsonConstraint | None:
        """What a format asks for; None: any text. Raises Fault for a schema that cannot be followed."""
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_schema" and wanted.json_schema is None:
            raise Fault(400, "response_format.json_schema is missing", param="response_format.json_schema")
        schema = wanted.json_schema.schema_ if wanted.json_schema is not None else _ANY_OBJECT
        text = json.dumps(schema)
        if len(text) > _MOST_SCHEMA_BYTES:
            raise Fault(
                400,
                f"the JSON schema has {len(text):,} bytes; the limit is {_MOST_SCHEMA_BYTES:,}",
                param="response_format",
            )
        try:
            # White space between tokens is left out: a model could write it without end.
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise Fault(400, f"the JSON schema cannot be used: {shown(str(error))}", param="response_format") from error
        matcher = llguidance.LLMatcher(self._loaded(), grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise Fault(400, f"the JSON schema cannot be used: {shown(reason)}", param="response_format")
        return JsonConstraint(matcher, self._vocabulary)

    def _loaded(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = llguidance.LLTokenizer(
                        _without_gaps(self._file.read_text("utf-8")),
                        n_vocab=self._vocabulary,
                        eos_token=self._eos or None,
                    )
                except Exception as error:  # the library raises exceptions of any type
                    raise Fault(
                        400,
                        "the tokenizer of this model cannot follow a JSON schema: its tokens are not bytes; leave "
                        "response_format out",
                        param="response_format",
                    ) from error
            return self._tokenizer


def _without_gaps(tokenizer: str) -> str:
    """A tokenizer's JSON with a special token for every id below the largest that has none.

    llguidance takes the number of tokens for the largest id: behind a gap it would not know the end of an answer.
    """
    read = json.loads(tokenizer)
    vocabulary, added = read["model"]["vocab"], read.get("added_tokens") or []
    if not isinstance(vocabulary, dict):  # a list has no gaps
        return tokenizer
    used = {*vocabulary.values(), *(token["id"] for token in added)}
    gaps = set(range(max(used))) - used
    if not gaps:
        return tokenizer
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for number in sorted(gaps):
        text = f"<|sdrpn has no token {number}|>"
        vocabulary[text] = number
        added.append({"id": number, "content": text, **plain})
    return json.dumps({**read, "added_tokens": added})


class JsonConstraint:
    """See `Constraint`; of one answer, used by the thread that decodes."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def restricted(self, logits: FloatArray) -> FloatArray:
        """Logits (V,) with minus infinity for tokens that may not follow."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_no_error()
        may_follow = np.unpackbits(packed, count=self._vocabulary, bitorder="little").astype(bool)
        return np.where(may_follow, logits, np.float32(-np.inf))

    def accept(self, token_id: int) -> bool:
        """A token was chosen; returns whether nothing may follow."""
        self._matcher.consume_token(token_id)
        self._require_no_error()
        return self._matcher.is_stopped()

    def _require_no_error(self) -> None:
        if self._matcher.is_error():
            raise RunFailed(f"the JSON schema cannot be followed: {' '.join(self._matcher.get_error().split())[:200]}")
