"""`sdrpn completion`: what a shell needs to complete commands."""

from __future__ import annotations

import argparse

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


def answer_shell(parser: argparse.ArgumentParser) -> None:
    """Answer a shell's request for completions, and end the process."""
    from sdrpn.terminal.completion import complete

    complete(parser, {"bundle": _bundles, "--target": _targets})


def _bundles(prefix: str) -> list[str]:
    from argcomplete.completers import DirectoriesCompleter

    return [name for name in (DEMO_NAME, *DirectoriesCompleter()(prefix)) if name.startswith(prefix)]


def _targets(prefix: str) -> list[str]:
    from argcomplete.completers import FilesCompleter

    from sdrpn.workflows.engine_build import read_targets

    return [*read_targets(), *FilesCompleter((".toml",))(prefix)]


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode

    from sdrpn.terminal.output import print_document

    print_document(shellcode(["sdrpn"], shell=args.shell) + "\n")
    return 0
