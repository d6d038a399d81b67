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
        other = "looks alone" if plan.parts == "all" else "with answers"
        step = ("a step reads",) if plan.parts == "all" else ()
        head = ("target", "variant", "memory", "weights", "needs", other, "largest context", *step)
        part = "" if plan.parts == "all" else ", without the tail"
        title = f"{plan.shape}{part}, at most {plan.image_tokens} image tokens; estimated"
        return [Table(title, head, list(_device_rows(plan))), *(f"assumed: {text}" for text in plan.assumed)]
    return [Table("", (plan.device, ""), list(_rows(plan)))]


def _device_rows(plan: ShapePlan) -> Iterator[tuple[str, ...]]:
    ending = "" if plan.kv_cache is None else f"-kv-{plan.kv_cache}"
    for device in plan.devices:
        needs, sizes = device.needs, (device.memory_bytes, device.needs.weights_bytes, device.other_parts_bytes)
        memory, weights, other = map(text_from_bytes, sizes)
        total = f"{text_from_bytes(needs.total_bytes)} at {device.context}"
        variant, largest = f"{device.dialect}-{device.precision}{ending}", str(device.largest_context or "none")
        step = () if device.step_bytes is None else (text_from_bytes(device.step_bytes),)
        yield device.target, variant, memory, weights, total, other, largest, *step


def _rows(plan: MemoryPlan) -> Iterator[tuple[str, str]]:
    memory = "" if plan.memory_bytes is None else f" of {text_from_bytes(plan.memory_bytes)}"
    verdict = {True: "fits", False: "does not fit", None: "not known"}[plan.fits]
    yield "variant", plan.variant if plan.parts == "all" else f"{plan.variant}, without the tail"
    yield "context, batch", f"{' and '.join(map(str, plan.contexts))}, {plan.batch}"
    for name, size in plan.needs.parts:
        yield name, text_from_bytes(size)
    yield "together", f"{text_from_bytes(plan.needs.total_bytes)}{memory}: {verdict}"
    if plan.other_parts_bytes is not None:
        less = abs(plan.needs.total_bytes - plan.other_parts_bytes)
        name, how = ("looks alone", "less") if plan.parts == "all" else ("with answers", "more")
        yield name, f"{text_from_bytes(plan.other_parts_bytes)}: {text_from_bytes(less)} {how}"
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
