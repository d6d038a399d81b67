"""`sdrpn serve` with a store of releases, as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdrpn.errors import BadInput
from tests.limits import line_of

__all__ = ["serving"]


@contextmanager
def serving(store: Path, *options: str | Path) -> Iterator[str]:
    """The URL of `sdrpn serve`."""
    command = [sys.executable, "-m", "sdrpn", "serve", store, "--port", "0", "--threads", "1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        while line := line_of(process, process.stderr):
            if found := re.search(r"listening on (http://\S+)", line):
                yield found.group(1)
                break
        else:
            raise BadInput("the server ended")
    finally:
        process.send_signal(signal.SIGTERM)
        process.stderr.close()
        process.wait(60)
