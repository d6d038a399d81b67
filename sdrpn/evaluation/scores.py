"""Scores of one answer against the true ones, as lmms-eval defines them. Pure Python; knows no data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "anls",
    "any_letter",
    "containment",
    "edit_distance",
    "exact_match",
    "matching_option",
    "relaxed_match",
    "yes_no_figures",
    "yes_no_match",
]

# A code, exactly: the tags.


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 where the answer is one of the true ones, ignoring case and white space, which tokenizers may insert."""
    return float(_without_spaces(answer) in {_without_spaces(truth) for truth in truths})


def _without_spaces(text: str) -> str:
    return "".join(text.split()).lower()


# Yes or no, and figures from their counts: POPE.


def yes_no_match(answer: str, truth: str) -> float:
    """1 where the answer is exactly the true word."""
    return float(_lower(answer) == _lower(truth))


def yes_no_figures(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Precision, recall and F1 of "yes" over (answer, truth) pairs; 0 where a denominator is 0."""
    counted = [(_lower(answer), _lower(truth)) for answer, truth in pairs]
    right = counted.count(("yes", "yes"))
    wrong, missed = counted.count(("yes", "no")), counted.count(("no", "yes"))
    precision, recall = _share(right, right + wrong), _share(right, right + missed)
    return {"precision": precision, "recall": recall, "f1": _share(2 * precision * recall, precision + recall)}


def _lower(text: str) -> str:
    return text.lower().strip()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# Which option an answer names: V*Bench and HR-Bench, each with lmms-eval's rule for finding a letter.

# In this order; the first match counts.
LETTER_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^([A-D])",  # any answer that begins with one, words included
        r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
)
IGNORED_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NO_OPTION = "Z"


def any_letter(answer: str) -> str | None:
    """The letter A to D, found as in V*Bench's evaluation; None: no letter, or several."""
    answer = answer.strip().upper()
    for pattern in LETTER_PATTERNS:
        found = pattern.search(answer)
        if found:
            return found.group(1).upper()
    letters = re.findall(r"[A-D]", answer)
    return letters[0] if len(letters) == 1 else None


def matching_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of an option, found as in HR-Bench's evaluation, by letter or else by text; "Z": the answer refuses.

    None: undecided. lmms-eval then asks a language model; without one such an answer is wrong.
    """
    if any(refusal in answer for refusal in REFUSALS):
        return NO_OPTION
    words = answer.translate(IGNORED_MARKS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1:
        return named[0]
    if not named and NO_OPTION in words:
        return NO_OPTION
    said = answer.lower()
    meant = [letter for letter, text in options.items() if text.lower() in said]
    return meant[0] if len(meant) == 1 else None


# Numbers may differ by 5 %: ChartQA (Masry et al., 2022, section 5.1).

LARGEST_CHANGE = 0.05


def relaxed_match(answer: str, truth: str) -> float:
    """1 or 0. Text, and a true 0, must be equal up to case."""
    found, expected = _number(answer), _number(truth)
    if found is not None and expected:
        return float(abs(found - expected) / abs(expected) <= LARGEST_CHANGE)
    return float(answer.lower() == truth.lower())


def _number(text: str) -> float | None:
    """A number in a text; percentages are divided by 100."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


# Average normalised Levenshtein similarity with a threshold of 0.5: DocVQA and InfographicVQA.

LEAST_SIMILARITY = 0.5  # less similar answers score 0


def anls(answer: str, truths: Sequence[str]) -> float:
    """Score in 0..1, for the most similar true answer.

    As in lmms-eval: distances ignore case and repeated spaces, the lengths that they are divided by do not.
    """
    distances = [_normalised_distance(answer, truth) for truth in truths]
    similarity = 1 - min(distances, default=1.0)
    return similarity if similarity >= LEAST_SIMILARITY else 0.0


def _normalised_distance(answer: str, truth: str) -> float:
    length = max(len(truth.upper()), len(answer.upper()))
    plain = (" ".join(text.strip().lower().split()) for text in (truth, answer))
    return edit_distance(*plain) / length if length else 0.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: the number of insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for above, letter in enumerate(first, start=1):
        corner, row[0] = row[0], above
        for column, other in enumerate(second, start=1):
            corner, row[column] = row[column], min(corner + (letter != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


# Whether the answer contains a true answer: OCRBench.

FULL_WIDTH = range(0xFF01, 0xFF5F)  # full-width forms of ASCII
TO_ASCII = {code: code - 0xFEE0 for code in FULL_WIDTH} | {0x3000: " "}


def containment(answer: str, truths: Sequence[str], *, formula: bool = False) -> float:
    """1 where the answer contains a true one, else 0.

    Args:
        formula: handwritten mathematics, where case counts and spaces do not; otherwise spaces count and case does not
    """
    plain = _plain_formula if formula else _plain_text
    said = plain(answer.strip())
    return float(any(plain(truth) in said for truth in truths))


def _plain_text(text: str) -> str:
    return text.translate(TO_ASCII).lower().strip().replace("\n", " ")


def _plain_formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
