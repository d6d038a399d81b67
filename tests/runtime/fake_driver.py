"""The few calls of CUDA's driver API that the product makes, on top of the fake runtime API: contexts and one kernel.

The kernel's NumPy twin runs in its place; `ptx.py` runs the kernel itself.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from cuda.bindings import driver as real

from tests.runtime.fake_cuda import FakeCudart

Memory = Any

__all__ = ["FakeDriver"]

OK = real.CUresult.CUDA_SUCCESS
_CONTEXT = 0xC000


class FakeDriver:
    """In place of the module cuda.bindings.driver."""

    CUresult = real.CUresult

    def __init__(self, cuda: FakeCudart) -> None:
        self._cuda = cuda
        self.failures: dict[str, Any] = {}  # call -> the error of every use

    def cuInit(self, flags: int) -> Any:  # noqa: N802
        return (OK,)

    def cuDeviceGet(self, ordinal: int) -> Any:  # noqa: N802
        if not 0 <= ordinal < self._cuda.devices:
            return real.CUresult.CUDA_ERROR_INVALID_DEVICE, None
        return OK, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:  # noqa: N802
        self._cuda.initialised.add(device)
        return OK, _CONTEXT + device

    def cuCtxPushCurrent(self, context: int) -> Any:  # noqa: N802
        self._cuda.context_stack.append(context - _CONTEXT)
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:  # noqa: N802
        return OK, _CONTEXT + self._cuda.context_stack.pop()

    def cuModuleLoadData(self, image: bytes) -> Any:  # noqa: N802
        assert image.endswith(b"\0")
        assert self._cuda.context_stack, "the thread has no context"
        return self.failures.get("cuModuleLoadData", OK), image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> Any:  # noqa: N802
        assert b".entry " + name + b"(" in module
        return OK, name

    def cuLaunchKernel(  # noqa: N802
        self,
        kernel: bytes,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared: int,
        stream: int,
        arguments: tuple[tuple[int, ...], tuple[Any, ...]],
        extra: int,
    ) -> Any:
        assert self._cuda.context_stack, "the thread has no context"
        (table, starts), types = arguments
        assert types == (ctypes.c_uint64, ctypes.c_uint64)
        rows = _int64(table, (grid_y, 8))
        self._cuda.launch(
            stream,
            "store rows",
            lambda: self._store_rows(rows, _int64(starts, (1,))),
            ((table, rows.nbytes), (starts, 8)),
            (),
        )
        return (OK,)

    def _store_rows(self, table: Memory, starts: Memory) -> None:
        """The kernel's twin."""
        for cache, rows, cache_step, rows_step, row_bytes, size, blocks, blocks_an_entry in table.tolist():
            for block in range(blocks):
                start = int(_int64(starts.ctypes.data, (block // blocks_an_entry + 1,))[-1])
                target, source = cache + block * cache_step + start * row_bytes, rows + block * rows_step
                for address in (target, source):
                    if self._cuda.place_of(address, size) is None:
                        self._cuda.violations.append("store rows touches memory that is not allocated")
                        return
                ctypes.memmove(target, source, size)

    def cuGetErrorName(self, error: Any) -> Any:  # noqa: N802
        return OK, error.name.encode()  # the real one wants a driver

    def cuGetErrorString(self, error: Any) -> Any:  # noqa: N802
        return OK, b"as the driver puts it"


def _int64(address: int, shape: tuple[int, ...]) -> Memory:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address)).reshape(shape)
