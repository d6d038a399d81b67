"""Estimate what a published model needs on devices, by its sizes alone: no checkpoint, no bundle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.bundle.graphs import Parts, graphs_of, other_parts
from sdrpn.bundle.memory import MemoryNeeds, device_needs, fitting_context, step_bytes
from sdrpn.bundle.numerics import precision_named
from sdrpn.engines import Target, read_target, read_targets, usual_context
from sdrpn.errors import BadInput
from sdrpn.families.look_settings import LookSettings
from sdrpn.families.registry import assumed_of_shape, published_shapes
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra

if TYPE_CHECKING:
    from sdrpn.bundle.graphs import GraphName
    from sdrpn.method.spec import ModelSpec

__all__ = ["DevicePlan", "ShapePlan", "ShapeRequest", "is_shape", "plan_shape"]


@dataclass(frozen=True)
class ShapeRequest(CheckedFields):
    """A published model, and how it would be exported.

    shape: a name of `published_shapes`
    target: None: every target
    precision: None: the best of each target
    context: tokens of prompt and answer; None: as engines are built
    image_tokens: least and most of a picture; None: the shape's own
    parts: "look": vision, trunk and RPN alone
    """

    shape: str
    target: str | None = None
    precision: str | None = None
    kv_cache: str | None = None
    context: int | None = None
    batch: int = 1
    image_tokens: tuple[int, int] | None = None
    parts: Parts = "all"


@dataclass(frozen=True)
class DevicePlan:
    """One target.

    needs: at `context`. largest_context: that fits, 0: none. step_bytes: what a decode step reads; None: a look makes
    no token. other_parts_bytes: what all would take in place of a look, or a look alone in place of all.
    """

    target: str
    device: str
    dialect: str
    precision: str
    memory_bytes: int
    context: int
    needs: MemoryNeeds
    largest_context: int
    step_bytes: int | None
    other_parts_bytes: int

    @property
    def fits(self) -> bool:
        """Whether all of it fits."""
        return self.needs.total_bytes <= self.memory_bytes


@dataclass(frozen=True)
class ShapePlan:
    """A published model on one target, or on every one.

    assumed: what is not known of the model before its checkpoint is there, for people
    """

    shape: str
    image_tokens: int
    batch: int
    kv_cache: str | None
    assumed: tuple[str, ...]
    devices: tuple[DevicePlan, ...]
    parts: Parts = "all"

    @property
    def fits(self) -> bool:
        """Whether it fits anywhere."""
        return any(device.fits for device in self.devices)

    def to_json(self) -> dict[str, Any]:
        """As `sdrpn plan --json` prints it."""
        devices = [
            {**dataclasses.asdict(each), "total_bytes": each.needs.total_bytes, "fits": each.fits}
            for each in self.devices
        ]
        return {**dataclasses.asdict(self), "fits": self.fits, "devices": devices}


def is_shape(name: Path | str) -> bool:
    """Whether a published model is meant, and not a folder."""
    return not Path(name).exists() and str(name) in published_shapes()


def plan_shape(request: ShapeRequest) -> ShapePlan:
    """Add up weights, caches, activations and image buffers, as for a bundle. Raises BadInput."""
    spec = published_shapes()[request.shape]
    vision = LookSettings(None, image_tokens=request.image_tokens).vision_of(spec)
    spec = dataclasses.replace(spec, vision=vision)
    if request.context is not None and request.context > spec.llm.max_context:
        raise BadInput(
            f"a context of {request.context} is above the model's {spec.llm.max_context}", options=("context",)
        )
    targets = read_targets().values() if request.target is None else [read_target(request.target)]
    devices = tuple(_on(target, spec, request) for target in targets)
    tokens, assumed = spec.vision.image_tokens, assumed_of_shape(request.shape)
    return ShapePlan(request.shape, tokens, request.batch, request.kv_cache, assumed, devices, request.parts)


def _on(target: Target, spec: ModelSpec, request: ShapeRequest) -> DevicePlan:
    dialect = "primitive" if request.kv_cache is not None else target.dialect
    precision = request.precision or _best_of(target, dialect)
    sizes = _weights(spec, precision, dialect, request.kv_cache)
    context = request.context or usual_context(spec, spec.llm.max_context)

    def needs(at: int, parts: Parts) -> MemoryNeeds:
        return device_needs(
            spec,
            sum(sizes[graph.name] for graph in graphs_of(spec, parts)),
            context=at,
            batch=request.batch,
            kv_cache=request.kv_cache,
            unfused_attention=target.may_write_scores(dialect),
            parts=parts,
        )

    return DevicePlan(
        target.name,
        target.device,
        dialect,
        precision,
        target.memory_bytes,
        context,
        needs(context, request.parts),
        fitting_context(lambda at: needs(at, request.parts), target.memory_bytes, spec.llm.max_context),
        None
        if request.parts == "look"
        else step_bytes(spec, sizes["trunk"] + sizes["tail"], context, request.kv_cache),
        needs(context, other_parts(request.parts)).total_bytes,
    )


def _best_of(target: Target, dialect: str) -> str:
    """The best precision of a target that the dialect has: nvfp4 is in one of them alone."""
    return next(name for name in target.precisions if dialect in precision_named(name).dialects)


def _weights(spec: ModelSpec, precision: str, dialect: str, kv_cache: str | None) -> dict[GraphName, int]:
    """The size of every graph's weights, as an export would write them."""
    with importing_extra("export", "sdrpn plan of a published model"):
        from sdrpn.export.options import ExportOptions
        from sdrpn.export.tables import Tables

    # Whatever the inputs are calibrated by, the weights have the same size.
    options = _options_of(ExportOptions, precision, dialect, kv_cache)
    return Tables(spec, options).graph_bytes()


def _options_of(kind: Any, precision: str, dialect: str, kv_cache: str | None) -> Any:
    calibration = "planned" if precision_named(precision).calibration == "required" else None
    return kind(precision, dialect, kv_cache=kv_cache, calibration=calibration)
