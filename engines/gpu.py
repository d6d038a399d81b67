"""Which GPU TensorRT builds on, and whether it is the target's. Starts nothing on it."""

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
    """A GPU of this machine, by CUDA's number; None where nobody tells."""

    number: int
    name: str
    capability: str | None  # SM89

    def __str__(self) -> str:
        return f"{self.name} ({self.capability or 'no capability told'})"


def build_gpu(
    devices: Sequence[CudaDevice] | None, gpus: Sequence[Gpu], wanted: int | None
) -> tuple[BuildGpu | None, tuple[BuildGpu, ...]]:
    """The GPU that TensorRT would build on, and all that there are.

    CUDA counts devices in an order of its own: nvidia-smi's list stands in only where the driver cannot be asked.

    Args:
        devices: as CUDA's driver lists them; None: it cannot be asked
        wanted: the number of one; None: CUDA's first
    Raises: BadInput for a number that none has
    """
    if devices is not None:
        there = tuple(BuildGpu(one.number, one.name, one.capability) for one in devices)
    else:
        there = tuple(BuildGpu(number, gpu.name, _capability(gpu)) for number, gpu in enumerate(gpus))
    if wanted is not None and wanted >= max(1, len(there)):
        listed = ", ".join(f"{one.number}: {one}" for one in there) or "no GPU"
        raise BadInput(f"there is no device {wanted}; this machine has {listed}")
    return (there[wanted or 0] if there else None), there


def other_gpu(target: Target, chosen: BuildGpu | None, there: Sequence[BuildGpu]) -> BadInput | None:
    """TensorRT builds for the GPU that it runs on: it must be the target's. Integrated GPUs may not tell."""
    wanted = target.compute_capabilities[0]
    if chosen is None or chosen.capability in (None, wanted):
        return None
    fitting = [one for one in there if one.capability == wanted]
    if fitting:
        return BadInput(
            f"target {target.name} is for {wanted}, and device {chosen.number} is {chosen}; build on {fitting[0]}: "
            f"--device {fitting[0].number}"
        )
    here = ", ".join(map(str, there))
    return BadInput(f"target {target.name} is for {wanted}; this machine has {here}: build on {target.device}")


def seen_alone(device: int | None) -> Mapping[str, str]:
    """What a child process needs in its environment to see this device as its first and only one; nothing for None."""
    if device is None:
        return {}
    visible = [one.strip() for one in os.environ.get(_VISIBLE, "").split(",") if one.strip()]
    return {_VISIBLE: visible[device] if device < len(visible) else str(device)}


def _capability(gpu: Gpu) -> str | None:
    return f"SM{gpu.compute_capability.replace('.', '')}" if gpu.compute_capability else None
