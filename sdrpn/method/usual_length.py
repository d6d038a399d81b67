"""Typical lengths of questions: for tuning engines, estimating memory, and benchmarks.

Counts of LLaVA-1.5's tokens. They affect estimates and tuning, never limits.
"""

from __future__ import annotations

__all__ = ["PROMPT_TOKENS", "TEXT_TOKENS", "TOKENS_AFTER_IMAGE", "TOKENS_BEFORE_IMAGE"]

# The system prompt of the conversation vicuna_v1, with the role name before the question.
TOKENS_BEFORE_IMAGE = 35
# A question of a sentence or two, and the words around it.
TOKENS_AFTER_IMAGE = 30
PROMPT_TOKENS = TOKENS_BEFORE_IMAGE + TOKENS_AFTER_IMAGE
# With a long answer: 127 tokens more; together three times the 64 rows to which caches are rounded up.
TEXT_TOKENS = 192
