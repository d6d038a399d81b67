"""VQA accuracy with answers normalised as in EvalAI: TextVQA's metric.

Ten people answered; the score is the mean of min(1, agreeing people / 3) over all subsets that leave out one person.
The normalisation is reproduced with its quirks, so that figures are comparable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import fmean

__all__ = ["normalised_answer", "vqa_accuracy"]

AGREEING = 3
ARTICLES = ("a", "an", "the")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBER_WORDS)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
# The official pattern tries to keep a point after a digit too, but does not.
POINT_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
MOST_POINTS = 32  # the official code passes a flag in place of the count

CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> Iterator[str]:
    return (word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'")


# Restores missing apostrophes; one entry of the official table is reversed.
CONTRACTIONS = {form: word for word in CONTRACTED.split() for form in _without_one_apostrophe(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Score in 0..1; `truths` has one answer per person."""
    given, people = normalised_answer(answer), [normalised_answer(truth) for truth in truths]
    agreeing = sum(person == given for person in people)
    if not people:
        return 0.0
    return fmean(min(1.0, (agreeing - (person == given)) / AGREEING) for person in people)


def normalised_answer(text: str) -> str:
    """Lower case; no articles, commas and most other punctuation; numbers to ten as digits; contractions restored."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = (NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """Remove a mark if it is beside a space anywhere in the text, else replace it by a space."""
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or COMMA_IN_NUMBER.search(text) else " ")
    return POINT_BEFORE_NO_DIGIT.sub("", cleaned, count=MOST_POINTS)
