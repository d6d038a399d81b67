"""The command `sdrpn`, also as `python -m sdrpn`: Ctrl-C ends it in one line even while it is still being imported."""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def main() -> int:
    """Run the process's command line and return the exit code."""
    try:
        from sdrpn.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # before the command can report it: see sdrpn.terminal.ending
        if "--debug" in sys.argv:
            raise
        sys.stderr.write("sdrpn: interrupted\n")
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
