"""Engines with profiles for several contexts: the shortest that holds a question answers it, longer ones take over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import ContextTooLong, RunFailed
from sdrpn.runtime import Session
from sdrpn.runtime import select as choice
from sdrpn.runtime.backends import tensorrt_info
from sdrpn.runtime.engines import preflight
from sdrpn.runtime.engines.engine_set import engine_set
from sdrpn.runtime.engines.preflight import device_bytes
from tests.damage import copied
from tests.runtime.asking import ask, conversation, no_box
from tests.runtime.engine_files import TARGET, platform, write_engines
from tests.runtime.gpu import FakeGpu, fake_gpu

VARIANT, SHORT, LONG = "primitive-fp32", 32, 128
DECODE, PREFILL = {SHORT: 0, LONG: 2}, {SHORT: 1, LONG: 3}  # profiles of trunk and tail


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def gpu(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    return fake_gpu(tiny_bundle, tmp_path, variant=VARIANT, flavour=request.param, shorter_contexts=(SHORT,))


@pytest.fixture
def session(gpu: FakeGpu) -> Iterator[Session]:
    with gpu.session() as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, backend="onnxruntime", variant=VARIANT, threads=1) as opened:
        yield opened


def profiles_run(gpu: FakeGpu, graph: str) -> list[int]:
    """In order, each once in a row."""
    found = [run.profile for run in gpu.trt.executions if run.graph == graph]
    return [run for index, run in enumerate(found) if index == 0 or found[index - 1] != run]


def test_a_short_question_runs_in_the_short_profiles_alone(gpu: FakeGpu, session: Session, plain: Session) -> None:
    """25 positions of a prompt and 6 new tokens, of which the last is never computed further."""
    found, expected = ask(session, decide=no_box), ask(plain, decide=no_box)
    assert found.token_ids == expected.token_ids
    assert profiles_run(gpu, "trunk") == [PREFILL[SHORT], DECODE[SHORT]]
    assert profiles_run(gpu, "rpn") == [0]
    shapes = {run.shapes["key_cache.0"][2] for run in gpu.trt.executions if run.graph == "trunk"}
    assert shapes == {SHORT}


def test_an_answer_that_outgrows_them_goes_on_in_the_long_ones(gpu: FakeGpu, session: Session, plain: Session) -> None:
    """The rows of the caches are carried over: the tokens are those of one cache that was long from the beginning."""
    found, expected = (ask(asked, decide=no_box, max_new_tokens=20) for asked in (session, plain))
    assert found.token_ids == expected.token_ids
    assert found.trace is not None
    assert expected.trace is not None
    np.testing.assert_allclose(found.trace.step_logits, expected.trace.step_logits, atol=1e-5)
    assert profiles_run(gpu, "trunk") == [PREFILL[SHORT], DECODE[SHORT], DECODE[LONG]]
    assert profiles_run(gpu, "tail") == [PREFILL[SHORT], DECODE[SHORT], DECODE[LONG]]
    assert session._decoder.slots.length == LONG
    assert gpu.cuda.violations == []


def test_a_crop_that_needs_them_takes_the_long_ones(gpu: FakeGpu, session: Session, plain: Session) -> None:
    assert ask(session).token_ids == ask(plain).token_ids
    # The prefix went through the tail while the caches were short.
    assert profiles_run(gpu, "tail") == [PREFILL[SHORT], PREFILL[LONG], DECODE[LONG]]


def test_a_new_picture_starts_short_again(gpu: FakeGpu, session: Session) -> None:
    ask(session)
    assert session._decoder.slots.length == LONG
    session.forget_image()
    ask(session, decide=no_box)
    assert session._decoder.slots.length == SHORT


def test_a_whole_conversation_is_that_of_onnxruntime(gpu: FakeGpu, session: Session, plain: Session) -> None:
    plain.forget_image()
    for found, expected in zip(conversation(session), conversation(plain), strict=True):
        assert found.token_ids == expected.token_ids
        assert found.tokens == expected.tokens
    assert gpu.cuda.violations == []


def test_the_longest_is_the_limit(session: Session) -> None:
    with pytest.raises(ContextTooLong, match=rf"positions, the bundle has {LONG}"):
        ask(session, max_new_tokens=120)
    decoder = session._decoder
    ask(session, decide=no_box)
    (slot,) = decoder.slots.all
    slot.valid = dict.fromkeys(slot.valid, LONG)
    with pytest.raises(RunFailed, match=f"row {LONG} is past the cache of"):
        decoder.step_one(slot, np.zeros((1, 64), np.float32), LONG)


def test_memory_is_that_of_the_longest(tiny_bundle: Path, tmp_path: Path) -> None:
    """Weights are there once, and so are the caches."""
    sizes = []
    for name, shorter in (("one", ()), ("two", (SHORT,))):
        bundle = open_bundle(copied(tiny_bundle, tmp_path / name))
        write_engines(bundle, VARIANT, max_context=LONG, shorter_contexts=shorter)
        sizes.append(device_bytes(engine_set(bundle, TARGET)))
    assert sizes[0] == sizes[1]


def test_a_session_that_finds_the_engines_itself(gpu: FakeGpu, plain: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def validity(self, path: Path) -> None:
            return None

    monkeypatch.setattr(choice, "read_platform", lambda *device: platform(gpu.flavour))
    monkeypatch.setattr(preflight, "open_library", lambda flavour: Silent())
    monkeypatch.setattr(tensorrt_info, "open_tensorrt", lambda flavour, options, **more: gpu.backend(options))
    with Session.open(gpu.bundle.path, backend="tensorrt") as session:
        assert ask(session, decide=no_box, max_new_tokens=20).token_ids == (
            ask(plain, decide=no_box, max_new_tokens=20).token_ids
        )
    assert profiles_run(gpu, "trunk") == [PREFILL[SHORT], DECODE[SHORT], DECODE[LONG]]
