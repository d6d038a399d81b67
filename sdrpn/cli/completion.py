"""`sdrpn completion`: what a shell needs to complete commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sdrpn.bundle.shipped import DEMO_NAME

HELP = "print what bash, zsh or fish needs to complete sdrpn's commands"
DESCRIPTION = """\
Print a script that teaches a shell to complete verbs, options, bundles, targets and files. In the shell's start file:

  eval "$(sdrpn completion bash)"              # ~/.bashrc
  eval "$(sdrpn completion zsh)"               # ~/.zshrc, after: autoload -U compinit && compinit
  sdrpn completion fish | source               # ~/.config/fish/config.fish
"""

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="the shell to write a script for")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell's request for completions (argcomplete's environment variables), and end the process."""
    import argcomplete
    from argcomplete.completers import ChoicesCompleter

    for verb in _verbs(parser):
        for action in verb._actions:
            if action.dest == "bundle" and not action.option_strings:
                action.completer = _bundles  # type: ignore[attr-defined]
            elif "--target" in action.option_strings:
                action.completer = _targets  # type: ignore[attr-defined]
            elif isinstance(action.metavar, str) and action.metavar.startswith("{"):  # checked by its own type
                names = dict.fromkeys(action.metavar.strip("{}").split(","), "")
                action.completer = ChoicesCompleter(names)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _bundles(prefix: str, **_: object) -> list[str]:
    from argcomplete.completers import DirectoriesCompleter

    return [name for name in (DEMO_NAME, *DirectoriesCompleter()(prefix)) if name.startswith(prefix)]


def _targets(prefix: str, **_: object) -> list[str]:
    from argcomplete.completers import FilesCompleter

    from sdrpn.workflows.engine_build import read_targets

    return [*read_targets(), *FilesCompleter((".toml",))(prefix)]


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode

    from sdrpn.terminal.output import print_document

    print_document(shellcode(["sdrpn"], shell=args.shell) + "\n")
    return 0
