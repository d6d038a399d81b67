"""How much memory a build and its engines will take, before either is started. Arithmetic on sizes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdrpn.engines.target import Target
from sdrpn.errors import RunFailed
from sdrpn.sizes import text_from_bytes
from sdrpn.spec import ModelSpec

__all__ = ["Estimate", "estimate", "require_device_memory", "require_host_memory"]

# An upper bound for TensorRT-RTX 1.7: the library alone, and a multiple of the weights. Checked on small models only.
_HOST_BASE_BYTES = 400_000_000
_HOST_PER_WEIGHT_BYTE = 3.3
# What the compiler's own scratch memory adds to the activations, at least.
_SCRATCH_BYTES = 8 << 20
_HALF, _FLOAT = 2, 4


@dataclass(frozen=True)
class Estimate:
    """Bytes. Device memory counts all graphs of the model, since they are loaded together."""

    host_bytes: int  # of the builds that run at once
    weights_bytes: int
    caches_bytes: int
    activations_bytes: int

    @property
    def device_bytes(self) -> int:
        """What the engines take together."""
        return self.weights_bytes + self.caches_bytes + self.activations_bytes


def estimate(
    spec: ModelSpec,
    weights_bytes: Mapping[str, int],
    *,
    built: Sequence[str],
    jobs: int,
    max_context: int,
    max_batch: int,
    weight_streaming: bool = False,
) -> Estimate:
    """Args: weights_bytes of every graph of the model; built: those that are going to be built."""
    peaks = sorted(
        (_HOST_BASE_BYTES + int(_HOST_PER_WEIGHT_BYTE * weights_bytes[name]) for name in built), reverse=True
    )
    return Estimate(
        host_bytes=sum(peaks[:jobs]),
        # Streamed weights stay on the host but for the layer at work, which is small beside the rest.
        weights_bytes=0 if weight_streaming else sum(weights_bytes.values()),
        caches_bytes=_caches_bytes(spec, max_context, max_batch),
        activations_bytes=_activations_bytes(spec, max_context, max_batch),
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
    parts = ", ".join(
        f"{name} {text_from_bytes(size)}"
        for name, size in (
            ("weights", found.weights_bytes),
            ("caches", found.caches_bytes),
            ("activations", found.activations_bytes),
        )
    )
    raise RunFailed(
        f"the engines need about {text_from_bytes(found.device_bytes)} ({parts}) and {target.device} has "
        f"{text_from_bytes(target.memory_bytes)}: {missing} are missing; lower --max-batch or --max-context, add "
        "--weight-streaming, or skip this check with --no-memory-check"
    )


def _caches_bytes(spec: ModelSpec, max_context: int, max_batch: int) -> int:
    """Keys and values of every layer in fp16, the RPN's with its key cache of the scores, and the taps in fp32."""
    rpn_layers = 0 if spec.rpn is None else spec.rpn.layers - 1
    row = spec.llm.kv_heads * spec.llm.head_dim * _HALF
    caches = 2 * (spec.llm.layers + rpn_layers) + (spec.rpn is not None)
    return max_batch * max_context * (caches * row + spec.llm.width * _FLOAT)


def _activations_bytes(spec: ModelSpec, max_context: int, max_batch: int) -> int:
    """The graphs run one after the other in one block: the largest counts, which is a prefill of the whole context.

    A row holds four copies of the residual stream in fp32, and the packed projections in fp16; attention over more
    than one row works on a copy of one layer's cache.
    """
    llm = spec.llm
    projections = (llm.heads + 2 * llm.kv_heads) * llm.head_dim + 2 * llm.mlp_width
    row = 4 * llm.width * _FLOAT + projections * _HALF
    copies = 2 * llm.kv_heads * llm.head_dim * _HALF
    return _SCRATCH_BYTES + max_context * (row + copies) + max_batch * llm.vocabulary * _FLOAT
