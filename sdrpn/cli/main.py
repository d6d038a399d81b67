"""The `sdrpn` command: find the verb, run it, and report an error as one line and an exit code.

Exit codes: 0 done, 1 the work failed, 2 a bad request (usage or input), 130 interrupted, 141 standard output
was closed, 143 terminated.

Nothing heavy is imported here, nor at the top of a verb's module, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, Protocol, cast

from sdrpn import __version__
from sdrpn.cli.model_folders import found_model_folders
from sdrpn.errors import SdrpnError
from sdrpn.host.interrupt import raising_on_signals
from sdrpn.terminal.failure import Failure, complain, is_given
from sdrpn.terminal.output import begin_output
from sdrpn.terminal.parser import Parser, UsageError
from sdrpn.terminal.streams import prepare_streams, silence_stdout, silence_stdout_if_broken

__all__ = ["main"]

# What users want to do, and the verbs for it, in the order of use.
JOBS = {
    "look and answer": ("demo", "ask", "look", "serve", "mcp", "inspect", "doctor"),
    "make a bundle of a checkpoint": ("export", "compare", "verify", "quantize"),
    "put it on a device": ("targets", "plan", "build", "optimize", "bench"),
    "train an RPN": ("heads", "label", "relabel", "train", "eval"),
    "in the shell": ("completion",),
}
VERBS = tuple(verb for verbs in JOBS.values() for verb in verbs)

EXIT_FAILED = 1
EXIT_BAD_REQUEST = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
# What a shell reports for a program that these signals end; not all systems define SIGPIPE.
EXIT_BROKEN_PIPE = 128 + 13
EXIT_TERMINATED = 128 + signal.SIGTERM


_ENDED = {EXIT_INTERRUPTED: "sdrpn: interrupted", EXIT_TERMINATED: "sdrpn: terminated"}


class _Terminated(SystemExit):
    """SIGTERM was received."""


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
    try:
        return _watched(arguments)
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except _Terminated:
        complain(_ENDED[EXIT_TERMINATED])
        return EXIT_TERMINATED
    except SystemExit as error:  # argparse, after --help
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        complain(_ENDED[EXIT_INTERRUPTED])
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug and not isinstance(error, UsageError):
            raise
        failure = _failure(error)
        failure.report(as_json)
        silence_stdout_if_broken()
        return failure.exit_code


def _watched(arguments: Sequence[str]) -> int:
    with raising_on_signals({signal.SIGINT: _interrupt, signal.SIGTERM: _terminate}, _end_now):
        code = _run(arguments)
        sys.stdout.flush()
        return code


def _failure(error: Exception) -> Failure:
    if isinstance(error, SdrpnError):
        return Failure.of(error)
    if isinstance(error, UsageError):
        return Failure("usage", f"{error.message} ({error.cure})", error.cure, EXIT_BAD_REQUEST)
    cure = "run again with --debug for the trace"
    return Failure("internal", f"{type(error).__name__}: {error}; {cure}", cure, EXIT_FAILED)


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
        # SUPPRESS: a verb without --debug must not reset the one given before it.
        verb_parser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
    return parser


def _run(arguments: Sequence[str]) -> int:
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions, which end the process
        from sdrpn.cli.completion import complete

        complete(parser)
    args = parser.read(arguments)
    if args.verb is None:
        parser.error(f"a verb is missing; expected one of {', '.join(VERBS)}")
    with warnings.catch_warnings():
        # Pillow's warnings about files that it reads anyway; unreadable files raise our own errors.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with found_model_folders(args):
            return _verb(args.verb).run(args)


def _verb(name: str) -> Verb:
    return cast(Verb, import_module(f"sdrpn.cli.{name}"))


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _terminate() -> NoReturn:
    """SIGTERM unwinds the stack as Ctrl-C does, so that temporary files are removed."""
    raise _Terminated(EXIT_TERMINATED)


def _end_now(number: int) -> None:
    """The main thread does not return from a library: nothing is unwound, and the next run removes leftovers."""
    code = 128 + number
    complain(_ENDED[code])
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
