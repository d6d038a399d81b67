"""`python -m sdrpn`: the command `sdrpn`."""

from __future__ import annotations

import sys

from sdrpn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
