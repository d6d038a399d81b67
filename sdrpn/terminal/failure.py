"""How a command that failed says so: one line on stderr, and with --json an object on stdout."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from sdrpn.errors import BadInput, SdrpnError
from sdrpn.host.escaping import one_line
from sdrpn.terminal.parser import UsageError

__all__ = ["Failure", "complain", "is_given"]


@dataclass(frozen=True)
class Failure:
    """What `--json` prints as {"error": ...}. `code` names the kind: bad_image, missing_dependency, usage, internal."""

    code: str
    message: str
    cure: str | None
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """One of the package's errors, with the options that change it; a usage error; or an unexpected one."""
        if isinstance(error, UsageError):
            return cls("usage", f"{error.message} ({error.cure})", error.cure, BadInput.exit_code)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Files that are replaced whole say it themselves: this is standard output, or a file that grows.
            what, advice = (
                error.filename or "what this command prints or appends",
                "free some space, or name another disk",
            )
            return cls("run_failed", f"the disk is full: {what} is cut off; {advice}", advice, SdrpnError.exit_code)
        if not isinstance(error, SdrpnError):
            advice = "run again with --debug for the trace"
            message = f"{type(error).__name__}: {error}; {advice}"
            return cls("internal", message, advice, SdrpnError.exit_code)
        code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
        named = f" ({', '.join(map(_option, error.options))})" if error.options else ""
        message, cure = " ".join(str(error).split()), error.cure
        return cls(code, f"{message}{named}", None if cure is None else f"{cure}{named}", error.exit_code)

    def report(self, as_json: bool) -> None:
        """Print it; on stdout only where nothing was printed there yet, so that stdout is one document."""
        from sdrpn.terminal.output import has_printed, print_json

        if as_json and not has_printed():
            with suppress(OSError, ValueError, SdrpnError):
                print_json({"error": asdict(self)})
                sys.stdout.flush()
        complain(f"sdrpn: error: {self.message}")


def _option(argument: str) -> str:
    """vision_tower -> --vision-tower; precision bf16 -> --precision bf16."""
    name, *value = argument.split(maxsplit=1)
    return " ".join((f"--{name.replace('_', '-')}", *value))


def complain(line: str) -> None:
    """One line on stderr."""
    # Nobody is left to tell when stderr is gone too; the exit code still says it.
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{one_line(line)}\n")
        sys.stderr.flush()


def is_given(option: str, arguments: Sequence[str]) -> bool:
    """Whether a switch is on the command line, read before it is parsed."""
    return option in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
