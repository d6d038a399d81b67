"""How long a usual question is: what engines are tuned for, what memory is planned for, what a benchmark asks.

Counts of LLaVA-1.5's tokens. They decide how fast or how large something is expected to be, and never what fits.
"""

from __future__ import annotations

__all__ = ["PROMPT_TOKENS", "TEXT_TOKENS", "TOKENS_AFTER_IMAGE", "TOKENS_BEFORE_IMAGE"]

# The system prompt of the conversation vicuna_v1, with the word that begins the question's turn.
TOKENS_BEFORE_IMAGE = 35
# A question of a sentence or two, and the words around it.
TOKENS_AFTER_IMAGE = 30
PROMPT_TOKENS = TOKENS_BEFORE_IMAGE + TOKENS_AFTER_IMAGE
# With a long answer: 127 tokens more, which together are three times the 64 rows that caches are rounded up to.
TEXT_TOKENS = 192
