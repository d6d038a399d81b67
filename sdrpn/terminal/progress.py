"""A progress bar on stderr for people, and now and then a line for logs. Knows nothing about the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sdrpn.host.progress import Advance
from sdrpn.host.sizes import text_from_bytes
from sdrpn.terminal.output import remark

__all__ = ["progress", "status"]


# Where stderr is a file: short runs stay quiet, long ones show that they live.
_LOG_INTERVAL_S = 10.0


@contextmanager
def progress(title: str, unit: str | None = None) -> Iterator[Advance]:
    """Show how far the block is, as `advance(done, total)` reports it.

    Args:
        unit: what is counted, in the plural, such as "steps"; None: bytes

    with progress("export") as advance:
        advance(3_000_000, 16_000_000)
    """
    if not sys.stderr.isatty():
        yield _sparse_lines(title, unit)
        return
    with _bar(title, unit) as advance:
        yield advance


@contextmanager
def _bar(title: str, unit: str | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title_column = TextColumn("{task.description}", markup=False)
    counts = (DownloadColumn(),) if unit is None else (MofNCompleteColumn(), TextColumn(unit, markup=False))
    columns = (title_column, BarColumn(), *counts, TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            display.update(task, completed=done, total=total)

        yield advance


def _sparse_lines(title: str, unit: str | None) -> Advance:
    last_s = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s < _LOG_INTERVAL_S:
            return
        last_s = now_s
        counts = f"{done} of {total} {unit}" if unit else f"{text_from_bytes(done)} of {text_from_bytes(total)}"
        remark(f"{title}: {counts}")

    return advance


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Show on stderr how endless work goes, as `show(text)` says it: one line that changes, or now and then a line."""
    if not sys.stderr.isatty() or sys.stdout.isatty():  # results on the same screen show that it goes on
        yield _sparse_remarks()
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text("")) as shown:
        yield lambda text: shown.update(Text(text))


def _sparse_remarks() -> Callable[[str], None]:
    last_s = time.monotonic()

    def show(text: str) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= _LOG_INTERVAL_S:
            last_s = now_s
            remark(text)

    return show
