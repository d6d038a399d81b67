"""Untrusted manifests: one value is removed or replaced, and only errors of the package's own kinds result.

The whole of it runs under the mark `slow`; a seeded sample always does.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import MANIFEST_NAME, Bundle, FileInfo, open_bundle
from sdrpn.bundle.engine_manifest import engine_paths
from sdrpn.bundle.optimized import OPTIMIZED_NAME, OptimizedManifest, optimized_folder, source_digest
from sdrpn.bundle.shipped import DEMO_BUNDLE
from sdrpn.errors import BadInput
from sdrpn.host.machine import read_cpu
from sdrpn.runtime import Session
from sdrpn.runtime.backends import onnxruntime_version
from sdrpn.runtime.engines import preflight
from sdrpn.runtime.select import choose_optimized, mapped_weights_bytes
from sdrpn.workflows.inspection import engines_to_json, inspect_engines
from sdrpn.workflows.inspection_text import engines_text
from tests.bundle.json_mutations import Mutation, mutations
from tests.damage import copied
from tests.pictures import photo
from tests.runtime.engine_files import TARGET, write_engines

SAMPLE, ASKED = 250, 10
MANY, MANY_ASKED = 3000, 100  # in the slow tests
LONGEST_CHARS = 1000  # length of a message, with the temporary folder's name
# Entries that an answer on this machine does not use.
UNUSED = {("variants", name) for name in ("fused-int8", "primitive-int8", "primitive-int8-cpu")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped bundle whose manifest is written again for each mutation."""
    return copied(DEMO_BUNDLE, tmp_path_factory.mktemp("mutated"))


DOCUMENT = json.loads((DEMO_BUNDLE / MANIFEST_NAME).read_text("utf-8"))


@contextmanager
def only_errors_on_purpose(mutation: Mutation) -> Iterator[list[str]]:
    """What is refused inside is put into the list; any other error is raised with the mutation."""
    told: list[str] = []
    try:
        yield told
    except BadInput as error:
        told.append(str(error))
    except Exception as error:
        raise AssertionError(f"{mutation.name}: {type(error).__name__}: {error}") from error
    for line in told:
        assert "\n" not in line, mutation.name
        assert len(line) < LONGEST_CHARS, mutation.name


def refused(bundle: Path, mutation: Mutation, *, ask: bool) -> bool:
    """Whether a reader of the bundle refuses it."""
    (bundle / MANIFEST_NAME).write_text(mutation.applied(DOCUMENT), "utf-8")
    with only_errors_on_purpose(mutation) as told:
        opened = open_bundle(bundle)
        for name in opened.variant().files:
            opened.file(name)
        if ask:
            with Session.open(bundle, threads=1) as session:
                session.answer(photo(), "what is the code?", max_new_tokens=2)
    return bool(told)


def survivors(bundle: Path, chosen: Iterable[Mutation]) -> Iterator[Mutation]:
    """Those that are still manifests of this model."""
    return (
        mutation for mutation in chosen if mutation.place[:2] not in UNUSED and not refused(bundle, mutation, ask=False)
    )


def test_a_sample_is_refused_in_one_line_or_read(bundle: Path) -> None:
    chosen = random.Random(0).sample(mutations(DOCUMENT), SAMPLE)
    assert sum(refused(bundle, mutation, ask=False) for mutation in chosen) > 0.8 * SAMPLE


def test_what_passes_answers_or_is_refused(bundle: Path) -> None:
    spec = [entry for entry in mutations(DOCUMENT) if entry.place[0] == "spec"]
    for mutation in islice(survivors(bundle, random.Random(1).sample(spec, len(spec))), ASKED):
        refused(bundle, mutation, ask=True)


@pytest.mark.slow
def test_every_mutation_is_refused_in_one_line_or_answers(bundle: Path) -> None:
    """All entries but those of the variants, whose graphs have hundreds of similar tensors: of these a sample."""
    every = mutations(DOCUMENT)
    alike = [entry for entry in every if entry.place[0] == "variants"]
    chosen = [entry for entry in every if entry.place[0] != "variants"] + random.Random(2).sample(alike, MANY)
    assert len(chosen) > 4292
    passed = list(survivors(bundle, chosen))
    assert 0 < len(passed) < 0.1 * len(chosen)
    for mutation in random.Random(3).sample(passed, min(MANY_ASKED, len(passed))):
        refused(bundle, mutation, ask=True)


@pytest.fixture(scope="module")
def with_engines(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    found = open_bundle(copied(tiny_bundle, tmp_path_factory.mktemp("engines")))
    write_engines(found)
    return found


class TestManifestsOfEngines:
    """With a matching digest, as an attacker would write it: the content must not break a reader either."""

    @pytest.fixture(autouse=True)
    def library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight, "open_library", lambda flavour: NoOpinion())

    @pytest.mark.parametrize("count", [SAMPLE // 2, pytest.param(MANY, marks=pytest.mark.slow)])
    def test_mutations(self, with_engines: Bundle, count: int) -> None:
        path = engine_paths(with_engines.path, TARGET, "trunk")[1]
        whole = path.read_text("utf-8")
        document = {key: value for key, value in json.loads(whole).items() if key != "digest"}
        every = mutations(document)
        for mutation in random.Random(0).sample(every, min(count, len(every))):
            path.write_text(with_digest(mutation.applied(document)), "utf-8")
            with only_errors_on_purpose(mutation):
                report = inspect_engines(with_engines.path, TARGET, verify=True)
                list(engines_text(report))
                engines_to_json(report)
        path.write_text(whole, "utf-8")


class NoOpinion:
    """A library that has no check of its own."""

    def validity(self, path: Path) -> None:
        return None


def with_digest(text: str) -> str:
    """As `EngineManifest.to_text` adds it, where the text is JSON at all."""
    value = json.loads(text)
    if not isinstance(value, dict):
        return text
    return json.dumps({**value, "digest": hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()})


@pytest.fixture(scope="module")
def with_saved_graphs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a manifest of saved graphs that are empty files: they are never loaded here."""
    opened = open_bundle(copied(tiny_bundle, tmp_path_factory.mktemp("saved")))
    variant, cpu, library = opened.variant(), read_cpu(), onnxruntime_version()
    folder = optimized_folder(opened, variant, library, cpu)
    folder.mkdir(parents=True)
    graphs = {name: f"{name}.onnx" for name in variant.graphs}
    for name in graphs.values():
        (folder / name).touch()
    files = dict.fromkeys(graphs.values(), FileInfo(0, hashlib.sha256(b"").hexdigest()))
    source = source_digest(opened, variant)
    manifest = OptimizedManifest(variant.name, library, cpu.model, cpu.digest, "standard", source, graphs, files, 10)
    (folder / OPTIMIZED_NAME).write_text(manifest.to_text(), "utf-8")
    return opened


def test_manifests_of_saved_graphs(with_saved_graphs: Bundle) -> None:
    opened, variant = with_saved_graphs, with_saved_graphs.variant()
    assert choose_optimized(opened, variant)[0] is not None
    (path,) = opened.path.rglob(OPTIMIZED_NAME)
    document = json.loads(path.read_text("utf-8"))
    for mutation in mutations(document):
        path.write_text(mutation.applied(document), "utf-8")
        with only_errors_on_purpose(mutation):
            choose_optimized(opened, variant)
            mapped_weights_bytes(opened, variant)
