"""The driver's own list of GPUs, in CUDA's order."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from sdrpn.host.cuda_devices import CudaDevice, read_cuda_devices


class Driver:
    """libcuda with two GPUs; what is in `failing` gives an error."""

    def __init__(self, *failing: str) -> None:
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        if name in self._failing:
            return lambda *arguments: 100
        return {
            "cuInit": lambda flags: 0,
            "cuDeviceGetCount": self._count,
            "cuDeviceGet": self._get,
            "cuDeviceGetName": self._name,
            "cuDeviceGetAttribute": self._attribute,
        }[name]

    def _count(self, out: Any) -> int:
        out._obj.value = 2
        return 0

    def _get(self, out: Any, number: int) -> int:
        out._obj.value = number
        return 0

    def _name(self, buffer: Any, size: int, device: ctypes.c_int) -> int:
        buffer.value = (b"NVIDIA L4", b"NVIDIA A10")[device.value]
        return 0

    def _attribute(self, out: Any, attribute: int, device: ctypes.c_int) -> int:
        out._obj.value = {75: (8, 8), 76: (9, 6)}[attribute][device.value]
        return 0


def test_name_and_capability() -> None:
    expected = (CudaDevice(0, "NVIDIA L4", "SM89"), CudaDevice(1, "NVIDIA A10", "SM86"))
    assert read_cuda_devices(lambda name: Driver()) == expected


def test_what_the_driver_does_not_tell() -> None:
    found = read_cuda_devices(lambda name: Driver("cuDeviceGetAttribute"))
    assert found is not None
    assert [device.capability for device in found] == [None, None]
    unnamed = read_cuda_devices(lambda name: Driver("cuDeviceGetName"))
    assert unnamed is not None
    assert unnamed[1] == CudaDevice(1, "device 1", None)


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGetCount"])
def test_a_driver_that_does_not_start(failing: str) -> None:
    assert read_cuda_devices(lambda name: Driver(failing)) is None


def test_no_driver() -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    assert read_cuda_devices(missing) is None
