"""Estimate how much memory a bundle needs, before anything is built or loaded. Adds up sizes; opens no graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import Bundle, Variant, open_bundle
from sdrpn.bundle.graphs import Parts, graphs_of, other_parts
from sdrpn.bundle.memory import (
    MemoryNeeds,
    device_needs,
    fitting_context,
    graph_weights_bytes,
    step_bytes,
)
from sdrpn.bundle.shipped import bundle_name, bundle_path
from sdrpn.engines import read_target, target_variant, usual_context
from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.families.registry import published_shapes
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.machine import read_machine
from sdrpn.host.suggestion import did_you_mean
from sdrpn.images.decoded_size import memory_of_picture
from sdrpn.runtime.backends import AUTOMATIC, backend_info
from sdrpn.runtime.backends.info import BackendInfo, MemoryRequest
from sdrpn.runtime.backends.onnxruntime_info import CPU
from sdrpn.runtime.backends.registry import BACKENDS
from sdrpn.runtime.prefix_store import DEFAULT_PREFIX_BYTES
from sdrpn.runtime.select import graph_backend, graph_variant, mapped_weights_bytes
from sdrpn.workflows.shape_plan import ShapePlan, ShapeRequest, is_shape, plan_shape

__all__ = ["MemoryPlan", "OtherCaches", "PlanRequest", "PrefixPlan", "plan", "plan_bundle", "plan_memory"]


# Fields of a request that only a bundle has, and what they are where nobody names them.
_FOR_BUNDLES: dict[str, object] = {
    "variant": None,
    "backend": AUTOMATIC,
    "prefix_bytes": None,
    "picture": None,
    "decode_copy": None,
}


@dataclass(frozen=True)
class PlanRequest(CheckedFields):
    """What to estimate, and for which device."""

    bundle: Path | str  # folder, or `demo`
    target: str | None = None  # name of a target, or a .toml file; None: this machine's CPU
    variant: str | None = None  # None: the one that engines are built from, or that ONNX Runtime answers with
    # Tokens of prompt and answer; several: engines with a profile for each. Empty: the context that engines are built
    # for, or the bundle's limit.
    contexts: tuple[int, ...] = ()
    batch: int = 1  # questions that are decoded together
    backend: str = AUTOMATIC  # without a target: the library that runs the graphs on this machine
    prefix_bytes: int | None = None  # most memory for pictures asked about before; None: the runtime's default
    parts: Parts = "all"  # "look": vision, trunk and RPN alone
    picture: Path | str | None = None  # a file or a size, such as 4000x3000; None: pictures are small
    # Of a published model, by its name in place of a bundle: see ShapeRequest.
    precision: str | None = None
    kv_cache: str | None = None  # of a bundle: "int8" where the backend can hold its caches so, see `RunOptions`
    decode_copy: bool | None = None  # see `RunOptions`
    image_tokens: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_bytes is not None and self.prefix_bytes < 0:
            raise BadInput(
                f"prefix_bytes is {self.prefix_bytes}; expected a number of bytes, 0 for none",
                options=("prefix_bytes",),
            )
        if any(number < 1 for number in (self.batch, *self.contexts)):
            raise BadInput(
                f"batch is {self.batch}, contexts are {self.contexts}; expected numbers of at least 1",
                options=("batch", "context"),
            )
        if self.target is not None and self.backend != AUTOMATIC:
            raise BadInput(
                f"target is {self.target} and backend {self.backend}; a target's engines run in TensorRT: name one of "
                "the two",
                options=("target", "backend"),
            )


@dataclass(frozen=True)
class OtherCaches:
    """The same variant with the other kind of KV cache: in 8 bits instead of floats, or the reverse."""

    kv_cache: str | None
    caches_bytes: int
    largest_context: int  # that fits; 0: none


@dataclass(frozen=True)
class PrefixPlan:
    """What is kept of pictures that were asked about before, beside `MemoryPlan.needs`.

    It takes only memory that is left, so whether a bundle fits does not depend on it.
    """

    limit_bytes: int  # 0: nothing is kept
    picture_bytes: int  # one picture, in the shape that takes most tokens

    @property
    def pictures(self) -> int:
        """How many are kept at once."""
        return self.limit_bytes // self.picture_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """What a variant takes on a device while it answers."""

    bundle: str
    variant: str
    device: str
    contexts: tuple[int, ...]  # shortest first
    batch: int
    memory_bytes: int | None  # of the device; None: not known
    needs: MemoryNeeds  # at the longest context
    largest_context: int  # the largest that fits; 0: none
    context_limit: int  # of the bundle
    step_bytes: dict[int, int]  # context -> bytes that a decode step of an engine reads; empty for a CPU
    kv_cache: str | None  # int8 or fp8; None: caches in the type that the graphs compute in
    other: OtherCaches
    prefixes: PrefixPlan
    parts: Parts = "all"
    other_parts_bytes: int | None = None  # all in place of a look, or a look alone; None: there is no RPN

    @property
    def context(self) -> int:
        """The longest context."""
        return self.contexts[-1]

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None if the device's memory is not known."""
        return None if self.memory_bytes is None else self.needs.total_bytes <= self.memory_bytes

    def to_json(self) -> dict[str, Any]:
        """The plan as `sdrpn plan --json` prints it: see sdrpn.cli.plan."""
        return {
            "bundle": self.bundle,
            "variant": self.variant,
            "device": self.device,
            "context": self.context,
            "contexts": self.contexts,
            "batch": self.batch,
            "memory_bytes": self.memory_bytes,
            "parts": self.parts,
            "needs": self.needs,
            "total_bytes": self.needs.total_bytes,
            "other_parts_bytes": self.other_parts_bytes,
            "fits": self.fits,
            "largest_context": self.largest_context,
            "step_bytes": self.step_bytes,
            "kv_cache": self.kv_cache,
            "other": self.other,
            "prefixes": {**dataclasses.asdict(self.prefixes), "pictures": self.prefixes.pictures},
        }


@dataclass(frozen=True)
class _Place:
    """A device, the variant for it, and how its memory needs are computed."""

    device: str
    memory_bytes: int | None
    variant: Variant
    needs_of: Callable[[Variant, int], MemoryNeeds]
    usual_context: int
    prefix_bytes: int  # the default limit for pictures asked about before
    step_of: Callable[[int], int] | None = None  # bytes that a decode step reads at a context; None: not known

    def largest_context(self, variant: Variant, limit: int) -> int:
        """The largest context that fits; 0: none."""
        if self.memory_bytes is None:
            return limit
        return fitting_context(lambda context: self.needs_of(variant, context), self.memory_bytes, limit)


def plan_memory(
    bundle: Path | str,
    *,
    target: str | None = None,
    variant: str | None = None,
    contexts: tuple[int, ...] = (),
    batch: int = 1,
    backend: str = AUTOMATIC,
    prefix_bytes: int | None = None,
    parts: Parts = "all",
    picture: Path | str | None = None,
    kv_cache: str | None = None,
    decode_copy: bool | None = None,
) -> MemoryPlan:
    """Add up weights, caches, activations and image buffers, and find the largest context that fits.

    The same estimate decides whether a build starts, and whether `sdrpn ask` starts on this machine's CPU.

    Args:
        bundle: folder, or "demo"
        target: name of a target, or a .toml file; None: this machine's CPU
        variant: None: the one that engines are built from, or that ONNX Runtime answers with
        contexts: tokens of prompt and answer; several: engines with a profile for each; empty: the context that engines
            are built for, or the bundle's limit
        batch: questions that are decoded together
        backend: without a target: what runs the graphs on this machine; "auto": what `Session.open` takes there
        prefix_bytes: most memory for what was computed of pictures asked about before; None: as `Session.open`
        parts: "look": vision, trunk and RPN alone, as `Session.open(..., parts="look")` loads them
        picture: the largest picture, a file or its size such as "4000x3000": it is in the host's memory, decoded, until
            the first token; None: pictures are small
        kv_cache: "int8": with OpenVINO, caches of trunk and tail in 8 bits, as `Session.open` holds them on request;
            None: as the graphs declare them
        decode_copy: with OpenVINO, whether decode steps have their matrices once more, as in `Session.open`

    Raises: BadBundle, BadInput for an unknown variant or target; ContextTooLong
    """
    return plan_bundle(
        PlanRequest(
            bundle,
            target,
            variant,
            contexts,
            batch,
            backend,
            prefix_bytes,
            parts,
            picture,
            kv_cache=kv_cache,
            decode_copy=decode_copy,
        )
    )


def plan(request: PlanRequest) -> MemoryPlan | ShapePlan:
    """See `plan_memory`; the name of a published model in place of a bundle is planned for every target, or one."""
    if not is_shape(request.bundle):
        return plan_bundle(request)
    if len(request.contexts) > 1:
        raise BadInput("a published model is planned with one context; name one", options=("context",))
    for name, usual in _FOR_BUNDLES.items():
        if getattr(request, name) != usual:
            raise BadInput(
                f"{name.replace('_', ' ')} is for a bundle, and a published model is planned by its precision, context "
                "and image tokens: leave it out",
                options=(name,),
            )
    return plan_shape(
        ShapeRequest(
            str(request.bundle),
            request.target,
            request.precision,
            request.kv_cache,
            next(iter(request.contexts), None),
            request.batch,
            request.image_tokens,
            request.parts,
        )
    )


def plan_bundle(request: PlanRequest) -> MemoryPlan:
    """See `plan_memory`."""
    _require_held(request)
    for name in ("precision", "image_tokens"):
        if getattr(request, name) is not None:
            raise BadInput(
                f"{name.replace('_', ' ')} is for the name of a published model, and a bundle has its own: leave it "
                f"out, or name one of {', '.join(published_shapes())}",
                options=(name,),
            )
    path = bundle_path(request.bundle)
    if not path.exists() and (meant := did_you_mean(str(request.bundle), published_shapes())):
        raise BadInput(f"{path} is neither a bundle folder nor the name of a published model{meant}")
    bundle = open_bundle(path)
    limit = bundle.manifest.max_context
    if request.contexts and max(request.contexts) > limit:
        raise ContextTooLong(
            f"a context of {max(request.contexts)} is above the bundle's {limit}; name a shorter one, or export "
            "with a larger context first",
            options=("context",),
        )
    place = _place(bundle, request)
    variant, contexts = place.variant, tuple(sorted(request.contexts)) or (place.usual_context,)
    return MemoryPlan(
        bundle=bundle_name(bundle.path),
        variant=variant.name,
        device=place.device,
        contexts=contexts,
        batch=request.batch,
        memory_bytes=place.memory_bytes,
        needs=place.needs_of(variant, contexts[-1]),
        largest_context=place.largest_context(variant, limit),
        context_limit=limit,
        step_bytes={} if place.step_of is None else {context: place.step_of(context) for context in contexts},
        kv_cache=variant.kv_cache,
        other=_other_caches(place, contexts[-1], limit),
        prefixes=_prefixes(bundle, place, request),
        parts=request.parts,
        other_parts_bytes=_other_parts_bytes(bundle, request, contexts[-1]),
    )


def _place(bundle: Bundle, request: PlanRequest) -> _Place:
    return _this_machine(bundle, request) if request.target is None else _on_target(bundle, request)


def _other_parts_bytes(bundle: Bundle, request: PlanRequest, context: int) -> int | None:
    if bundle.spec.rpn is None:
        return None
    other = _place(bundle, dataclasses.replace(request, parts=other_parts(request.parts)))
    return other.needs_of(other.variant, context).total_bytes


def _taken(request: PlanRequest) -> frozenset[str]:
    """The options that the backend of a request takes; none of one that is not named, or where engines run."""
    if request.target is not None or request.backend == AUTOMATIC:
        return frozenset()
    return backend_info(request.backend).takes


def _require_held(request: PlanRequest) -> None:
    """Raise BadInput for what the backend does not hold on request: other caches than the graphs declare, copies."""
    if request.decode_copy is not None and "decode_copy" not in _taken(request):
        raise BadInput(
            "a copy for decode steps is made with the backend openvino alone; leave it out, or name that backend, no "
            "target",
            options=("decode-copy", "backend"),
        )
    if request.kv_cache is None:
        return
    holding = [name for name, info in BACKENDS.items() if "kv_cache" in info.takes]
    if request.target is not None or request.backend not in holding or request.kv_cache != "int8":
        raise BadInput(
            f"kv cache is {request.kv_cache}, and a bundle has caches as its graphs declare them; the backend "
            f"{', '.join(holding)} alone holds them as int8 on request: leave it out, or name that backend, no target",
            options=("kv-cache", "backend"),
        )


def _other_caches(place: _Place, context: int, limit: int) -> OtherCaches:
    other = dataclasses.replace(place.variant, kv_cache="int8" if place.variant.kv_cache is None else None)
    caches_bytes = place.needs_of(other, context).caches_bytes
    return OtherCaches(other.kv_cache, caches_bytes, place.largest_context(other, limit))


def _prefixes(bundle: Bundle, place: _Place, request: PlanRequest) -> PrefixPlan:
    """The caches of one question, as long as an image; prompts begin with some tokens more."""
    one = place.needs_of(place.variant, bundle.spec.vision.image_tokens).caches_bytes // request.batch
    return PrefixPlan(place.prefix_bytes if request.prefix_bytes is None else request.prefix_bytes, one)


def _this_machine(bundle: Bundle, request: PlanRequest) -> _Place:
    if request.backend != AUTOMATIC and backend_info(request.backend).runs == "engines":
        raise BadInput(f"backend {request.backend} runs engines, whose memory depends on the device; name a target")
    bundle.require_graphs("to answer on this machine", _release_advice(bundle))
    by_itself = request.backend == AUTOMATIC
    info = graph_backend(bundle, request.variant) if by_itself else backend_info(request.backend)
    variant = graph_variant(bundle, request.variant, info=info)
    mapped_bytes = mapped_weights_bytes(bundle, variant, request.parts, info) if info.on == "cpu" else None
    where, memory_bytes = _memory_here(info)
    picture_bytes = _picture_bytes(request) if info.on == "cpu" else 0
    holds = "kv_cache" in info.takes  # in 8 bits by itself, whatever the graphs declare

    def needs(other: Variant, context: int) -> MemoryNeeds:
        kv_cache = other.kv_cache if holds else None
        asked = MemoryRequest(context, request.batch, mapped_bytes, kv_cache, request.decode_copy)
        declared = dataclasses.replace(other, kv_cache=None) if holds else other
        return dataclasses.replace(info.needs(bundle, declared, asked), picture_bytes=picture_bytes)

    part = _part(bundle, variant, request.parts)
    return _Place(
        where if mapped_bytes is None else f"{where}, optimized graphs",
        memory_bytes,
        dataclasses.replace(part, kv_cache=request.kv_cache) if holds else part,
        needs,
        bundle.manifest.max_context,
        DEFAULT_PREFIX_BYTES if info.on == "cpu" else 0,
    )


def _picture_bytes(request: PlanRequest) -> int:
    """Bytes of the largest picture, in the host's memory. Raises BadInput."""
    return 0 if request.picture is None else memory_of_picture(request.picture)


def _memory_here(info: BackendInfo) -> tuple[str, int | None]:
    """The device that the backend uses, and its memory."""
    machine = read_machine()
    if info.on == "cpu":
        return f"this machine's CPU{'' if info is CPU else f' with {info.library}'}", machine.memory_available_bytes
    return "this machine's GPU", machine.gpus[0].memory_bytes if machine.gpus else None


def _release_advice(bundle: Bundle) -> str:
    return f"for its engines name the target {' or '.join(bundle.release_targets)}"


def _on_target(bundle: Bundle, request: PlanRequest) -> _Place:
    assert request.target is not None
    target = read_target(request.target)
    dialect = "primitive" if len(request.contexts) > 1 else None  # engines for several contexts are built from it
    if request.variant is None:
        variant = target_variant(bundle, target, dialect=dialect)
    else:
        variant = bundle.variant(request.variant)
    variant = _part(bundle, variant, request.parts)
    sizes = graph_weights_bytes(bundle, variant)
    unfused = target.may_write_scores(variant.dialect)
    picture_bytes = _picture_bytes(request) if target.unified_memory else 0
    return _Place(
        f"{target.name}: {target.device}",
        target.memory_bytes,
        variant,
        lambda variant, context: dataclasses.replace(
            device_needs(
                bundle.spec,
                sum(sizes.values()),
                context=context,
                batch=request.batch,
                kv_cache=variant.kv_cache,
                unfused_attention=unfused,
                parts=request.parts,
            ),
            picture_bytes=picture_bytes,
        ),
        usual_context(bundle.spec, bundle.manifest.max_context),
        0,
        None  # a look makes no token
        if request.parts == "look"
        else lambda context: step_bytes(bundle.spec, sizes["trunk"] + sizes["tail"], context, variant.kv_cache),
    )


def _part(bundle: Bundle, variant: Variant, parts: Parts) -> Variant:
    """With the graphs that are loaded."""
    return variant.with_graphs(graph.name for graph in graphs_of(bundle.spec, parts))
