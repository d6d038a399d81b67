"""Options of a build, checked against the model and the target. Knows neither files nor TensorRT."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.bundle.graphs import Parts, graphs_of
from sdrpn.bundle.numerics import DIALECT_NAMES, NUMBER_TYPES
from sdrpn.engines.target import Target
from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.host.field_types import CheckedFields
from sdrpn.method.spec import ModelSpec

__all__ = [
    "VERBOSITIES",
    "BuildOptions",
    "checked_context",
    "checked_contexts",
    "chosen_graphs",
    "least_context",
    "require_aligned",
    "require_possible",
    "usual_context",
]

# An image, a crop, a question and a long answer. Attention time grows with the length of the caches, so longer ones
# must be requested.
_USUAL_CONTEXT = 2048
# Bytes that the address of every tensor is a multiple of: setTensorAddress, NvInferRuntime.h.
_ALIGNMENT = 256
# How much detail about its kernels an engine reports. The kernel gate needs the detailed listing.
VERBOSITIES = ("detailed", "names", "none")


@dataclass(frozen=True)
class BuildOptions(CheckedFields):
    """The options that change an engine; None: the default of the bundle or the library."""

    graphs: tuple[str, ...] | None = None  # None: those of `parts`
    parts: Parts = "all"  # "look": what finds where a question points, for `Session.open(..., parts="look")`
    precision: str | None = None  # one of the target's; None: the best that the bundle has
    kv_cache: str | None = None  # int8 or fp8: caches of the variant to build from; None: a variant with fp16 caches
    dialect: str | None = None  # fused or primitive; None: the target's, or the one that other options need
    max_context: int | None = None
    shorter_contexts: tuple[int, ...] = ()  # with their own profiles beside those of max_context
    max_batch: int = 1  # most requests in a decode step, each with caches of its own
    tuned_batch: int | None = None  # requests in a step that kernels are chosen for; None: max_batch
    opt_level: int | None = None
    workspace_mb: int | None = None
    weight_streaming: bool = False
    hardware_compat: bool = False  # for all GPUs from Ampere on, instead of this one
    version_compatible: bool = False  # also runs in later releases of TensorRT
    device: int | None = None  # for TensorRT: the CUDA device index; None: the first
    refit: bool = False  # weights can be replaced later
    verbosity: str = VERBOSITIES[0]
    kernel_gate: bool = True  # False: keep an engine that fails the kernel gate

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_context", "max_batch", "tuned_batch", "workspace_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} is {value}; expected a whole number of at least 1")
        if self.graphs is not None and self.parts != "all":
            raise BadInput(
                f"graphs are {', '.join(self.graphs)} and parts is {self.parts}; name one of the two",
                options=("graphs", "parts"),
            )
        if self.usual_batch > self.max_batch:
            raise BadInput(
                f"tuned_batch is {self.tuned_batch}, max_batch is {self.max_batch}; expected at most that",
                options=("tuned_batch", "max_batch"),
            )
        if self.dialect not in (None, *DIALECT_NAMES):
            raise BadInput(f"dialect is {self.dialect!r}; expected {' or '.join(DIALECT_NAMES)}", options=("dialect",))
        if self.device is not None and self.device < 0:
            raise BadInput(f"device is {self.device}; expected 0 or the number of another GPU", options=("device",))
        if self.shorter_contexts and self.max_context is None:
            raise BadInput("shorter_contexts need a max_context, and none is given; add it")
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise BadInput(f"opt_level is {self.opt_level}; expected 0 to 5", options=("opt_level",))
        if self.verbosity not in VERBOSITIES:
            raise BadInput(
                f"verbosity is {self.verbosity!r}; expected one of {', '.join(VERBOSITIES)}",
                options=("profiling_verbosity",),
            )
        if self.kernel_gate and self.verbosity != VERBOSITIES[0]:
            raise BadInput(
                f"with verbosity {self.verbosity} the library does not list the kernels that the gate checks; turn the "
                "gate off to build without it",
                options=("no_kernel_gate",),
            )

    @property
    def usual_batch(self) -> int:
        """The requests in a step that kernels are chosen for."""
        return self.max_batch if self.tuned_batch is None else self.tuned_batch


def chosen_graphs(spec: ModelSpec, wanted: tuple[str, ...] | None, parts: Parts = "all") -> tuple[str, ...]:
    """The graphs to build, in the order that an image passes through them.

    Args: parts: whose graphs, where none is wanted by its name
    Raises: BadInput for an unknown graph, and for looks of a model that has no RPN
    """
    there = tuple(graph.name for graph in graphs_of(spec, parts))
    unknown = [name for name in wanted or () if name not in there]
    if unknown or wanted == ():
        raise BadInput(f"the bundle has no graph {', '.join(unknown) or '(none named)'}; it has {', '.join(there)}")
    return there if wanted is None else tuple(name for name in there if name in wanted)


def least_context(spec: ModelSpec) -> int:
    """The smallest context: an image, a crop where there is an RPN, and one token."""
    return (1 if spec.rpn is None else 2) * spec.vision.image_tokens + 1


def usual_context(spec: ModelSpec, limit: int) -> int:
    """The default context of engines; `limit`: the bundle's."""
    return min(limit, max(_USUAL_CONTEXT, least_context(spec)))


def checked_contexts(spec: ModelSpec, limit: int, options: BuildOptions) -> tuple[int, ...]:
    """The cache lengths to build profiles for, shortest first.

    Raises: as `checked_context`; BadInput for shorter contexts that are not shorter, or in which no image fits
    """
    most = checked_context(spec, limit, options.max_context or usual_context(spec, limit))
    least = spec.vision.image_tokens + 1
    for context in options.shorter_contexts:
        if context < least:
            raise BadInput(
                f"max_context {context} is too small: an image and one token take {least} positions",
                options=("max_context",),
            )
    contexts = (*sorted(options.shorter_contexts), most)
    if len(set(contexts)) != len(contexts) or contexts[-1] != max(contexts):
        raise BadInput(
            f"max_context {','.join(map(str, contexts))} is not a list of different lengths up to {most}",
            options=("max_context",),
        )
    return contexts


def checked_context(spec: ModelSpec, limit: int, wanted: int | None) -> int:
    """The cache length S_max. Raises ContextTooLong above the bundle's limit, BadInput where no question would fit."""
    least = least_context(spec)
    context = limit if wanted is None else wanted
    if context > limit:
        raise ContextTooLong(
            f"max_context {context} is above the bundle's {limit}; export with a larger one first",
            options=("max_context",),
        )
    if context < least:
        looks = "an image and a crop" if spec.rpn is not None else "an image"
        raise BadInput(
            f"max_context {context} is too small: {looks} and one token take {least} positions; use at least that",
            options=("max_context",),
        )
    return context


def require_aligned(caches: Iterable[TensorInfo], contexts: Sequence[int], max_batch: int) -> None:
    """Raises BadInput where the caches of the second request would begin at an address that TensorRT does not take.

    Args: caches: (B,heads,length,width) each, the inputs of all graphs
    """
    step = 1
    for cache in caches if max_batch > 1 else ():
        _, heads, _, width = cache.dims
        row_bytes = int(heads) * int(width) * NUMBER_TYPES[cache.dtype].size_bytes
        step = math.lcm(step, _ALIGNMENT // math.gcd(_ALIGNMENT, row_bytes))
    for context in contexts:
        if context % step:
            raise BadInput(
                f"max_batch is {max_batch} and max_context {context}: caches of that length would lie where TensorRT "
                f"takes no tensor; expected a multiple of {step}",
                options=("max_context",),
            )


def require_possible(options: BuildOptions, target: Target, *, timing_cache: bool, gpu: bool, jetson: bool) -> None:
    """Raises BadInput for options that the target's library does not support, instead of ignoring them.

    Args:
        gpu, jetson: whether this machine has a GPU, and whether it is a Jetson
    """
    rtx = target.flavour == "tensorrt-rtx"
    primitive = options.kv_cache is not None or bool(options.shorter_contexts)
    refusals = (
        (
            options.dialect == "fused" and (primitive or target.dialect == "primitive"),
            "the dialect fused cannot be used here: TensorRT before 10.15 does not support it, and its in-place update "
            "of caches needs one cache length, and 16 or 32 bits; leave it out",
            "dialect",
        ),
        (
            rtx and options.device is not None,
            "a device does not apply to tensorrt-rtx, which compiles for the target's GPU on any machine; leave it out",
            "device",
        ),
        (
            rtx and timing_cache,
            "a timing cache does not apply to tensorrt-rtx, which times no kernels during a build; leave it out (an "
            "existing engine is kept)",
            "timing_cache",
        ),
        (
            rtx and options.version_compatible,
            "engines of tensorrt-rtx run only with the release that built them; leave version compatibility out",
            "version_compatible",
        ),
        (
            rtx and options.hardware_compat,
            "tensorrt-rtx has no hardware compatibility; list all compute_capabilities in the target, as rtx-portable "
            "does",
            "hardware_compat",
        ),
        (
            # Otherwise the build fails half-way with a CUDA error.
            rtx and options.refit and not gpu,
            "tensorrt-rtx builds for refitting on a machine with a GPU only, and this one has none; leave it out",
            "refit",
        ),
        (
            # TensorRT's developer guide: hardware compatibility is for Ampere and later, not for DRIVE OS or JetPack.
            jetson and options.hardware_compat,
            "JetPack's TensorRT has no hardware compatibility; leave it out and build on each kind of Jetson",
            "hardware_compat",
        ),
    )
    for applies, message, option in refusals:
        if applies:
            raise BadInput(f"target {target.name}: {message}", options=(option,))
