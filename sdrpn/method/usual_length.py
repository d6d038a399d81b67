"""Typical lengths of questions and answers: for tuning engines, estimating memory, and benchmarks.

They affect estimates and tuning, never limits. What a prompt has before the image is the family's:
`Family.usual_prompt_tokens`.
"""

from __future__ import annotations

__all__ = ["TEXT_TOKENS", "TOKENS_AFTER_IMAGE"]

# A question of a sentence or two, and the words around it.
TOKENS_AFTER_IMAGE = 30
# A prompt with a long answer, three times the 64 rows to which caches are rounded up.
TEXT_TOKENS = 192
