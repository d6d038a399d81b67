"""Run every group of steps in a child process and collect the results; a crashed child does not affect other groups."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from sdrpn.reports.device_report import CheckResult
from sdrpn.runtime.checkup.groups import CheckupRequest

__all__ = ["run_checkup"]

_MODULE = "sdrpn.runtime.checkup"
Begin = Callable[[str, str], None]  # (group, step)


def run_checkup(
    request: CheckupRequest, begin: Begin = lambda group, step: None, *, module: str = _MODULE
) -> Iterator[CheckResult]:
    """Yield the results in order.

    Args:
        begin: called before each step
        module: the module that the children run (for tests)
    """
    for group in request.groups:
        with tempfile.TemporaryFile() as printed, _child(group, request, module, printed) as child:
            yield from child.results(begin)


@dataclass
class _Child:
    """A running group of steps."""

    group: str
    process: subprocess.Popen[bytes]
    events: IO[bytes]
    printed: IO[bytes]  # output of libraries
    step_limit_s: float
    waiting: list[str] = field(default_factory=list)  # steps that have not started
    current: str = "start"
    since_s: float = field(default_factory=time.monotonic)

    def results(self, begin: Begin) -> Iterator[CheckResult]:
        """Yield results until the child ends; if it ends early, the current step has failed."""
        fault = None
        try:
            for event in self._events():
                if "begin" in event:
                    begin(self.group, event["begin"])
                yield from self._took(event)
        except TimeoutError:
            self.process.kill()
            fault = f"it did not end within {self.step_limit_s:g} s"
        code = self.process.wait()
        if fault is None and code == 0 and not self.waiting:
            return
        yield self._failed(fault or self._ending(code))
        for name in self.waiting:
            reason = f"the step before, {self.current!r}, ended the process"
            yield CheckResult(self.group, name, "skipped", reason, 0.0)

    def _took(self, event: dict[str, Any]) -> Iterator[CheckResult]:
        self.since_s = time.monotonic()
        if "steps" in event:
            self.waiting = event["steps"]
        elif "begin" in event:
            self.current = event["begin"]
            self.waiting.remove(self.current)
        else:
            yield CheckResult(**event["result"])

    def _events(self) -> Iterator[dict[str, Any]]:
        """The child's events. Raises TimeoutError when the next one exceeds the time limit of a step."""
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.events, selectors.EVENT_READ)
            while True:
                left_s = self.since_s + self.step_limit_s - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    raise TimeoutError
                piece = self.events.read(1 << 16)
                if not piece:
                    return
                *lines, buffer = (buffer + piece).split(b"\n")
                yield from map(json.loads, lines)

    def _failed(self, detail: str) -> CheckResult:
        return CheckResult(self.group, self.current, "failed", detail, time.monotonic() - self.since_s)

    def _ending(self, code: int) -> str:
        self.printed.seek(0)
        lines = self.printed.read().decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        if code == -signal.SIGKILL:
            return f"the process was killed, which is how Linux ends one when memory runs out{said}"
        if code < 0:
            return f"the process crashed with {signal.Signals(-code).name}{said}"
        return f"the process ended with exit code {code}{said}"


@contextmanager
def _child(group: str, request: CheckupRequest, module: str, printed: IO[bytes]) -> Iterator[_Child]:
    """Start a child process, which is killed when the block ends."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as events:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module, group, str(writing)],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        try:
            assert process.stdin is not None
            # A child that is dead already is noticed when its events are read.
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(asdict(request)).encode())
            yield _Child(group, process, events, printed, request.step_limit_s)
        finally:
            process.kill()
            process.wait()
