"""The memory that a bundle needs, as a table."""

from __future__ import annotations

from collections.abc import Iterator

from sdrpn.host.sizes import text_from_bytes
from sdrpn.reports.text import Table, Text
from sdrpn.workflows.memory_plan import MemoryPlan
from sdrpn.workflows.shape_plan import ShapePlan

__all__ = ["memory_text"]


def memory_text(plan: MemoryPlan | ShapePlan) -> Text:
    """One row per part of the memory, and the contexts that fit; of a published model, one per device."""
    if isinstance(plan, ShapePlan):
        head = ("target", "variant", "memory", "weights", "needs", "largest context", "a step reads")
        title = f"{plan.shape}, at most {plan.image_tokens} image tokens; estimated"
        return [Table(title, head, list(_device_rows(plan))), *(f"assumed: {text}" for text in plan.assumed)]
    return [Table("", (plan.device, ""), list(_rows(plan)))]


def _device_rows(plan: ShapePlan) -> Iterator[tuple[str, ...]]:
    ending = "" if plan.kv_cache is None else f"-kv-{plan.kv_cache}"
    for device in plan.devices:
        needs, limits = device.needs, (device.memory_bytes, device.needs.weights_bytes, device.step_bytes)
        memory, weights, step = map(text_from_bytes, limits)
        total = f"{text_from_bytes(needs.total_bytes)} at {device.context}"
        variant = f"{device.dialect}-{device.precision}{ending}"
        yield device.target, variant, memory, weights, total, str(device.largest_context or "none"), step


def _rows(plan: MemoryPlan) -> Iterator[tuple[str, str]]:
    memory = "" if plan.memory_bytes is None else f" of {text_from_bytes(plan.memory_bytes)}"
    verdict = {True: "fits", False: "does not fit", None: "not known"}[plan.fits]
    yield "variant", plan.variant if plan.parts == "all" else f"{plan.variant}, without the tail"
    yield "context, batch", f"{' and '.join(map(str, plan.contexts))}, {plan.batch}"
    for name, size in plan.needs.parts:
        yield name, text_from_bytes(size)
    yield "together", f"{text_from_bytes(plan.needs.total_bytes)}{memory}: {verdict}"
    kept = plan.prefixes
    if kept.limit_bytes:
        limit, each = text_from_bytes(kept.limit_bytes), text_from_bytes(kept.picture_bytes)
        yield "pictures seen before", f"at most {limit} of what is left: {kept.pictures} of {each}"
    for context, size in plan.step_bytes.items():
        yield f"a step reads at {context}", text_from_bytes(size)
    largest = f"{plan.largest_context} of {plan.context_limit}" if plan.largest_context else "none"
    yield "largest context that fits", largest
    other = plan.other
    yield (
        f"with {f'--kv-cache {other.kv_cache}' if other.kv_cache else 'caches not in 8 bits'}",
        f"caches {text_from_bytes(other.caches_bytes)}, largest context {other.largest_context or 'none'}",
    )
