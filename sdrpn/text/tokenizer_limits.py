"""What a `tokenizer.json` may contain, so that no text makes it loop or grow. Knows the format, not the library.

The library runs backtracking regular expressions and chains of replacements without any limit, and cannot be
interrupted. So both are checked beforehand: an expression by the number of ways in which it can fail, a chain of
replacements by the longest text that it can produce from one character.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MAX_TOKENIZER_BYTES", "find_excess"]

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024  # twice the largest vocabulary in use
MAX_STEPS = 64
MAX_GROWTH = {"normalizer": 1000, "decoder": 16}  # output characters per input character
MAX_ADDED_IDS = 256
MAX_OPEN_REPEATS = 4  # consecutive, of single characters; published tokenizers have two
MAX_WORD_CHARACTERS = 1000  # WordPiece's time grows with its cube
# The most characters that each Unicode normalisation makes of one.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 4}


def find_excess(parts: Mapping[str, Any]) -> str | None:
    """Describe the first part of a tokenizer that exceeds a limit; None where there is none.

    Args:
        parts: `normalizer`, `pre_tokenizer`, `post_processor` and `decoder` as in the file, and `model` without its
            vocabulary; absent parts are None
    """
    for name, part in parts.items():
        steps = list(_steps(part))
        if len(steps) > MAX_STEPS:
            return f"its {name} has {len(steps)} steps; expected {MAX_STEPS} at most"
        for pattern in _patterns(part):
            fault = _Regex(pattern).fault()
            if fault is not None:
                return f"its {name} has the regular expression {pattern[:60]!r}, which {fault}"
        growth = math.prod(map(_growth, steps))
        if growth > MAX_GROWTH.get(name, math.inf):
            return f"its {name} can make more than {MAX_GROWTH[name]} characters of one"
        if name == "post_processor" and any(map(_adds_too_much, steps)):
            return f"its post_processor repeats the text, or adds more than {MAX_ADDED_IDS} tokens to it"
    longest = (parts.get("model") or {}).get("max_input_chars_per_word", 0)
    if isinstance(longest, int) and longest > MAX_WORD_CHARACTERS:
        return f"its model takes words of {longest} characters; expected {MAX_WORD_CHARACTERS} at most"
    return None


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a chain, which may contain chains."""
    if not isinstance(part, dict):
        return
    if part.get("type") != "Sequence":
        yield part
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        for inner in part.get(key) or ():
            yield from _steps(inner)


def _patterns(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("Regex"), str):
            yield part["Regex"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _patterns(inner)


def _growth(step: dict[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step.get("pattern"), len(step.get("content") or "")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1.0, content / len(text)) if text else 1.0 + content
    if kind == "Prepend":
        return 1.0 + len(step.get("prepend") or "")
    if kind == "Precompiled":
        return float(_longest_rule(step.get("precompiled_charsmap") or ""))
    return float(_GROWTH.get(str(kind), 1))


def _longest_rule(charsmap: str) -> int:
    """The longest replacement in SentencePiece's table: the index size in 4 bytes, the index, null-terminated texts."""
    content = base64.b64decode(charsmap)
    return max(map(len, content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")), default=1) or 1


def _adds_too_much(step: dict[str, Any]) -> bool:
    pieces = step.get("single") or ()
    repeats = sum("Sequence" in piece for piece in pieces)
    special = step.get("special_tokens") or {}
    longest = max((len(token.get("ids") or ()) for token in special.values()), default=0)
    return repeats > 1 or len(pieces) * max(longest, 1) > MAX_ADDED_IDS


class _Regex:
    """A parser of as much of Oniguruma's syntax as it takes to find nested repeats."""

    _COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")
    _OPENING = re.compile(r"\?(?:[imxWDSPy-]*:|[=!>]|<[=!]|<\w+>|[imxWDSPy-]+(?=\)))")

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def fault(self) -> str | None:
        """Why matching may take too long, or None."""
        try:
            repeats, _ = self._alternatives(depth=0)
        except _Fault as fault:
            return str(fault)
        if self._at < len(self._pattern):
            return "cannot be understood"
        return None if repeats <= MAX_OPEN_REPEATS else "repeats too much in a row"

    def _alternatives(self, depth: int) -> tuple[int, bool]:
        """The most open repeats in any branch, and whether it can match in more than one way."""
        if depth > 20:
            raise _Fault("is nested too deeply")
        worst, varied, current = 0, False, 0
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                self._at += 1
                worst, varied, current = max(worst, current), True, 0
                continue
            repeats, inner_varied, single = self._atom(depth)
            most, fixed = self._quantifier()
            if most > 16 and not single and (repeats or inner_varied):
                raise _Fault("repeats an expression that can match in several ways")
            if most > 1000 and most != math.inf:
                raise _Fault("repeats something more than 1000 times")
            current += repeats + (most > 16 and not fixed)
            varied = varied or inner_varied or not fixed
        return max(worst, current), varied

    def _atom(self, depth: int) -> tuple[int, bool, bool]:
        """An atom: its open repeats, whether it can match in several ways, and whether it is a single character."""
        character = self._pattern[self._at]
        self._at += 1
        if character == "\\":
            self._escape()
        elif character == "[":
            self._character_class()
        elif character == "(":
            return (*self._group(depth), False)
        return 0, False, True

    def _escape(self) -> None:
        kind = self._pattern[self._at : self._at + 1]
        self._at += 1
        if kind in "gk" or kind in "123456789" or not kind:
            raise _Fault("refers to itself")
        if kind in "pPxuo" and self._pattern[self._at : self._at + 1] == "{":
            self._at = self._pattern.find("}", self._at) + 1 or len(self._pattern)

    def _character_class(self) -> None:
        first = True
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            self._at += 1
            if character == "\\":
                self._escape_in_class()
            elif character == "[":
                self._character_class()
            elif character == "]" and not first:
                return
            first = first and character == "^"
        raise _Fault("cannot be understood")

    def _escape_in_class(self) -> None:
        self._at += 1

    def _group(self, depth: int) -> tuple[int, bool]:
        if self._pattern[self._at : self._at + 1] == "?":
            opening = self._OPENING.match(self._pattern, self._at)
            if opening is None:
                raise _Fault("cannot be understood")
            self._at = opening.end()
        found = self._alternatives(depth + 1)
        if self._pattern[self._at : self._at + 1] != ")":
            raise _Fault("cannot be understood")
        self._at += 1
        return found

    def _quantifier(self) -> tuple[float, bool]:
        """The most repeats, and whether their number is fixed. Consecutive quantifiers repeat each other."""
        most, fixed = 1.0, True
        while True:
            upper, exact = self._one_quantifier()
            if upper is None:
                return most, fixed
            if most > 1 and upper > 1:
                raise _Fault("repeats a repeat")
            most, fixed = max(most, upper), fixed and exact
            if self._pattern[self._at : self._at + 1] in ("?", "+"):  # lazy or possessive
                self._at += 1

    def _one_quantifier(self) -> tuple[float | None, bool]:
        character = self._pattern[self._at : self._at + 1]
        if character and character in "*+?":
            self._at += 1
            return (1.0 if character == "?" else math.inf), False
        count = self._COUNT.match(self._pattern, self._at)
        if count is None or not (count[1] or count[3]):
            return None, True
        self._at = count.end()
        if not count[2]:
            return float(count[1]), True
        return (float(count[3]) if count[3] else math.inf), False


class _Fault(Exception):
    """A regular expression that is refused; the message says why."""
