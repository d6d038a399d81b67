"""The GPUs that CUDA shows, in CUDA's order. Queries only the driver: no Python package, no context, no memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["CudaDevice", "read_cuda_devices"]

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)
_MAJOR, _MINOR = 75, 76
_NAME_BYTES = 256


@dataclass(frozen=True)
class CudaDevice:
    """One GPU, with its CUDA device index in this process."""

    number: int
    name: str
    capability: str | None  # e.g. SM89; None where the driver does not report it


def read_cuda_devices(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[CudaDevice, ...] | None:
    """List the GPUs; None without a driver, or where it cannot be queried.

    Args:
        load: loads the driver's library (for tests)
    """
    try:
        driver = load("libcuda.so.1")
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return None
        return tuple(_device(driver, number) for number in range(count.value))
    except (OSError, AttributeError):
        return None


def _device(driver: Any, number: int) -> CudaDevice:
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    if driver.cuDeviceGet(ctypes.byref(handle), number) or driver.cuDeviceGetName(name, _NAME_BYTES, handle):
        return CudaDevice(number, f"device {number}", None)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = any(
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        for value, attribute in ((major, _MAJOR), (minor, _MINOR))
    )
    capability = None if failed else f"SM{major.value}{minor.value}"
    return CudaDevice(number, name.value.decode("utf-8", "replace"), capability)
