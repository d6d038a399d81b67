from __future__ import annotations

import numpy as np
import pytest

from sdrpn.errors import BadInput, RunFailed
from sdrpn.runtime.sampling import GREEDY, Sampler, Sampling

LOGITS = np.array([0.0, 2.0, 1.0, -3.0], np.float32)


def draws(sampling: Sampling, count: int = 400) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.choose(LOGITS) for _ in range(count)]


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    assert Sampler(GREEDY).choose(LOGITS) == 1
    assert Sampler(GREEDY).choose(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_the_same_seed_gives_the_same_tokens() -> None:
    assert draws(Sampling(1.0, 1.0, 7)) == draws(Sampling(1.0, 1.0, 7))
    assert draws(Sampling(1.0, 1.0, 7)) != draws(Sampling(1.0, 1.0, 8))


def test_frequencies_follow_the_softmax() -> None:
    counts = np.bincount(draws(Sampling(1.0, 1.0, 0), 20_000), minlength=4) / 20_000
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(counts, expected, atol=0.02)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, {1}), (0.6, {1}), (0.7, {1, 2}), (0.95, {0, 1, 2})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert set(draws(Sampling(1.0, top_p, 0))) == kept


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert set(draws(Sampling(0.05, 1.0, 0))) == {1}


@pytest.mark.parametrize("temperature", [1e-8, 1e-300, 5e-324])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    assert set(draws(Sampling(temperature, 0.9, 0))) == {1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 1.0, 0)])
def test_logits_that_overflowed_are_no_choice(bad: float, sampling: Sampling) -> None:
    with pytest.raises(RunFailed, match=r"logits of the next token are NaN or infinite; .* or export it in fp32"):
        Sampler(sampling).choose(np.array([0.0, bad, 1.0], np.float32))


def test_tokens_may_be_ruled_out_by_their_logits() -> None:
    sampler = Sampler(Sampling(1.0, 1.0, 0))
    assert {sampler.choose(np.array([-np.inf, 1.0, -np.inf], np.float32)) for _ in range(50)} == {1}


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}]
)
def test_bad_values_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("unused", [{"top_p": 0.9}, {"seed": 0}, {"seed": 3, "repetition_penalty": 1.1}])
def test_what_greedy_decoding_would_ignore_is_refused(unused: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=rf"^{next(iter(unused))} is .* at a temperature of 0 the most likely token"):
        Sampling(**unused)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [None, 0, 0.0])
def test_other_interfaces_give_both(temperature: float | None) -> None:
    assert Sampling.lenient(temperature, 0.9, 3) == Sampling()
    assert Sampling.lenient(temperature, 0.9, 3, 1.5) == Sampling(repetition_penalty=1.5)
    assert Sampling.lenient(0.7, None, 3) == Sampling(0.7, 1.0, 3)
    assert Sampling.lenient(0.7, 0.9) == Sampling(0.7, 0.9)


@pytest.mark.parametrize("penalty", [1.05, 0.8, 3.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    rng, prompt = np.random.default_rng(0), [3, 7, 7, 11]
    theirs, sampler = RepetitionPenaltyLogitsProcessor(penalty), Sampler(Sampling(repetition_penalty=penalty), prompt)
    said = list(prompt)
    for _ in range(6):
        logits = rng.normal(size=20).astype(np.float32) * 3
        expected = theirs(torch.tensor([said]), torch.from_numpy(logits.copy())[None])[0].numpy()
        found = sampler.penalised(logits)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        chosen = sampler.choose(found)
        assert chosen == int(expected.argmax())
        said.append(chosen)


def test_without_a_penalty_logits_are_not_touched() -> None:
    logits = np.arange(5, dtype=np.float32)
    assert Sampler(Sampling(), [1, 2]).penalised(logits) is logits
    assert Sampler(Sampling(repetition_penalty=1.0), [1, 2]).penalised(logits) is logits


def test_an_impossible_penalty() -> None:
    with pytest.raises(BadInput, match=r"repetition_penalty is 0\.0; expected a number above 0"):
        Sampling(repetition_penalty=0.0)
