"""Run one graph on arrays, once: for comparisons and trials. Answers use `two_pass.py`, without these copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.bundle.extents import known_extent
from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.kv_cache import cache_set_from_runner
from sdrpn.runtime.backends.row_feeds import trial_rows
from sdrpn.runtime.backends.runner import Array, Backend, Buffer, Runner, check_bindings

__all__ = ["run_on_arrays", "trial_feeds"]

_ROWS, _CACHE_ROWS, _SEED = 3, 64, 0
_OTHER_EXTENT = 16  # of what a family counts in its looks, such as patches: several image tokens


def run_on_arrays(
    backend: Backend, runner: Runner, feeds: Mapping[str, Array], further: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Copy `feeds` in, run, and copy every output out.

    Caches that the graph updates in place are bound as input and output, as in an answer; `feeds` are not changed.

    Args: further: extents of axes that outputs alone have
    Raises RunFailed where a name, type or shape does not fit.
    """
    buffers = {name: _buffer(backend, runner.inputs.get(name), array) for name, array in feeds.items()}
    extents: dict[str, int] = {}
    check_bindings("the graph", "inputs", runner.inputs, buffers, extents)
    extents = {**(further or {}), **extents}
    caches = cache_set_from_runner(runner)
    results: dict[str, Buffer] = {}
    if caches.in_place:
        caches.buffers.update({name: buffers[name] for name in caches.inputs})
        results |= caches.as_outputs()
    for name, tensor in runner.outputs.items():
        if name in results:
            continue
        results[name] = backend.allocate(_shape(name, tensor.dims, extents), tensor.storage)
    runner.run(buffers, results)
    return {name: buffer.read() for name, buffer in results.items()}


def trial_feeds(inputs: Iterable[TensorInfo]) -> dict[str, Array]:
    """Inputs for a few rows at the start of zeroed caches."""
    extents = {"batch": 1, "images": 1, "sequence": _ROWS, "cache_length": _CACHE_ROWS}
    rng = np.random.default_rng(_SEED)
    inputs = tuple(inputs)
    rows, feeds = trial_rows(inputs, 0, _ROWS), dict[str, Array]()
    for tensor in inputs:
        shape = tuple(extents.get(dim, _OTHER_EXTENT) if isinstance(dim, str) else dim for dim in tensor.dims)
        if tensor.name in rows:
            feeds[tensor.name] = rows[tensor.name]
        elif tensor.is_cache:
            feeds[tensor.name] = np.zeros(shape, tensor.storage)
        else:
            feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return feeds


def _shape(name: str, dims: Sequence[int | str], extents: Mapping[str, int]) -> tuple[int, ...]:
    found = [known_extent(dim, extents) for dim in dims]
    unknown = [dim for dim, extent in zip(dims, found, strict=True) if extent is None]
    if unknown:
        raise RunFailed(f"{name} has the axis {unknown[0]!r}, which no input has; expected one of {sorted(extents)}")
    return tuple(extent for extent in found if extent is not None)


def _buffer(backend: Backend, tensor: TensorInfo | None, array: Array) -> Buffer:
    """With a copy of `array`; caches are in the type that the library holds them in."""
    if tensor is not None and tensor.is_cache:
        buffer = backend.allocate(array.shape, tensor.storage, for_cache=True)
    else:
        buffer = backend.allocate(array.shape, array.dtype.name)
    buffer.write(array)
    return buffer
