"""Which part of a job a process does: its number among all of them. Arithmetic alone; starts no process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdrpn.errors import BadInput

__all__ = ["WHOLE", "Part", "part_from_text", "part_of_launcher"]

# What `torchrun` and `accelerate launch` set in every process: its number, their count, its number on its machine.
RANK, WORLD_SIZE, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `count`. gpu: its number among the processes of its machine; None: not known."""

    number: int = 1
    count: int = 1
    gpu: int | None = None

    def __post_init__(self) -> None:
        if not all(type(value) is int for value in (self.number, self.count)) or not 1 <= self.number <= self.count:
            raise BadInput(f"the part is {self.number!r} of {self.count!r}; expected a number from 1 to the count")

    @property
    def is_whole(self) -> bool:
        """Whether there is no other part."""
        return self.count == 1

    def owns(self, index: int) -> bool:
        """Whether this part does item `index` (from 0): every count-th is, so that parts take equally long."""
        return index % self.count == self.number - 1

    def device(self, name: str) -> str:
        """The device for this process: with "cuda" the GPU of its number, where that is known."""
        return name if name != "cuda" or self.gpu is None else f"cuda:{self.gpu}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Part()


def part_from_text(text: str) -> Part:
    """A part from "I/N". Raises BadInput."""
    number, slash, count = text.partition("/")
    if not slash or not all(_is_number(value) for value in (number, count)):
        raise BadInput(f"the part is {text!r}; expected I/N, such as 1/4 for the first of four")
    return Part(int(number), int(count))


def part_of_launcher(environment: Mapping[str, str]) -> Part:
    """The part that a launcher gave this process; everything where it was started without one. Raises BadInput."""
    if RANK not in environment and WORLD_SIZE not in environment:
        return WHOLE
    rank, count, local = (environment.get(name, "") for name in (RANK, WORLD_SIZE, LOCAL_RANK))
    if not all(map(_is_number, (rank, count))) or not int(rank) < int(count) or (local and not _is_number(local)):
        raise BadInput(
            f"the environment has {RANK}={rank!r}, {WORLD_SIZE}={count!r}, {LOCAL_RANK}={local!r}; expected what a "
            "launcher sets: unset them, or name the part",
            options=("shard",),
        )
    return Part(int(rank) + 1, int(count), int(local) if local else None)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
