"""Every error that this package raises on purpose, in one tree.

    SdrpnError                what went wrong with the work (exit code 1)
    ├── BadInput              what was asked for cannot be done (exit code 2)
    │   ├── BadImage          not a picture, truncated, or too large
    │   ├── BadCheckpoint     a tensor or a config entry is missing or has another shape
    │   ├── BadBundle         a bundle is incomplete, changed, or of another version
    │   ├── EngineMismatch    an engine does not fit this machine or its bundle
    │   ├── ContextTooLong    prompt and answer do not fit the context
    │   └── MissingDependency an optional library is not installed
    ├── Cancelled             the answer was ended before it was complete
    └── RunFailed             a graph, an export or a comparison failed
        └── EngineNotBuilt    a library finds no kernels for a graph

A message says what, got, expected, and what to do, in words that hold in Python and in a shell alike; the command line
adds the options that `options` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "BadBundle",
    "BadCheckpoint",
    "BadImage",
    "BadInput",
    "Cancelled",
    "ContextTooLong",
    "EngineMismatch",
    "EngineNotBuilt",
    "MissingDependency",
    "RunFailed",
    "SdrpnError",
]


class SdrpnError(Exception):
    """The root of the tree; the command line exits with `exit_code`.

    options: arguments that would change it, with a value where one is advised: "vision_tower", "precision bf16"
    """

    exit_code = 1

    def __init__(self, *arguments: object, options: Iterable[str] = ()) -> None:
        super().__init__(*arguments)
        self.options = tuple(options)

    @property
    def cure(self) -> str | None:
        """What to do, as the message ends with it: behind its first full stop, semicolon, or else colon."""
        message = " ".join(str(self).split())
        for end in (r"\. (?=[A-Z])", "; ", r": (?=[a-z])"):
            parts = re.split(end, message, maxsplit=1)
            if len(parts) == 2:
                return parts[1]
        return None


class BadInput(SdrpnError, ValueError):
    """The request is wrong."""

    exit_code = 2


class BadImage(BadInput):
    """An image cannot be read."""


class BadCheckpoint(BadInput):
    """A checkpoint cannot be read as the model that its config describes."""


class BadBundle(BadInput):
    """A bundle cannot be trusted or understood."""


class EngineMismatch(BadInput):
    """An engine was built for another machine, another library or another bundle."""


class ContextTooLong(BadInput):
    """The request needs more positions than the model has."""


class MissingDependency(BadInput):
    """A feature needs a library that is not installed."""


class Cancelled(SdrpnError, RuntimeError):
    """Someone ended the work: `cancel` of a session, or `close` of a stream."""


class RunFailed(SdrpnError, RuntimeError):
    """The request was good, the work failed."""


class EngineNotBuilt(RunFailed):
    """A library could read a graph and has no engine for it, or crashed over it. `graph`: its name."""

    graph = ""
