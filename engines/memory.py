"""How much memory a build and its engines will take, before either is started. Arithmetic on sizes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdrpn.engines.target import Target
from sdrpn.errors import RunFailed
from sdrpn.memory import MemoryNeeds, device_needs
from sdrpn.sizes import text_from_bytes
from sdrpn.spec import ModelSpec

__all__ = ["Estimate", "estimate", "require_device_memory", "require_host_memory"]

# An upper bound for TensorRT-RTX 1.7: the library alone, and a multiple of the weights. Checked on small models only.
_HOST_BASE_BYTES = 400_000_000
_HOST_PER_WEIGHT_BYTE = 3.3


@dataclass(frozen=True)
class Estimate:
    """Bytes. Device memory counts all graphs of the model, since they are loaded together."""

    host_bytes: int  # of the builds that run at once
    device: MemoryNeeds

    @property
    def device_bytes(self) -> int:
        """What the engines take together."""
        return self.device.total_bytes


def estimate(
    spec: ModelSpec,
    weights_bytes: Mapping[str, int],
    *,
    built: Sequence[str],
    jobs: int,
    max_context: int,
    max_batch: int,
    weight_streaming: bool = False,
    kv_cache: str | None = None,
) -> Estimate:
    """Args: weights_bytes of every graph of the model; built: those that are going to be; kv_cache: the variant's."""
    peaks = sorted(
        (_HOST_BASE_BYTES + int(_HOST_PER_WEIGHT_BYTE * weights_bytes[name]) for name in built), reverse=True
    )
    return Estimate(
        host_bytes=sum(peaks[:jobs]),
        # Streamed weights stay on the host but for the layer at work, which is small beside the rest.
        device=device_needs(
            spec,
            0 if weight_streaming else sum(weights_bytes.values()),
            context=max_context,
            batch=max_batch,
            kv_cache=kv_cache,
        ),
    )


def require_host_memory(found: Estimate, available_bytes: int | None) -> None:
    """Raises RunFailed, with what is missing and what lowers the need."""
    if available_bytes is not None and found.host_bytes > available_bytes:
        missing = text_from_bytes(found.host_bytes - available_bytes)
        raise RunFailed(
            f"the build needs about {text_from_bytes(found.host_bytes)} of memory and this machine has "
            f"{text_from_bytes(available_bytes)} available: {missing} are missing; lower --jobs, build fewer --graphs "
            "at a time, or skip this check with --no-memory-check"
        )


def require_device_memory(found: Estimate, target: Target) -> None:
    """Raises RunFailed, with what is missing and what lowers the need."""
    if found.device_bytes <= target.memory_bytes:
        return
    missing = text_from_bytes(found.device_bytes - target.memory_bytes)
    raise RunFailed(
        f"the engines need about {found.device} and {target.device} has "
        f"{text_from_bytes(target.memory_bytes)}: {missing} are missing; lower --max-batch or --max-context, add "
        "--kv-cache int8 or --weight-streaming, or skip this check with --no-memory-check"
    )
