"""The command line's parser: usage errors in one line, with what was probably meant."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sdrpn.host.suggestion import did_you_mean, unknown_choice

__all__ = ["Parser", "UsageError"]

# What begins like a negative number is a value, for whose type it is to refuse: argparse itself takes -1e-1, -inf and,
# in some versions, -1. for options. No option is named so.
_NEGATIVE_NUMBER = re.compile(r"-(\.?\d|(inf|infinity|nan)$)", re.IGNORECASE)


class UsageError(Exception):
    """A command line that cannot be read: `message` in one line, and the program and verb whose help explains it."""

    def __init__(self, message: str, program: str) -> None:
        super().__init__(message)
        self.message, self.program = message, program

    @property
    def cure(self) -> str:
        """Where the arguments are explained."""
        return f"see {self.program} --help"


class Parser(argparse.ArgumentParser):
    """Raises UsageError in place of printing the usage; `--help` lists verbs by the job that they are for."""

    def __init__(self, *args: Any, jobs: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        """Args: jobs: verbs by the title that they stand under; None: of a parser without verbs"""
        super().__init__(*args, **kwargs)
        self._jobs = jobs or {}
        self._negative_number_matcher = _NEGATIVE_NUMBER

    def format_help(self) -> str:
        """As argparse does it, but with a section a job in place of the one of all verbs."""
        if not self._jobs:
            return super().format_help()
        verbs = {verb.dest: verb for action in self._actions for verb in _verbs_of(action)}
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, names in self._jobs.items():
            formatter.start_section(title)
            formatter.add_arguments([verbs[name] for name in names if name in verbs])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action.option_strings])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """As argparse calls it for anything that it refuses."""
        raise UsageError(message, self.prog)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse compares a value with the choices, in the words that the rest of the program has for it."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, unknown_choice(value, action.choices))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """As argparse converts one text. An empty one names no path: Path("") would be the current folder.

        Scripts give it where a variable of the shell is not set.
        """
        value = super()._get_value(action, arg_string)
        if isinstance(value, Path) and not arg_string.strip():
            raise argparse.ArgumentError(action, f"the path is empty (got {arg_string!r}); expected a file or a folder")
        return value

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse prints help and version, but an output that cannot be written is an error."""
        if message:
            (file or sys.stderr).write(message)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """As `parse_args`, but the verb explains what is left over."""
        found, left = self.parse_known_args(arguments)
        if left:
            verb = self.parser_of(getattr(found, "verb", None))
            raise UsageError(f"unrecognized arguments: {' '.join(left)}{verb.meant_instead(left, found)}", verb.prog)
        return found

    def parser_of(self, verb: str | None) -> Parser:
        """The parser of a verb; this one where there is no such verb."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and verb in action.choices:
                parser: Parser = action.choices[verb]
                return parser
        return self

    def meant_instead(self, left: Sequence[str], found: argparse.Namespace) -> str:
        """A hint on arguments that nobody asked for: words of a question without quotes, or a mistyped option."""
        meant = next(filter(None, (self._meant_option(word) for word in left)), "")
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), left))
        question = getattr(found, "question", None)
        if words and not meant and isinstance(question, str):
            return f"; put the question in quotes: {shlex.quote(' '.join((question, *words)))}"
        return meant

    def _meant_option(self, word: str) -> str:
        if not word.startswith("--"):
            return ""
        return did_you_mean(word.partition("=")[0], self._option_string_actions)


def _verbs_of(action: argparse.Action) -> list[argparse.Action]:
    """The lines of `--help` that a set of subparsers stands for."""
    return list(action._get_subactions()) if isinstance(action, argparse._SubParsersAction) else []
