"""Texts that end an answer. Knows tokens by their tokenizer alone."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from sdrpn.text.prompt import TextStream

__all__ = ["StopTexts", "TextCutter"]


class TextCutter:
    """Passes text on as it grows, up to the first stop text; what may become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Args: stops: not empty"""
        self._stops, self._held = stops, ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is final now."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for place in map(text.find, self._stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, and did not become a stop text."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """The longest end of the text with which the stop text begins."""
        return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class StopTexts:
    """Says of every token whether the answer ends with it; called by the thread that decodes."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._text, self._cutter = TextStream(tokenizer), TextCutter(stops)

    def __call__(self, token_id: int) -> bool:
        """Whether a stop text is complete."""
        self._cutter.push(self._text.push(token_id))
        return self._cutter.found
