"""Manifests of strangers: one value is removed or something else, and nothing but an error of the tree comes of it.

The whole of it runs under the mark `slow`; a seeded sample always does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from sdrpn.bundle import MANIFEST_NAME, open_bundle
from sdrpn.errors import BadInput
from sdrpn.runtime import Session
from sdrpn.shipped import DEFAULT_BUNDLE
from tests.damage import copied
from tests.json_mutations import Mutation, mutations
from tests.pictures import photo

SAMPLE, ASKED = 250, 10
LONGEST_CHARS = 1000  # of a message, the temporary folder's name included
# Values that no answer depends on, where anything of their type will do.
UNUSED = ("tools.", "source.", "variants.fused-int8.")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped bundle whose manifest is written anew for each mutation."""
    return copied(DEFAULT_BUNDLE, tmp_path_factory.mktemp("mutated"))


@pytest.fixture(scope="module")
def every_mutation() -> list[Mutation]:
    return list(mutations(json.loads((DEFAULT_BUNDLE / MANIFEST_NAME).read_text("utf-8"))))


def refused(bundle: Path, mutation: Mutation, *, ask: bool) -> bool:
    """Whether a reader of the bundle refuses it in one line. Raises whatever is no error of the tree."""
    (bundle / MANIFEST_NAME).write_text(mutation.text, "utf-8")
    told = ""
    try:
        opened = open_bundle(bundle)
        opened.verify(opened.variant().files)
        if ask:
            with Session.open(bundle, threads=1) as session:
                session.answer(photo(), "what is the code?", max_new_tokens=2)
    except BadInput as error:
        told = str(error)
    except Exception as error:
        raise AssertionError(f"{mutation.name}: {type(error).__name__}: {error}") from error
    assert "\n" not in told, mutation.name
    assert len(told) < LONGEST_CHARS, mutation.name
    return told != ""


def count_refused(bundle: Path, chosen: Iterable[Mutation]) -> int:
    return sum(refused(bundle, one, ask=False) for one in chosen)


def survivors(bundle: Path, chosen: Iterable[Mutation]) -> Iterable[Mutation]:
    """Those that are still manifests of this model."""
    return (one for one in chosen if not one.name.startswith(UNUSED) and not refused(bundle, one, ask=False))


def test_a_sample_is_refused_in_one_line_or_read(bundle: Path, every_mutation: list[Mutation]) -> None:
    assert count_refused(bundle, random.Random(0).sample(every_mutation, SAMPLE)) > 0.8 * SAMPLE


def test_what_passes_answers_or_is_refused(bundle: Path, every_mutation: list[Mutation]) -> None:
    shuffled = random.Random(1).sample(every_mutation, len(every_mutation))
    for _, mutation in zip(range(ASKED), survivors(bundle, shuffled), strict=False):
        refused(bundle, mutation, ask=True)


@pytest.mark.slow
def test_every_mutation_is_refused_in_one_line_or_answers(bundle: Path, every_mutation: list[Mutation]) -> None:
    assert len(every_mutation) > 4292
    passed = list(survivors(bundle, every_mutation))
    assert 0 < len(passed) < 0.1 * len(every_mutation)
    for mutation in passed:
        refused(bundle, mutation, ask=True)
