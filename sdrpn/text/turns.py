"""The turns of a conversation, and which of them shows which picture. Knows no template and no pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sdrpn.errors import BadInput

__all__ = ["Role", "Turn", "conversation"]

Role: TypeAlias = Literal["system", "user", "assistant"]
MOST_TURNS = 1000  # more than any context holds, and a bound on what a template is given


@dataclass(frozen=True)
class Turn:
    """What the system, the user or the assistant said.

    images: pictures that a user shows before the text; they are taken in order from those of the question.
    """

    role: Role
    text: str
    images: int = 0

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise BadInput(f"the role of a turn is {str(self.role)[:40]!r}; expected {', '.join(get_args(Role))}")
        if not isinstance(self.text, str):
            raise BadInput(f"the text of a turn is {type(self.text).__name__}; expected text")
        if not isinstance(self.images, int) or isinstance(self.images, bool) or self.images < 0:
            raise BadInput(f"the images of a turn are {str(self.images)[:40]!r}; expected a number of at least 0")
        if self.images and self.role != "user":
            raise BadInput(f"a turn of the {self.role} has {self.images} images; only the user shows pictures")


def conversation(question: str, history: Sequence[Turn] = (), images: int = 1) -> tuple[Turn, ...]:
    """The history and the question as one conversation that shows `images` pictures.

    If no turn of the history shows any, all of them are shown in the user's first turn, as in a conversation about one
    picture; else what the history leaves is shown with the question.

    Raises: BadInput for a question that is not text, for a history in another order (at most one system turn, first;
        then the user and the assistant in turns, the assistant last), and for more pictures than there are.
    """
    turns = _checked(history)
    shown = sum(turn.images for turn in turns)
    if shown > images:
        raise BadInput(f"the history shows {shown} pictures; expected at most {images}, all that were passed")
    if not isinstance(question, str):
        raise BadInput(f"the question is {type(question).__name__}; expected text")
    last = Turn("user", question, images - shown)
    if shown or not turns or turns[-1].role == "system":
        return (*turns, last)
    first = next(place for place, turn in enumerate(turns) if turn.role == "user")
    turns[first] = dataclasses.replace(turns[first], images=images)
    return (*turns, dataclasses.replace(last, images=0))


def _checked(history: Sequence[Turn]) -> list[Turn]:
    turns = list(history)
    if len(turns) > MOST_TURNS:
        raise BadInput(f"the history has {len(turns)} turns; expected {MOST_TURNS} at most")
    for turn in turns:
        if not isinstance(turn, Turn):
            raise BadInput(f"an entry of the history is {type(turn).__name__}; expected a Turn")
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for place, turn in enumerate(spoken):
        expected = ("user", "assistant")[place % 2]
        if turn.role != expected:
            raise BadInput(
                f"turn {place + 1 + len(turns) - len(spoken)} of the history is the {turn.role}'s; expected the "
                f"{expected}'s: the user and the assistant in turns, after at most one turn of the system"
            )
    if spoken and spoken[-1].role == "user":
        raise BadInput("the history ends with the user's turn; expected the assistant's: the question comes after it")
    return turns
