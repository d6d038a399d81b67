"""What a command did, and the form that every refusal has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Command", "Outcome", "refusal"]


@dataclass(frozen=True)
class Outcome:
    """Exit code, and everything on the two streams."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout as one JSON document, after a run without a word on stderr."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)


Command: TypeAlias = Callable[..., Outcome]  # sdrpn("ask", bundle, image, "What?")


def refusal(outcome: Outcome, code: int = 2) -> str:
    """The message of a command that failed as every one should: one line on stderr, on stdout nothing or JSON of it."""
    assert outcome.code == code, outcome
    found = re.fullmatch(r"sdrpn: error: (.+)\n", outcome.err)
    assert found is not None, outcome.err
    assert outcome.out == "" or json.loads(outcome.out)["error"]["message"] == found.group(1), outcome
    return found.group(1)
