"""A progress bar on stderr for people, and now and then a line for logs. Knows nothing about the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sdrpn.sizes import text_from_bytes

__all__ = ["Advance", "progress"]

# (done, total) in bytes. A stage takes such a callable and so needs nothing of the command line.
Advance = Callable[[int, int], None]

# Where stderr is a file: short runs stay quiet, long ones show that they live.
_LOG_INTERVAL_S = 10.0


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show how far the block is, as told by `advance(done_bytes, total_bytes)`.

    with progress("export") as advance:
        advance(3_000_000, 16_000_000)
    """
    if not sys.stderr.isatty():
        yield _sparse_lines(title)
        return
    with _bar(title) as advance:
        yield advance


@contextmanager
def _bar(title: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    title_column = TextColumn("{task.description}", markup=False)
    columns = (title_column, BarColumn(), DownloadColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=None)

        def advance(done_bytes: int, total_bytes: int) -> None:
            display.update(task, completed=done_bytes, total=total_bytes)

        yield advance


def _sparse_lines(title: str) -> Advance:
    last_s = time.monotonic()

    def advance(done_bytes: int, total_bytes: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s < _LOG_INTERVAL_S:
            return
        last_s = now_s
        sys.stderr.write(f"sdrpn: {title}: {text_from_bytes(done_bytes)} of {text_from_bytes(total_bytes)}\n")
        sys.stderr.flush()

    return advance
