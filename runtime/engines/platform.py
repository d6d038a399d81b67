"""This machine's platform for engines: libraries, GPU, driver. Loads no engine; missing parts are not an error."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from sdrpn.errors import MissingDependency, RunFailed
from sdrpn.host.machine import Gpu, read_gpus
from sdrpn.runtime.backends.cuda import Cuda, load_cuda
from sdrpn.runtime.backends.device_memory import available_memory
from sdrpn.runtime.backends.tensorrt_library import FLAVOURS, library_version

__all__ = ["Platform", "PlatformGpu", "read_platform"]


@dataclass(frozen=True)
class PlatformGpu:
    """The GPU that would be used; None for unknown properties."""

    name: str
    capability: str | None  # SM89
    memory_free_bytes: int | None
    driver: str | None  # 580.65


@dataclass(frozen=True)
class Platform:
    """The properties that an engine's manifest is compared with."""

    system: str  # Linux
    machine: str  # x86_64
    libraries: Mapping[str, str | None]  # flavour -> version
    gpu: PlatformGpu | None
    cuda_driver: int | None  # the newest CUDA that the driver supports: 13040 is 13.4; 0: there is no driver
    cuda_runtime: int | None
    cuda_fault: str | None  # why CUDA cannot be used


def read_platform(device: int = 0) -> Platform:
    """Ask the libraries, CUDA and nvidia-smi.

    Args: device: the GPU that would be used, as CUDA numbers them
    Raises: BadInput for a device that does not exist
    """
    gpus = read_gpus()
    shown = gpus[device] if device < len(gpus) else None
    gpu, versions, fault = _from_cuda(shown, device)
    if gpu is None and shown is not None:
        gpu = PlatformGpu(shown.name, _capability(shown), shown.memory_bytes, shown.driver)
    return Platform(
        system=platform.system(),
        machine=platform.machine(),
        libraries={flavour: _version(flavour) for flavour in FLAVOURS},
        gpu=gpu,
        cuda_driver=versions[0],
        cuda_runtime=versions[1],
        cuda_fault=fault,
    )


def _version(flavour: str) -> str | None:
    with suppress(MissingDependency):
        return library_version(flavour)
    return None


def _from_cuda(shown: Gpu | None, device: int) -> tuple[PlatformGpu | None, tuple[int | None, int | None], str | None]:
    """The GPU, the versions of driver and library, and the failure, if any."""
    versions: tuple[int | None, int | None] = (None, None)
    try:
        cuda = load_cuda("the check of engines", device)
        versions = cuda.versions()
        return _gpu(cuda, shown), versions, None
    except (MissingDependency, RunFailed) as error:
        return None, versions, str(error)


def _gpu(cuda: Cuda, shown: Gpu | None) -> PlatformGpu | None:
    if cuda.device_count() == 0:
        return None
    facts = cuda.describe_device()
    free = available_memory(cuda, facts)
    return PlatformGpu(facts.name, facts.capability, free, shown.driver if shown else None)


def _capability(gpu: Gpu) -> str | None:
    return f"SM{gpu.compute_capability.replace('.', '')}" if gpu.compute_capability else None
