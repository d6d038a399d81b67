from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sdrpn.errors import RunFailed
from sdrpn.runtime import slots as slots_module
from sdrpn.runtime.backends.fake import FakeBackend
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.kv_cache import CacheSet
from sdrpn.runtime.decoder import Decoder, NextToken
from sdrpn.runtime.slots import CACHE_ROUNDING, Slot
from tests.runtime.fakes import SPEC, WIDTH, Script, fake_decoder


def rows(count: int, start: int = 0) -> np.ndarray:
    values = np.arange(start, start + count, dtype=np.float32)
    return np.repeat(values[:, None], WIDTH, axis=1)


def only(decoder: Decoder) -> Slot:
    (slot,) = decoder.slots.all
    return slot


def positions_in(decoder: Decoder, name: str, cache: str) -> list[float]:
    array = decoder.slots.caches[name].buffers[cache].read()
    return [float(value) for value in array[0, 0, :, 0]]


@pytest.fixture(params=[True, False], ids=["in place", "new rows"])
def in_place(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_cache_length_is_rounded_up_and_given_back() -> None:
    decoder, _ = fake_decoder(Script())
    decoder.slots.reset(only(decoder), CACHE_ROUNDING + 1)
    assert decoder.slots.length == 2 * CACHE_ROUNDING
    decoder.slots.reset(only(decoder), 1)
    assert decoder.slots.length == CACHE_ROUNDING


def test_growth_keeps_valid_rows_and_taps(in_place: bool) -> None:
    decoder, backend = fake_decoder(Script(in_place=in_place), in_place)
    decoder.slots.reset(only(decoder), 10)
    decoder.run_trunk(only(decoder), rows(6), 0)
    decoder.run_tail(only(decoder), 0, 4)
    decoder.slots.reserve(only(decoder), 100)
    assert decoder.slots.length == 128
    assert positions_in(decoder, "trunk", "key_cache.0")[:8] == [1, 2, 3, 4, 5, 6, 0, 0]
    assert positions_in(decoder, "tail", "value_cache.1")[:6] == [1, 2, 3, 4, 0, 0]
    decoder.run_tail(only(decoder), 4, 6)
    np.testing.assert_array_equal(backend.calls[-1].feeds["tap"][0, :, 0], [4, 5])


def test_new_rows_replace_what_was_behind_them(in_place: bool) -> None:
    decoder, _ = fake_decoder(Script(in_place=in_place), in_place)
    decoder.slots.reset(only(decoder), 20)
    decoder.run_trunk(only(decoder), rows(9), 0)
    only(decoder).truncate(3)
    decoder.run_trunk(only(decoder), rows(2, start=50), 3)
    assert only(decoder).valid["trunk"] == 5
    np.testing.assert_array_equal(decoder.slots.taps.read()[0, :5, 0], [0, 1, 2, 50, 51])
    with pytest.raises(RunFailed, match="only 5 were computed by the trunk"):
        decoder.run_tail(only(decoder), 0, 6)


def test_rpn_looks_only_at_taps_that_it_has_not_seen(in_place: bool) -> None:
    script = Script(in_place=in_place)
    script.scores[:] = np.arange(SPEC.vision.image_tokens)
    decoder, backend = fake_decoder(script, in_place)
    decoder.slots.reset(only(decoder), 20)
    decoder.run_trunk(only(decoder), rows(8), 0)
    first = decoder.run_rpn(only(decoder), 8).scores
    only(decoder).truncate(6)
    decoder.run_trunk(only(decoder), rows(3), 6)
    second = decoder.run_rpn(only(decoder), 9).scores
    assert [call.feeds["tap"].shape[1] for call in backend.calls if call.graph == "rpn"] == [8, 3]
    np.testing.assert_array_equal(first[0, 1:5], [0, 1, 2, 3])
    np.testing.assert_array_equal(second[0, 1:5], first[0, 1:5])


def test_a_long_prefill_goes_in_parts_and_gives_the_same(in_place: bool) -> None:
    script = Script(in_place=in_place)
    script.scores[:] = np.arange(SPEC.vision.image_tokens)
    results = []
    for most in (None, 3):
        decoder, backend = fake_decoder(script, in_place)
        backend.prefill_rows = most
        decoder.slots.reset(only(decoder), 20)
        decoder.run_trunk(only(decoder), [rows(3), rows(5, start=3)], 0)
        scores = decoder.run_rpn(only(decoder), 8).scores
        logits = decoder.run_tail(only(decoder), 0, 8).copy()
        results.append(
            (scores, logits, positions_in(decoder, "tail", "key_cache.1"), decoder.slots.taps.read()[0, :8].copy())
        )
        parts = [call.feeds["tap"].shape[1] for call in backend.calls if call.graph == "tail"]
        assert parts == ([8] if most is None else [2, 3, 3])
        assert decoder.computed_rows == {"trunk": 8, "rpn": 8, "tail": 8}
    for whole, in_parts in zip(*results, strict=True):
        np.testing.assert_array_equal(whole, in_parts)


def test_a_token_step_is_bound_once_and_caches_keep_their_address(in_place: bool) -> None:
    decoder, backend = fake_decoder(Script(in_place=in_place), in_place)
    decoder.slots.reset(only(decoder), 20)
    decoder.run_trunk(only(decoder), rows(4), 0)
    decoder.run_tail(only(decoder), 0, 4)
    before = len(backend.calls)
    for position in range(4, 9):
        decoder.step_one(only(decoder), rows(1, position), position)
    steps = backend.calls[before:]
    assert [call.graph for call in steps] == ["trunk", "tail"] * 5
    for graph in ("trunk", "tail"):
        calls = [call for call in steps if call.graph == graph]
        assert all(call.addresses == calls[0].addresses for call in calls)
        assert [int(call.feeds["row_index"][0, 0]) for call in calls] == [4, 5, 6, 7, 8]
    trunk, tail = steps[0].addresses, steps[1].addresses
    assert trunk["tap"] == tail["tap"]  # nothing is copied between the graphs
    if in_place:
        assert trunk["key_cache.0"] == trunk["key_cache.0_out"]
    assert positions_in(decoder, "trunk", "key_cache.0")[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_steps_of_a_few_ranges_of_slots_stay_bound(in_place: bool) -> None:
    """Eight slots have 36 ranges; what was used last is kept, and every step gives what its rows ask for."""
    decoder, _ = fake_decoder(Script((5, 6, 7)), in_place)
    while len(decoder.slots.all) < 8:
        decoder.slots.add()
    for slot in decoder.slots.all:
        decoder.slots.reset(slot, 60)
        decoder.run_trunk(slot, rows(3), 0)
        decoder.run_tail(slot, 0, 3)

    def step(start: int, stop: int) -> object:
        ours = decoder.slots.all[start:stop]
        tokens = [NextToken(slot, rows(1), slot.valid["trunk"], slot.valid["trunk"]) for slot in ours]
        logits = decoder.step(tokens)
        assert [int(each.argmax()) for each in logits] == [(5, 6, 7)[token.row % 3] for token in tokens]
        return decoder._steps[start, stop]

    for start, stop in [(a, b) for a in range(8) for b in range(a + 1, 9)]:
        assert step(start, stop) is step(start, stop)
    assert len(decoder._steps) == 16
    assert list(decoder._steps)[-1] == (7, 8)


def test_only_the_cache_update_aliases_an_input_with_an_output() -> None:
    decoder, backend = fake_decoder(Script())
    decoder.slots.reset(only(decoder), 20)
    decoder.run_trunk(only(decoder), rows(4), 0)
    decoder.run_rpn(only(decoder), 4)
    decoder.run_tail(only(decoder), 0, 4)
    decoder.step_one(only(decoder), rows(1), 4)
    for call in backend.calls:
        for name, address in call.addresses.items():
            shared = {other for other, a in call.addresses.items() if a == address and other != name}
            assert shared <= {f"{name}_out", name.removesuffix("_out")}, (call.graph, name, shared)


def test_writing_past_the_cache_is_refused() -> None:
    decoder, _ = fake_decoder(Script())
    decoder.slots.reset(only(decoder), CACHE_ROUNDING)
    with pytest.raises(RunFailed, match=r"2 rows at 63 are past the cache of 64 rows"):
        decoder.run_trunk(only(decoder), rows(2), CACHE_ROUNDING - 1)
    decoder.run_trunk(only(decoder), rows(CACHE_ROUNDING), 0)
    decoder.run_tail(only(decoder), 0, CACHE_ROUNDING)
    with pytest.raises(RunFailed, match=r"row 64 is past the cache of 64 rows"):
        decoder.step_one(only(decoder), rows(1), CACHE_ROUNDING)


def test_a_gap_between_rows_is_refused() -> None:
    decoder, _ = fake_decoder(Script())
    decoder.slots.reset(only(decoder), 20)
    decoder.run_trunk(only(decoder), rows(4), 0)
    with pytest.raises(RunFailed, match="tail: rows are written from 2, but only 0 are there"):
        decoder.run_tail(only(decoder), 2, 4)
    with pytest.raises(RunFailed, match="trunk: rows are written from 6, but only 4 are there"):
        decoder.run_trunk(only(decoder), rows(1), 6)


def test_memory_that_runs_out_while_growing_leaves_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = fake_decoder(Script())
    decoder.slots.reset(only(decoder), 10)
    decoder.run_trunk(only(decoder), rows(6), 0)
    with_rows, left = HostBuffer.with_rows, iter(range(3))

    def scarce(buffer: HostBuffer, rows: int, keep: int) -> HostBuffer:
        if next(left, None) is None:
            raise MemoryError
        return with_rows(buffer, rows, keep)

    with monkeypatch.context() as patch:
        patch.setattr(HostBuffer, "with_rows", scarce)
        with pytest.raises(MemoryError):
            decoder.slots.reserve(only(decoder), 100)
    assert only(decoder).valid == {"trunk": 0, "rpn": 0, "tail": 0}
    decoder.slots.reset(only(decoder), 10)
    decoder.run_trunk(only(decoder), rows(6), 0)
    decoder.run_tail(only(decoder), 0, 6)


def test_a_closed_decoder_refuses_to_run() -> None:
    decoder, _ = fake_decoder(Script())
    decoder.slots.reset(only(decoder), 20)
    decoder.close()
    with pytest.raises(RunFailed, match="closed"):
        decoder.run_trunk(only(decoder), rows(1), 0)


def test_bindings_that_do_not_fit_are_named() -> None:
    decoder, backend = fake_decoder(Script())
    runner = decoder._runners["trunk"]
    feeds = {name: backend.allocate((1, 1), "float32") for name in runner.inputs}
    with pytest.raises(RunFailed, match=r"trunk: inputs_embeds has shape \(1, 1\), expected"):
        runner.run(feeds, {})
    with pytest.raises(RunFailed, match=r"inputs missing: \['inputs_embeds'"):
        runner.run({}, {})
    assert isinstance(backend, FakeBackend)


class TestShorterCaches:
    """Parts of a prefill in caches that are no longer than they need: the same rows and results."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slots_module, "CACHE_ROUNDING", 4)

    def decoder(self, in_place: bool, *, fitted: bool = True) -> Decoder:
        decoder, backend = fake_decoder(Script(in_place=in_place), in_place)
        backend.prefill_rows, backend.reads_whole_caches = 4, fitted
        decoder.slots.reset(only(decoder), 24)
        return decoder

    def test_each_part_sees_what_it_needs(self, in_place: bool) -> None:
        lengths, results = [], []
        for fitted in (True, False):
            decoder = self.decoder(in_place, fitted=fitted)
            lengths.append([length_after_part(decoder, part) for part in decoder._parts("trunk", 0, 16)])
            decoder.run_trunk(only(decoder), rows(16), 0)
            logits = decoder.run_tail(only(decoder), 0, 16).copy()
            caches = positions_in(decoder, "trunk", "key_cache.0"), positions_in(decoder, "tail", "value_cache.1")
            results.append((logits, *(each[:16] for each in caches), decoder.slots.taps.read().copy()))
            assert decoder.slots.length == len(caches[0]) == len(caches[1]) == 24
        # At least a quarter; the last part has all of them, in which the answer goes on.
        assert lengths == [[8, 8, 12, 24], [24] * 4]
        for short, whole in zip(*results, strict=True):
            np.testing.assert_array_equal(short, whole)

    def test_what_was_broken_off_is_made_whole(self, in_place: bool) -> None:
        begins: list[Callable[[Decoder], object]] = [
            lambda decoder: decoder.slots.reserve(only(decoder), 16),
            lambda decoder: decoder.slots.add(),
            lambda decoder: decoder.step_one(only(decoder), rows(1, 0), 0),
        ]
        for begin in begins:
            decoder = self.decoder(in_place)
            next(decoder._parts("trunk", 0, 16))
            assert len(positions_in(decoder, "trunk", "key_cache.0")) == 8
            begin(decoder)
            assert len(positions_in(decoder, "trunk", "key_cache.0")) == 24

    def test_not_with_several_slots(self, in_place: bool) -> None:
        decoder = self.decoder(in_place)
        decoder.slots.add()
        next(decoder._parts("trunk", 0, 16))
        assert len(positions_in(decoder, "trunk", "key_cache.0")) == 24

    def test_without_memory_the_next_question_makes_them_again(
        self, in_place: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoder = self.decoder(in_place)
        with monkeypatch.context() as patch:
            patch.setattr(CacheSet, "resize", out_of_memory)
            with pytest.raises(MemoryError):
                next(decoder._parts("tail", 0, 16))
        assert decoder.slots.length == 0
        decoder.slots.reset(only(decoder), 24)
        decoder.run_trunk(only(decoder), rows(16), 0)
        decoder.run_tail(only(decoder), 0, 16)
        assert len(positions_in(decoder, "tail", "key_cache.1")) == 24


def length_after_part(decoder: Decoder, part: tuple[int, int]) -> int:
    assert part[0] < part[1]
    return len(positions_in(decoder, "trunk", "key_cache.0"))


def out_of_memory(*args: object) -> None:
    raise MemoryError("no room")
