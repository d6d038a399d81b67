"""Questions packed behind one picture: each sees the picture and itself, at the positions that it would have alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from networks import EOS_ID, PAD_ID, SPEC, UNK_ID, make_tokenizer
from torch import Tensor

from sdrpn.families.llava.prompt import build_prompt
from sdrpn.tags.questions import TagQuestion
from sdrpn.tags.scene import BORDERS, COLOURS, SHAPES

IGNORED = -100


@dataclass
class PackedQuestions:
    """b pictures, each with several questions, n tokens together.

    ids, labels: (b,n); only answers have labels. segment, position: (n,), which question a token belongs to, and its
    place behind the pictures. answer_at: (b,questions), where answers begin among the n tokens. subjects:
    (b,questions), the word that says which tag is meant, IGNORED where all are. kinds: (b,questions), 0 code, 1 coarse.
    """

    ids: Tensor
    labels: Tensor
    segment: Tensor
    position: Tensor
    answer_at: Tensor
    subjects: Tensor
    kinds: Tensor


class Packer:
    """Questions as packed tokens. Prompts are few and come again, so each is built once."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        self.fillers = filler_ids()
        self.prompt_ids = functools.cache(self._prompt_ids)
        self.answer_ids = functools.cache(self._answer_ids)

    def pack(self, rng: np.random.Generator, asked: list[list[TagQuestion]]) -> PackedQuestions:
        """Every question takes as many places as the longest; padding lies behind the answers, where nothing looks."""
        rows = [[self._encoded(rng, question) for question in questions] for questions in asked]
        length = max(len(ids) for row in rows for ids, _ in row)
        count = len(asked[0])
        ids = torch.full((len(rows), count, length), PAD_ID)
        labels = torch.full((len(rows), count, length), IGNORED)
        answer_at = torch.empty((len(rows), count), dtype=torch.long)
        for r, row in enumerate(rows):
            for q, (tokens, start) in enumerate(row):
                ids[r, q, : len(tokens)] = torch.tensor(tokens)
                labels[r, q, start : len(tokens)] = torch.tensor(tokens[start:])
                answer_at[r, q] = q * length + start
        return PackedQuestions(
            ids=ids.flatten(1),
            labels=labels.flatten(1),
            segment=torch.arange(count).repeat_interleave(length),
            position=torch.arange(length).repeat(count),
            answer_at=answer_at,
            subjects=torch.tensor([[self._subject(question) for question in questions] for questions in asked]),
            kinds=torch.tensor([[int(question.kind != "code") for question in questions] for questions in asked]),
        )

    def _encoded(self, rng: np.random.Generator, question: TagQuestion) -> tuple[list[int], int]:
        """Ids behind the image with the answer, and where the answer begins. One filler word in ten is unknown."""
        prompt = self.prompt_ids(question.text)
        after = [UNK_ID if i in self.fillers and rng.random() < 0.1 else i for i in prompt]
        return [*after, *self.answer_ids(question.answer), EOS_ID], len(after)

    def _prompt_ids(self, text: str) -> tuple[int, ...]:
        """What stands behind the image."""
        return tuple(build_prompt(self.tokenizer, SPEC.prompt, text).ids_after)

    def _answer_ids(self, answer: str) -> tuple[int, ...]:
        """Digits without the space that the tokenizer puts before a word."""
        words = answer if answer.isdigit() else [answer]
        found = [self.tokenizer.encode(word, add_special_tokens=False).ids for word in words]
        return tuple(i for ids in found for i in (ids[-1:] if answer.isdigit() else ids))

    def _subject(self, question: TagQuestion) -> int:
        word = None if question.tag is None else self.tokenizer.token_to_id("▁" + question.tag.colour)
        return IGNORED if word is None else word


def prompt_ids_before() -> list[int]:
    """What stands before the image in every prompt."""
    return list(build_prompt(make_tokenizer(), SPEC.prompt, "list the tags .").ids_before)


def filler_ids() -> frozenset[int]:
    """Words that a question can miss and still be understood."""
    tokenizer = make_tokenizer()
    words = ("what", "is", "the", "on", "does", "which", "please", "tell", "me", "of", "i", "see", "a", "its", "are")
    found = (tokenizer.token_to_id("▁" + word) for word in words)
    named = {tokenizer.token_to_id("▁" + word) for word in (*COLOURS, *BORDERS, *SHAPES)}
    return frozenset(token_id for token_id in found if token_id is not None) - named
