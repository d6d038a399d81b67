"""The steps of a device check, by group. A request is plain data, so that it can be sent to another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sdrpn.bundle.graphs import Parts
from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.machine import read_machine
from sdrpn.host.suggestion import unknown_choice
from sdrpn.host.threads import require_threads
from sdrpn.runtime.backends import AUTOMATIC
from sdrpn.runtime.backends.cuda import load_cuda
from sdrpn.runtime.backends.device_memory import Device
from sdrpn.runtime.checkup.bundle_checks import BundleChecks
from sdrpn.runtime.checkup.cuda_checks import CudaChecks
from sdrpn.runtime.checkup.look_checks import LookChecks
from sdrpn.runtime.checkup.opened_bundle import OpenedBundle
from sdrpn.runtime.checkup.picture_checks import PictureChecks
from sdrpn.runtime.checkup.steps import Step

__all__ = ["GROUPS", "STEP_COUNTS", "CheckupRequest", "opened_bundle", "steps_of"]


@dataclass(frozen=True)
class CheckupRequest(CheckedFields):
    """The request of a device check."""

    bundle: str | None = None  # None: only CUDA and pictures
    backend: str = AUTOMATIC
    target: str | None = None
    gpu: int = 0  # the CUDA device index
    parts: Parts = "all"  # of the bundle; "look": vision, trunk and RPN, which is all that engines without a tail have
    threads: int | None = None  # of the CPU; None: as `Session.open` chooses
    step_limit_s: float = 600.0  # a step that takes longer fails

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu < 0:
            raise BadInput(
                f"gpu is {self.gpu}; expected the number of a GPU, the first of which is 0", options=("gpu",)
            )
        require_threads(self.threads)
        if self.step_limit_s <= 0:
            raise BadInput(f"step_limit_s is {self.step_limit_s:g}; expected seconds above 0")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in the order in which they run."""
        return tuple(group for group in GROUPS if group != "bundle" or self.bundle is not None)

    @property
    def step_count(self) -> int:
        """The number of steps of all groups."""
        counts = STEP_COUNTS | {"bundle": LOOK_STEPS if self.parts == "look" else STEP_COUNTS["bundle"]}
        return sum(counts[group] for group in self.groups)


def steps_of(group: str, request: CheckupRequest) -> list[Step]:
    """The steps of a group. Raises BadInput for an unknown group, and the errors of opening the bundle."""
    if group not in GROUPS:
        raise BadInput(f"group {unknown_choice(group, GROUPS)}")
    return GROUPS[group](request)


def _cuda(request: CheckupRequest) -> list[Step]:
    return _cuda_checks(request).steps()


def _pictures(request: CheckupRequest) -> list[Step]:
    def open_device() -> Device:
        return _cuda_checks(request).device

    return PictureChecks(open_device).steps()


def opened_bundle(request: CheckupRequest) -> OpenedBundle:
    """The bundle that is asked for, on its backend. Raises as `OpenedBundle`."""
    return OpenedBundle(
        request.bundle or "",
        backend=request.backend,
        target=request.target,
        gpu=request.gpu,
        parts=request.parts,
        threads=request.threads,
    )


def _bundle(request: CheckupRequest) -> list[Step]:
    opened = opened_bundle(request)
    checks = LookChecks(opened) if request.parts == "look" else BundleChecks(opened)
    return checks.steps()


def _cuda_checks(request: CheckupRequest) -> CudaChecks:
    machine = read_machine()
    return CudaChecks(
        lambda: load_cuda("the check of the device", request.gpu),
        gpu_expected=bool(machine.gpus or machine.jetson is not None),
    )


LOOK_STEPS = 7
STEP_COUNTS = {"CUDA": 9, "pictures": 5, "bundle": 8}  # known before the process of a group starts
GROUPS: dict[str, Callable[[CheckupRequest], list[Step]]] = {
    "CUDA": _cuda,
    "pictures": _pictures,
    "bundle": _bundle,
}
