"""The process that builds one graph: `python -m sdrpn.engines.job`, started only by children.py.

Reads a request from stdin as one JSON line and writes events to a given file descriptor, one JSON line each. It ends
as soon as stdin is closed, so that a build does not outlive its parent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdrpn.engines.flavour import CompileRequest, compile_graph
from sdrpn.engines.graph_file import graph_with_context
from sdrpn.engines.layers import activation_bytes, kernels_from_log
from sdrpn.engines.phases import Phases
from sdrpn.engines.timing_cache import TimingCacheFile
from sdrpn.errors import SdrpnError

Tell = Callable[..., None]


def main() -> int:
    """Build one engine and report the result."""
    # Ctrl-C is sent to the whole process group of a terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8", buffering=1)
    lock = threading.Lock()

    def tell(event: str, **value: Any) -> None:
        with lock:
            events.write(json.dumps({"event": event, **value}) + "\n")

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        tell("done", **_build(request, tell))
    except SdrpnError as error:
        tell("refused", kind=type(error).__name__, message=str(error))
    except OSError as error:
        tell("os_error", errno=error.errno, message=str(error))
    events.close()
    return 0


def _build(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    begin_s = time.monotonic()
    path = Path(request["graph_file"])
    graph = graph_with_context(path, *request["contexts"])
    timing = TimingCacheFile(request["timing_cache"], request["flavour"])
    profiles = {
        name: {tensor: tuple(map(tuple, dims)) for tensor, dims in shapes.items()}
        for name, shapes in request["profiles"].items()
    }
    compiled = compile_graph(
        CompileRequest(
            flavour=request["flavour"],
            graph_file=str(path),
            graph=graph.content,
            compute_capabilities=tuple(request["compute_capabilities"]),
            profiles=profiles,
            opt_level=request["opt_level"],
            workspace_bytes=request["workspace_bytes"],
            weight_streaming=request["weight_streaming"],
            hardware_compat=request["hardware_compat"],
            version_compatible=request["version_compatible"],
            refit=request["refit"],
            verbosity=request["verbosity"],
            decompose_attention=request["decompose_attention"],
            timing_cache=timing.read(),
        ),
        _progress(tell),
    )
    size_bytes = _write(Path(request["out"]), compiled.plan)
    return {
        "size_bytes": size_bytes,
        "timing_cache": timing.add(compiled.timing_cache),
        "hardware_compatibility": compiled.hardware_compatibility,
        "small_weights": graph.small_weights,
        "compiled_sha256": hashlib.sha256(graph.content).hexdigest(),
        "tensors": [asdict(tensor) for tensor in compiled.tensors],
        "kernels": [asdict(kernel) for kernel in kernels_from_log(compiled.messages)],
        "activation_bytes": activation_bytes(compiled.messages),
        "build_s": time.monotonic() - begin_s,
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _progress(tell: Tell) -> Callable[[str, str, str | None, int], None]:
    phases, reported = Phases(), 0

    def report(event: str, phase: str, parent: str | None, number: int) -> None:
        nonlocal reported
        if event == "start":
            phases.start(phase, parent, number)
        elif event == "step":
            phases.step(phase, number)
        else:
            phases.finish(phase)
        percent = int(phases.share * 100)
        if percent > reported:
            reported = percent
            tell("progress", percent=percent)

    return report


def _write(path: Path, plan: Any) -> int:
    with path.open("wb") as stream:
        size_bytes = stream.write(memoryview(plan))
        stream.flush()
        os.fsync(stream.fileno())
    return size_bytes


def _peak_rss_bytes() -> int:
    """The peak of this process alone: getrusage includes that of the parent from before exec."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    return int(found.group(1)) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _end_with_the_parent() -> None:
    # Not through sys.stdin, whose lock the interpreter needs at exit.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
