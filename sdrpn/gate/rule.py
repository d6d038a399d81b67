"""From answers to a question at ascending views to what a gate learns of it. Pure Python; knows no model.

A view is a way to look at the picture: a number of image tokens, or one look and two. A question teaches something
where the best views settle its answer, and where from some view on every answer is right. The rule is that of Q-Zoom's
training data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sdrpn.errors import BadInput
from sdrpn.evaluation.scores import any_letter, exact_match, relaxed_match

__all__ = ["CASES", "Agreement", "Case", "GateRule", "Judged", "Target", "agrees", "judge"]

# By the kind of question. "text": one answer contains the other, ignoring case and punctuation, the official measure;
# "exact": the same without spaces; "number": to 5 %; "letter": the same option.
Agreement = Literal["text", "exact", "number", "letter"]
# What is right: the true answer of the data, or what the best view answers.
Target = Literal["truth", "highest"]
# "enough": right at every view; "again": wrong at first, right from some view on. The others teach nothing: the best
# views are wrong or differ; wrong answers come after right ones; there is no answer to compare.
Case = Literal["enough", "again", "unsettled", "not ascending", "no answer"]
CASES: tuple[Case, ...] = get_args(Case)
MARKS = re.compile(r"[^\w\s]")


@dataclass(frozen=True)
class GateRule:
    """How answers become labels.

    settling: how many of the best views must agree; 1 where there are only two views
    """

    agreement: Agreement = "text"
    target: Target = "truth"
    settling: int = 2

    def __post_init__(self) -> None:
        for name, value, known in (("agreement", self.agreement, Agreement), ("target", self.target, Target)):
            if value not in get_args(known):
                raise BadInput(f"{name} is {value!r}; expected {' or '.join(get_args(known))}")
        if type(self.settling) is not int or self.settling < 1:
            raise BadInput(f"settling is {self.settling!r}; expected how many of the best views must agree, 1 or more")


@dataclass(frozen=True)
class Judged:
    """right: whether the answer of each view is."""

    right: tuple[bool, ...]
    case: Case

    @property
    def first_right(self) -> int:
        """The lowest view whose answer is right; as many as there are views where none is."""
        return self.right.index(True) if True in self.right else len(self.right)


def judge(answers: Sequence[str], truth: str | None, rule: GateRule) -> Judged:
    """What the answers of ascending views say.

    Raises BadInput for fewer views than the rule settles with one more, or without a truth that it needs.
    """
    if len(answers) <= rule.settling:
        raise BadInput(
            f"{len(answers)} views are too few; expected more than the {rule.settling} that settle an answer"
        )
    if rule.target == "truth" and truth is None:
        raise BadInput("a question has no true answer; agree with the highest view instead", options=("agree_with",))
    target = answers[-1] if rule.target == "highest" or truth is None else truth
    right = tuple(agrees(answer, target, rule.agreement) for answer in answers)
    best = answers[-rule.settling :]
    settled = all(right[-rule.settling :]) and all(agrees(answer, best[-1], rule.agreement) for answer in best)
    if not _plain(answers[-1]):
        return Judged(right, "no answer")
    if not settled:
        return Judged(right, "unsettled")
    if all(right):
        return Judged(right, "enough")
    return Judged(right, "again" if all(right[right.index(True) :]) else "not ascending")


def agrees(answer: str, target: str, agreement: Agreement) -> bool:
    """Whether an answer says the same as another one; an empty one says nothing."""
    if not _plain(answer) or not _plain(target):
        return False
    if agreement == "exact":
        return exact_match(answer, [target]) == 1
    if agreement == "number":
        return relaxed_match(answer.strip(), target.strip()) == 1
    if agreement == "letter":
        letter = any_letter(answer)
        return letter is not None and letter == any_letter(target)
    said, meant = _plain(answer), _plain(target)
    return said in meant or meant in said


def _plain(text: str) -> str:
    return " ".join(MARKS.sub("", text.lower()).split())
