"""Which GPU TensorRT builds on, and whether it matches the target. Runs nothing on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdrpn.engines.target import Target
from sdrpn.errors import BadInput
from sdrpn.host.cuda_devices import CudaDevice
from sdrpn.host.machine import Gpu

__all__ = ["BuildGpu", "build_gpu", "other_gpu", "seen_alone"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class BuildGpu:
    """A GPU of this machine, with its CUDA device index; None for unknown values."""

    number: int
    name: str
    capability: str | None  # SM89

    def __str__(self) -> str:
        return f"{self.name} ({self.capability or 'unknown capability'})"


def build_gpu(
    devices: Sequence[CudaDevice] | None, gpus: Sequence[Gpu], wanted: int | None
) -> tuple[BuildGpu | None, tuple[BuildGpu, ...]]:
    """The GPU that TensorRT would build on, and all GPUs.

    CUDA has its own order of devices: nvidia-smi's list is used only where the driver cannot be queried.

    Args:
        devices: as listed by CUDA's driver; None: it cannot be queried
        wanted: the index of a device; None: CUDA's first
    Raises: BadInput for an index without a device
    """
    if devices is not None:
        there = tuple(BuildGpu(device.number, device.name, device.capability) for device in devices)
    else:
        there = tuple(BuildGpu(number, gpu.name, _capability(gpu)) for number, gpu in enumerate(gpus))
    if wanted is not None and wanted >= max(1, len(there)):
        listed = ", ".join(f"{device.number}: {device}" for device in there) or "no GPU"
        raise BadInput(f"there is no device {wanted}; this machine has {listed}")
    return (there[wanted or 0] if there else None), there


def other_gpu(target: Target, chosen: BuildGpu | None, there: Sequence[BuildGpu]) -> BadInput | None:
    """The error where the GPU is not the target's, since TensorRT builds for the GPU that it runs on; else None.

    Also None where the capability is unknown, as for some integrated GPUs.
    """
    wanted = target.compute_capabilities[0]
    if chosen is None or chosen.capability in (None, wanted):
        return None
    fitting = [gpu for gpu in there if gpu.capability == wanted]
    if fitting:
        return BadInput(
            f"target {target.name} is for {wanted}, and device {chosen.number} is {chosen}; build on {fitting[0]}",
            options=(f"device {fitting[0].number}",),
        )
    here = ", ".join(map(str, there))
    return BadInput(f"target {target.name} is for {wanted}; this machine has {here}: build on {target.device}")


def seen_alone(device: int | None) -> Mapping[str, str]:
    """The environment that makes a device the only one that a child process sees; empty for None."""
    if device is None:
        return {}
    visible = [device_name.strip() for device_name in os.environ.get(_VISIBLE, "").split(",") if device_name.strip()]
    return {_VISIBLE: visible[device] if device < len(visible) else str(device)}


def _capability(gpu: Gpu) -> str | None:
    return f"SM{gpu.compute_capability.replace('.', '')}" if gpu.compute_capability else None
