"""The `sdrpn` command: find the verb and run it; sdrpn.terminal.ending has the exit codes.

Nothing heavy is imported here, nor at the top of a verb's module, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from sdrpn import __version__
from sdrpn.terminal.ending import exit_code_of
from sdrpn.terminal.failure import is_given
from sdrpn.terminal.model_folders import add_model_options, found_model_folders
from sdrpn.terminal.output import begin_output
from sdrpn.terminal.parser import Parser
from sdrpn.terminal.streams import prepare_streams

__all__ = ["main"]

# What users want to do, and the verbs for it, in the order of use.
JOBS = {
    "look and answer": ("demo", "ask", "look", "serve", "mcp", "inspect", "doctor"),
    "make a bundle of a checkpoint": ("export", "compare", "verify", "quantize"),
    "put it on a device": ("targets", "plan", "build", "optimize", "bench", "release", "export-triton"),
    "train an RPN": ("heads", "label", "relabel", "train", "gate-label", "eval"),
    "in the shell": ("completion",),
}
VERBS = tuple(verb for verbs in JOBS.values() for verb in verbs)


class Verb(Protocol):
    """The module of a verb."""

    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: the process's own) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    begin_output()
    # Read before parsing, so that a trace is available for any later failure.
    debug, as_json = is_given("--debug", arguments), is_given("--json", arguments)
    return exit_code_of(lambda: _run(arguments), debug=debug, as_json=as_json)


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="sdrpn",
        description="Look at an image once, crop where it matters, answer with the detail added.",
        epilog="`sdrpn VERB --help` explains a verb. Results go to stdout, progress and errors to stderr.",
        allow_abbrev=False,
        jobs=JOBS,
    )
    parser.add_argument("--version", action="version", version=f"sdrpn {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    for name in VERBS:
        verb = _verb(name)
        verb_parser = verbs.add_parser(
            name,
            help=verb.HELP,
            description=verb.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(verb_parser)
        add_model_options(verb_parser)
        # SUPPRESS: a verb without --debug must not reset the one given before it.
        verb_parser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
    return parser


def _run(arguments: Sequence[str]) -> int:
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions, which end the process
        from sdrpn.cli.completion import answer_shell

        answer_shell(parser)
    args = parser.read(arguments)
    if args.verb is None:
        parser.error(f"a verb is missing; expected one of {', '.join(VERBS)}")
    with warnings.catch_warnings():
        # Pillow's warnings about files that it reads anyway; unreadable files raise our own errors.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with found_model_folders(args):
            return _verb(args.verb).run(args)


def _verb(name: str) -> Verb:
    return cast(Verb, import_module(f"sdrpn.cli.{name.replace('-', '_')}"))


if __name__ == "__main__":
    sys.exit(main())
