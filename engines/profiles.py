"""Optimisation profiles: the shapes that an engine is built for. Knows no TensorRT.

Profile 0 is a decode step: S=1 exactly, up to max_batch requests at once, tuned for a named number of them. Only an
exact 1 gets the attention kernel that reads a cache in place; any range, even 1..4, gets one that copies the whole
cache first, in every layer.
The batch must not be exactly 1. Without any dynamic dimension, TensorRT-RTX 1.7 transposes every fp16 weight for one
row, and the engine stores it a second time beside that of the prefill.
Profile 1 is prefill: one request at a time, into its own slot of the batch. That of the tail allows up to two: its last
layer and head compute one row per request, and with exactly one request these weights were transposed, too.
With several contexts each has both profiles: the kernels of one attend only to caches of that length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.bundle.graphs import graph_named
from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec

__all__ = ["Profile", "Shapes", "profiles_of", "shapes_of"]

# bbox policies give up to two crops per image; they are encoded in one call.
MOST_IMAGES = 2
# The smallest upper limit of a batch, which must not be exactly 1: see above.
LEAST_MOST_BATCH = 2

Extents = tuple[int, int, int]  # minimum, optimum, maximum
Shapes = dict[str, tuple[tuple[int, ...], ...]]  # input -> minimum, optimum and maximum dims


@dataclass(frozen=True)
class Profile:
    """The extents of the dynamic dimensions."""

    name: str
    extents: dict[str, Extents]

    @property
    def decodes(self) -> bool:
        """Whether the profile is for decode steps of one row."""
        return self.extents.get("sequence") == (1, 1, 1)

    @property
    def cache_length(self) -> int | None:
        """Rows of the caches; None for a graph without caches."""
        return self.extents["cache_length"][0] if "cache_length" in self.extents else None


def profiles_of(
    spec: ModelSpec,
    graph: str,
    max_context: int,
    max_batch: int,
    shorter_contexts: Sequence[int] = (),
    tuned_batch: int = 1,
) -> tuple[Profile, ...]:
    """The profiles of a graph in order of their indices: those of the shortest context first.

    `tuned_batch`: the requests in a decode step that its kernels are chosen for
    """
    if not graph_named(graph).has_caches:
        extents = dict(family_of(spec).look_extents(spec))
        return (Profile("images", {"images": (1, 1, max(MOST_IMAGES, max_batch)), **extents}),)
    if not shorter_contexts:
        return _profiles_for(spec, graph, max_context, max_batch, tuned_batch)
    return tuple(
        Profile(f"{profile.name}-{context}", profile.extents)
        for context in (*shorter_contexts, max_context)
        for profile in _profiles_for(spec, graph, context, max_batch, tuned_batch)
    )


def _profiles_for(
    spec: ModelSpec, graph: str, max_context: int, max_batch: int, tuned_batch: int
) -> tuple[Profile, ...]:
    first_look = spec.vision.image_tokens + family_of(spec).usual_prompt_tokens  # 641 for LLaVA-1.5
    # After a crop the tail sees prefix, RoI tokens and question at once: 1217 for LLaVA-1.5.
    crop = spec.vision.image_tokens if graph == "tail" and spec.rpn is not None else 0
    usual = min(first_look + crop, max_context)
    cache = (max_context,) * 3
    batch = (1, tuned_batch, max(max_batch, LEAST_MOST_BATCH))
    decode = {"batch": batch, "sequence": (1, 1, 1), "cache_length": cache}
    at_once = LEAST_MOST_BATCH if graph == "tail" else 1
    prefill = {"batch": (1, 1, at_once), "sequence": (1, usual, max_context), "cache_length": cache}
    if not graph_named(graph).decodes:  # the RPN looks at a prompt once
        return (Profile("prefill", prefill),)
    return Profile("decode", decode), Profile("prefill", prefill)


def shapes_of(profile: Profile, inputs: Sequence[TensorInfo]) -> Shapes:
    """The dims of every input with a dynamic dimension."""
    return {
        tensor.name: tuple(_dims(tensor, profile, end) for end in range(3))
        for tensor in inputs
        if any(isinstance(dim, str) for dim in tensor.dims)
    }


def _dims(tensor: TensorInfo, profile: Profile, end: int) -> tuple[int, ...]:
    return tuple(profile.extents[dim][end] if isinstance(dim, str) else dim for dim in tensor.dims)
