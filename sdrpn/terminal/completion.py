"""Answer a shell that asks what a command line may go on with. Knows no verb; completers are given by argument."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

__all__ = ["Completer", "complete"]

# (what is typed so far) -> everything that the argument may be.
Completer: TypeAlias = Callable[[str], list[str]]


def complete(parser: argparse.ArgumentParser, completers: Mapping[str, Completer]) -> None:
    """Answer a shell's request for completions (argcomplete's environment variables), and end the process.

    Args:
        completers: of positional arguments by name and of options by themselves: "bundle", "--target"
    """
    import argcomplete
    from argcomplete.completers import ChoicesCompleter

    for verb in _verbs(parser):
        for action in verb._actions:
            known = next((completers[name] for name in _names(action) if name in completers), None)
            if known is not None:
                action.completer = _of_argcomplete(known)  # type: ignore[attr-defined]
            elif isinstance(action.metavar, str) and action.metavar.startswith("{"):  # checked by its own type
                names = dict.fromkeys(action.metavar.strip("{}").split(","), "")
                action.completer = ChoicesCompleter(names)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _names(action: argparse.Action) -> list[str]:
    return list(action.option_strings) or [action.dest]


def _of_argcomplete(completer: Completer) -> Callable[..., list[str]]:
    """argcomplete passes more than what is typed."""
    return lambda prefix, **_: completer(prefix)
