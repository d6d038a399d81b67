"""Run builds in child processes, several at a time, and report how each ended. Knows neither TensorRT nor bundles."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from sdrpn import errors
from sdrpn.errors import EngineNotBuilt, RunFailed, SdrpnError

__all__ = ["Job", "run_jobs"]

JobProgress = Callable[[str, int], None]  # (job, percent)


@dataclass(frozen=True)
class Job:
    """One build: a name for messages, and the request for job.py."""

    name: str
    request: Mapping[str, Any]
    module: str = "sdrpn.engines.job"
    environment: Mapping[str, str] = field(default_factory=dict)  # in addition to this process's own


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    events: IO[bytes]
    output: IO[bytes]  # what the library printed
    buffer: bytes = b""
    last: dict[str, Any] = field(default_factory=dict)


def run_jobs(
    jobs: Sequence[Job], *, at_once: int, advance: JobProgress
) -> Generator[tuple[Job, dict[str, Any]], None, None]:
    """Yield each job with its result as it ends. Leaving the loop early kills the running jobs.

    Raises: the error that a job reported; EngineNotBuilt for one that crashed inside the library; RunFailed for one
        that was killed, or where the disk was full
    """
    waiting, running = list(jobs), dict[int, _Child]()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    child = _start(waiting.pop(0))
                    running[child.events.fileno()] = child
                    selector.register(child.events, selectors.EVENT_READ)
                for key, _ in selector.select():
                    child = running[key.fd]
                    if not _read(child, advance):
                        selector.unregister(child.events)
                        del running[key.fd]
                        yield child.job, _result(child)
        finally:
            for child in running.values():
                child.process.kill()
                _close(child)


def _start(job: Job) -> _Child:
    reading, writing = os.pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", job.module, str(writing)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            env={**os.environ, **job.environment},
        )
    finally:
        os.close(writing)
    child = _Child(job, process, os.fdopen(reading, "rb", buffering=0), output)
    assert process.stdin is not None
    # A child that is dead already is reported when its events are read.
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(job.request).encode() + b"\n")
        process.stdin.flush()
    return child


def _read(child: _Child, advance: JobProgress) -> bool:
    """Read the available events; False at the end."""
    piece = child.events.read(1 << 16)
    if not piece:
        return False
    *lines, child.buffer = (child.buffer + piece).split(b"\n")
    for line in lines:
        value = json.loads(line)
        if value["event"] == "progress":
            advance(child.job.name, value["percent"])
        else:
            child.last = value
    return True


def _result(child: _Child) -> dict[str, Any]:
    code = child.process.wait()
    child.output.seek(0)
    printed = child.output.read().decode("utf-8", "replace").strip().splitlines()
    _close(child)
    name, last = child.job.name, child.last
    if last.get("event") == "refused":
        kind = getattr(errors, last["kind"])
        assert issubclass(kind, SdrpnError)
        refusal = kind(last["message"])
        if isinstance(refusal, EngineNotBuilt):
            refusal.graph = name
        raise refusal
    if last.get("event") == "os_error":
        raise _os_error(name, last)
    if code != 0 or last.get("event") != "done":
        failure = EngineNotBuilt if code < 0 and code != -signal.SIGKILL else RunFailed
        error = failure(_ending(name, code, printed[-1] if printed else ""))
        if isinstance(error, EngineNotBuilt):
            error.graph = name
        raise error
    return last


def _os_error(name: str, last: Mapping[str, Any]) -> RunFailed:
    if last["errno"] in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(
            f"the disk is full: writing the engine of {name} failed; free some space; no file was left behind"
        )
    return RunFailed(f"building {name} failed: {last['message']}; nothing was left behind")


def _ending(name: str, code: int, printed: str) -> str:
    output = f" (its output: {printed})" if printed else ""
    if code == -signal.SIGKILL:
        return (
            f"the build of {name} was killed (signal 9), which is how Linux ends a process when memory runs out; "
            "use fewer jobs or a shorter context, build fewer graphs at a time, or add swap"
        )
    if code < 0:
        return f"the build of {name} crashed inside the library: {signal.Signals(-code).name}{output}; nothing was kept"
    return f"the build of {name} ended with exit code {code}{output}; nothing was kept"


def _close(child: _Child) -> None:
    if child.process.stdin is not None:
        with suppress(BrokenPipeError):
            child.process.stdin.close()
    child.process.wait()
    child.events.close()
    child.output.close()
