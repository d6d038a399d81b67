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
_LINE_INTERVAL_S = 0.25  # between changes of a line on a screen


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
def status() -> Iterator[Callable[[Callable[[], str]], None]]:
    """Show on stderr how endless work goes: one line that changes, or now and then a line.

    with status() as show:
        show(lambda: "12 frames")  # called only where the text is shown
    """
    if not sys.stderr.isatty() or sys.stdout.isatty():  # results on the same screen show that it goes on
        yield _now_and_then(_LOG_INTERVAL_S, remark)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    # Not redirected: results would go to the screen, in lines of its width, and not to where stdout leads.
    with Live(Text(""), console=Console(stderr=True), redirect_stdout=False, transient=True) as shown:
        yield _now_and_then(_LINE_INTERVAL_S, lambda text: shown.update(Text(text)))


def _now_and_then(interval_s: float, write: Callable[[str], None]) -> Callable[[Callable[[], str]], None]:
    last_s = time.monotonic()

    def show(text: Callable[[], str]) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= interval_s:
            last_s = now_s
            write(text())

    return show
