"""The caches that `sdrpn plan` counts are those that a session holds, in every form; a step reads their rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.memory import usual_context
from sdrpn.errors import BadInput, RunFailed
from sdrpn.runtime import Session
from sdrpn.workflows import opened_session
from sdrpn.workflows.memory_plan import plan_memory
from sdrpn.workflows.opened_session import SessionRequest, require_memory
from tests.pictures import photo
from tests.workflows.machines import PC

QUESTION = (1, 5, 9), (7, 11, 12, 30)
FORMS = [
    ("onnxruntime", "fused-fp32", None),
    ("onnxruntime", "fused-fp32-kv-int8", None),
    ("onnxruntime", "primitive-fp32-kv-int8", None),
    ("openvino", "fused-fp32", None),
    ("openvino", "fused-fp32", "int8"),
]


@pytest.mark.parametrize("form", FORMS, ids=[" ".join(map(str, form)) for form in FORMS])
def test_what_a_session_holds(coded_bundle: Path, form: tuple[str, str, Any]) -> None:
    backend, variant, kv_cache = form
    if backend == "openvino":
        pytest.importorskip("openvino")
    with Session.open(coded_bundle, backend=backend, variant=variant, kv_cache=kv_cache, threads=1) as session:
        session.answer_ids(photo(), *QUESTION, roi=None, max_new_tokens=2)
        slots = session._decoder.slots
        buffers = {name: list(caches.buffers.values()) for name, caches in slots.caches.items()}
        held = sum(buffer.read().nbytes for caches in (*buffers.values(), [slots.taps]) for buffer in caches)
        rows = sum(buffer.read().nbytes for name in ("trunk", "tail") for buffer in buffers[name])
        steps = [session.step_bytes(context) for context in (0, 1)]
    planned = plan_memory(
        coded_bundle, backend=backend, variant=variant, kv_cache=kv_cache, contexts=(slots.length,)
    ).needs.caches_bytes
    assert held == planned
    assert steps[0] is not None
    assert steps[1] is not None
    assert rows == slots.length * (steps[1] - steps[0])


@pytest.mark.parametrize(
    "options",
    [{"kv_cache": "int8"}, {"kv_cache": "fp8", "backend": "openvino"}, {"kv_cache": "int8", "target": "l4"}],
)
def test_what_a_bundle_does_not_have(coded_bundle: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="a bundle has caches as its graphs declare them; the backend openvino alone"):
        plan_memory(coded_bundle, **options)


def test_a_session_starts_where_its_own_form_fits(coded_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before graphs are loaded counts the library that was asked for, and its caches."""
    pytest.importorskip("openvino")
    bundle = open_bundle(coded_bundle)
    context = usual_context(bundle.spec, bundle.manifest.max_context)
    plain, coded = (
        plan_memory(coded_bundle, backend="openvino", variant="fused-fp32", kv_cache=kind, contexts=(context,))
        for kind in (None, "int8")
    )
    between = (plain.needs.total_bytes + coded.needs.total_bytes) // 2
    machine = dataclasses.replace(PC, memory_available_bytes=between)
    monkeypatch.setattr(opened_session, "read_machine", lambda: machine)
    require_memory(bundle, SessionRequest(backend="openvino", variant="fused-fp32", kv_cache="int8"))
    with pytest.raises(RunFailed, match="are missing"):
        require_memory(bundle, SessionRequest(backend="openvino", variant="fused-fp32"))
