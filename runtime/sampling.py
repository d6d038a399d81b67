"""Choose the next token from logits. NumPy only; knows nothing about models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.field_types import CheckedFields

__all__ = ["GREEDY", "Constraint", "Sampler", "Sampling"]


@dataclass(frozen=True)
class Sampling(CheckedFields):
    """Temperature 0 is greedy, and takes neither `top_p` nor `seed`.

    top_p: the smallest set of most likely tokens with this total probability
    seed: of the choice; None: another one every time
    repetition_penalty: what logits of tokens that are in the prompt or the answer already are divided by, or multiplied
        with if they are negative (Keskar et al., 2019); 1: nothing; None: as the model's generation_config.json says
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.temperature < float("inf"):
            raise BadInput(f"temperature is {self.temperature}; expected 0 (greedy) or more", options=("temperature",))
        if not 0.0 < self.top_p <= 1.0:
            raise BadInput(f"top_p is {self.top_p}; expected more than 0, at most 1", options=("top_p",))
        if self.seed is not None and self.seed < 0:
            raise BadInput(
                f"seed is {self.seed}; expected 0 or more, or none for a different result every time", options=("seed",)
            )
        unused = {"top_p": self.top_p < 1, "seed": self.seed is not None} if self.temperature == 0 else {}
        for name in (name for name, given in unused.items() if given):
            raise BadInput(
                f"{name} is {getattr(self, name)}, and at a temperature of 0 the most likely token is always taken; "
                f"give a temperature above 0, or leave {name} out",
                options=("temperature", name),
            )
        if self.repetition_penalty is not None and not 0.0 < self.repetition_penalty < float("inf"):
            raise BadInput(
                f"repetition_penalty is {self.repetition_penalty}; expected a number above 0 (1: no penalty), or none "
                "for the model's own",
                options=("repetition_penalty",),
            )

    @classmethod
    def lenient(
        cls,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
    ) -> Sampling:
        """As the interfaces of others have it: a temperature of 0 or none goes with any `top_p` and `seed`."""
        if not temperature:
            return cls(repetition_penalty=repetition_penalty)
        return cls(temperature, 1.0 if top_p is None else top_p, seed, repetition_penalty)


GREEDY = Sampling()


class Constraint(Protocol):
    """Which tokens may follow those that were chosen: a grammar of one answer."""

    def restricted(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits (V,) with minus infinity for tokens that may not follow; the argument is not changed."""

    def accept(self, token_id: int) -> bool:
        """A token was chosen; returns whether the answer is complete and nothing may follow."""


class Sampler:
    """Chooses the tokens of one answer; equal seeds give equal choices."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = ()) -> None:
        """Args: prompt_ids: the text of the prompt, for the repetition penalty"""
        self._sampling = sampling
        self._penalty, self._said = sampling.repetition_penalty or 1.0, set(prompt_ids)
        self._rng = None if sampling.temperature == 0 else np.random.default_rng(sampling.seed)

    def penalised(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits (V,) with the repetition penalty applied; the argument is not changed."""
        if self._penalty == 1.0 or not self._said:
            return logits
        found, said = logits.copy(), np.fromiter(self._said, np.int64)
        values, penalty = found[said], np.float32(self._penalty)
        found[said] = np.where(values < 0, values * penalty, values / penalty)
        return found

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """logits (V,) -> token id. Raises RunFailed if the most likely token's logit is not finite."""
        chosen = self._chosen(logits)
        if self._penalty != 1.0:
            self._said.add(chosen)
        return chosen

    def _chosen(self, logits: npt.NDArray[np.float32]) -> int:
        likeliest = int(logits.argmax())  # a NaN's index, if there is one
        if not math.isfinite(logits[likeliest]):
            raise RunFailed(
                "the logits of the next token are NaN or infinite; expected finite numbers. A half-precision graph "
                "overflowed or a file is damaged: compare the bundle with its checkpoint, or export it in fp32"
            )
        if self._rng is None:
            return likeliest
        probabilities = _softmax(logits, self._sampling.temperature)
        kept = _nucleus(probabilities, self._sampling.top_p)
        weights = probabilities[kept]
        return int(self._rng.choice(kept, p=weights / weights.sum()))


def _softmax(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):  # with a tiny temperature all but the most likely become exp(-inf) = 0
        exponentials = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    normalised: npt.NDArray[np.float64] = exponentials / exponentials.sum()
    return normalised


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.int64]:
    """Ids of the most likely tokens until their sum reaches top_p (Holtzman et al., 2020); at least one."""
    order = np.argsort(-probabilities, kind="stable")
    # A token is kept if the sum before it is below top_p.
    before = np.cumsum(probabilities[order]) - probabilities[order]
    return order[before < top_p] if top_p < 1.0 else order
