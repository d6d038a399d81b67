"""Estimate the memory of a build and of its engines, before either is started. Arithmetic on sizes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sdrpn.bundle.graphs import Parts, graphs_of
from sdrpn.bundle.memory import MemoryNeeds, device_needs, fitting_context
from sdrpn.engines.target import Target
from sdrpn.host.sizes import text_from_bytes
from sdrpn.method.spec import ModelSpec

__all__ = [
    "Estimate",
    "device_shortage",
    "estimate",
    "host_shortage",
]

# An upper bound for TensorRT-RTX 1.7: the library alone, and a multiple of the weights. For layers with the shapes of
# LLaVA-1.5-7B it was 2.9 to 3.2 times, for one capability and for four at once.
_HOST_BASE_BYTES = 400_000_000
_HOST_PER_WEIGHT_BYTE = 3.3
_NO_MEMORY_CHECK = "skip this check"


@dataclass(frozen=True)
class Estimate:
    """The quantities that determine memory use, and the resulting bytes. A device loads all graphs together."""

    spec: ModelSpec
    weights_bytes: Mapping[str, int]  # of every graph of the model
    built: Sequence[str]  # the graphs to build
    jobs: int
    max_context: int
    max_batch: int
    weights_elsewhere: bool  # streamed from host memory
    kv_cache: str | None = None  # the variant's: int8 or fp8
    unfused_attention: bool = False  # whether the library may store attention scores
    parts: Parts = "all"  # "look": the device loads no tail

    @property
    def host_peaks(self) -> dict[str, int]:
        """Peak host memory of the build of each graph."""
        return {name: _HOST_BASE_BYTES + int(_HOST_PER_WEIGHT_BYTE * self.weights_bytes[name]) for name in self.built}

    @property
    def host_bytes(self) -> int:
        """Peak host memory of the builds that run at once."""
        return sum(sorted(self.host_peaks.values(), reverse=True)[: self.jobs])

    @property
    def device(self) -> MemoryNeeds:
        """Device memory of the engines, by purpose."""
        return self.device_with()

    @property
    def device_bytes(self) -> int:
        """Total device memory of the engines."""
        return self.device.total_bytes

    def device_with(
        self,
        *,
        context: int | None = None,
        batch: int | None = None,
        weights_elsewhere: bool | None = None,
        kv_cache: str | None = None,
    ) -> MemoryNeeds:
        """Device memory of the engines with other options; None: as planned."""
        elsewhere = self.weights_elsewhere if weights_elsewhere is None else weights_elsewhere
        # Streamed weights stay on the host, except for the current layer, which is small.
        loaded = {graph.name for graph in graphs_of(self.spec, self.parts)}
        sizes = [size for name, size in self.weights_bytes.items() if name in loaded]
        weights_bytes = 0 if elsewhere else sum(sizes)
        return device_needs(
            self.spec,
            weights_bytes,
            context=context or self.max_context,
            batch=batch or self.max_batch,
            kv_cache=kv_cache or self.kv_cache,
            unfused_attention=self.unfused_attention,
            parts=self.parts,
        )


def estimate(
    spec: ModelSpec,
    weights_bytes: Mapping[str, int],
    *,
    built: Sequence[str],
    jobs: int,
    max_context: int,
    max_batch: int,
    weight_streaming: bool = False,
    unified_memory: bool = False,
    kv_cache: str | None = None,
    unfused_attention: bool = False,
) -> Estimate:
    """Estimate memory. Where CPU and GPU share memory, streamed weights count too. Args: kv_cache: the variant's.

    A build of all that a look needs, and no more, is one for looks.
    """
    elsewhere = weight_streaming and not unified_memory
    looks = spec.rpn is not None and set(built) == {graph.name for graph in graphs_of(spec, "look")}
    return Estimate(
        spec,
        weights_bytes,
        built,
        jobs,
        max_context,
        max_batch,
        elsewhere,
        kv_cache,
        unfused_attention,
        "look" if looks else "all",
    )


def host_shortage(found: Estimate, available_bytes: int | None, machine: str = "this machine") -> str | None:
    """The shortage of host memory for the build, and options that reduce it; None where it fits or is unknown."""
    if available_bytes is None or found.host_bytes <= available_bytes:
        return None
    return (
        f"the build needs about {text_from_bytes(found.host_bytes)} of memory and {machine} has "
        f"{text_from_bytes(available_bytes)} available: {text_from_bytes(found.host_bytes - available_bytes)} are "
        f"missing; {_joined([*_lighter_builds(found, available_bytes), _NO_MEMORY_CHECK])}"
    )


def device_shortage(found: Estimate, target: Target, least_context: int) -> str | None:
    """The shortage of device memory, and options that reduce it; None where the engines fit.

    Args:
        least_context: the smallest context in which a question fits
    """
    if found.device_bytes <= target.memory_bytes:
        return None
    missing = text_from_bytes(found.device_bytes - target.memory_bytes)
    return (
        f"the engines need about {found.device} and {target.device} has {text_from_bytes(target.memory_bytes)}: "
        f"{missing} are missing; {_joined([*_smaller_engines(found, target, least_context), _NO_MEMORY_CHECK])}"
    )


def _lighter_builds(found: Estimate, available_bytes: int) -> Iterator[str]:
    """Options that reduce host memory, sufficient ones first."""
    peaks = found.host_peaks
    largest = max(peaks.values())
    if found.jobs > 1 and found.host_bytes > largest:
        yield f"with one job it is {text_from_bytes(largest)}"
    fitting = [name for name, peak in peaks.items() if peak <= available_bytes]
    if largest > available_bytes:
        if fitting:
            yield f"the graphs {','.join(fitting)} alone fit"
        yield "use a lower precision (see sdrpn export), or build on a larger machine"


def _smaller_engines(found: Estimate, target: Target, least_context: int) -> Iterator[str]:
    """Options that are sufficient; where none is, a last resort."""
    memory = target.memory_bytes

    def largest_context(batch: int) -> int:
        fits = fitting_context(lambda rows: found.device_with(context=rows, batch=batch), memory, found.max_context)
        return fits if fits >= least_context else 0

    alone = largest_context(1)
    if largest_context(found.max_batch):
        yield f"a context of {largest_context(found.max_batch)} fits"
    if found.max_batch > 1 and alone == found.max_context:
        yield "a batch of 1 fits"
    elif found.max_batch > 1 and alone:
        yield f"a batch of 1 with a context of {alone} fits"
    if found.kv_cache is None and found.device_with(kv_cache="int8").total_bytes <= memory:
        yield "a KV cache in int8 fits (see sdrpn export)"
    streams = not found.weights_elsewhere and not target.unified_memory
    if streams and found.device_with(weights_elsewhere=True).total_bytes <= memory:
        yield "weight streaming fits"
    if not alone and not found.weights_elsewhere:
        yield "no context fits beside these weights: use a lower precision (see sdrpn export)"


def _joined(advice: Sequence[str]) -> str:
    return ", or ".join(advice)
