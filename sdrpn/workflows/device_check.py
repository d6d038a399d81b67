"""Test a device, step by step, and report the results, the machine and its libraries."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone

from sdrpn import __version__
from sdrpn.bundle.graphs import Parts
from sdrpn.errors import EngineMismatch
from sdrpn.host.libraries import installed_version
from sdrpn.host.machine import read_cpu, read_machine
from sdrpn.host.progress import Advance, unseen
from sdrpn.reports.device_report import CheckResult, DeviceReport, Subject
from sdrpn.runtime.backends import AUTOMATIC
from sdrpn.runtime.checkup import CheckupRequest, opened_bundle, run_checkup

__all__ = ["CheckupRequest", "DeviceReport", "check", "check_device"]

# The libraries that a report lists; `diagnose_machine` lists all.
_LIBRARIES = ("onnxruntime", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-python", "numpy", "pillow", "tokenizers")


def check_device(
    bundle: str | None = None,
    *,
    backend: str = AUTOMATIC,
    target: str | None = None,
    gpu: int = 0,
    parts: Parts = "all",
    threads: int | None = None,
    progress: Advance = unseen,
) -> DeviceReport:
    """Test CUDA, the compiled image path and, if given, a bundle. A failed step does not stop the others.

    Args:
        bundle: folder, or "demo"; None: no bundle
        backend: the library that runs it, as for `Session.open`
        target: the target whose engines run; None: the first that fit
        gpu: the GPU, as CUDA numbers them
        parts: "look": check that the bundle looks, with vision, trunk and RPN alone; see `Session.open`
        threads: of the CPU; None: as `Session.open` chooses
        progress: called with the number of steps so far, and of all

    Raises: BadBundle, BadInput for a request that no machine could meet. A failure on this machine is a result.
    """
    return check(CheckupRequest(bundle, backend, target, gpu, parts, threads), progress)


def check(request: CheckupRequest, progress: Advance = unseen) -> DeviceReport:
    """See `check_device`."""
    subject, machine, cpu = _subject(request), read_machine(), read_cpu()
    results: list[CheckResult] = []
    for result in run_checkup(request):
        results.append(result)
        progress(len(results), max(len(results), request.step_count))
    return DeviceReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
        device=machine.gpus[request.gpu].name if request.gpu < len(machine.gpus) else cpu.model,
        machine={**dataclasses.asdict(machine), "cpu": cpu.model},
        libraries={name: installed_version(name) for name in _LIBRARIES},
        subject=subject,
        results=tuple(results),
    )


def _subject(request: CheckupRequest) -> Subject | None:
    """What will be tested. None if engines do not fit this machine, which is then a result."""
    if request.bundle is None:
        return None
    try:
        return opened_bundle(request).subject
    except EngineMismatch:
        return None
