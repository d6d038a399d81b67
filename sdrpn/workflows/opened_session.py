"""Open the session that a request asks for: what can be refused is refused before graphs are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdrpn.bundle.bundle import Bundle
from sdrpn.bundle.graphs import Parts, graphs_of
from sdrpn.bundle.memory import require_cpu_memory
from sdrpn.errors import BadInput
from sdrpn.host.machine import read_machine
from sdrpn.runtime import Session
from sdrpn.runtime.backends import AUTOMATIC
from sdrpn.runtime.pictures.picture import JpegMode
from sdrpn.runtime.select import graph_variant, mapped_weights_bytes

if TYPE_CHECKING:
    from sdrpn.workflows.agent_server import AgentRequest
    from sdrpn.workflows.look import LookRequest
    from sdrpn.workflows.question import AskRequest
    from sdrpn.workflows.serve import ServeRequest

__all__ = ["opened_session", "require_memory", "require_tokenizer"]


def opened_session(
    bundle: Bundle,
    request: AskRequest | LookRequest | ServeRequest | AgentRequest,
    *,
    max_batch: int | None = None,
    prefix_bytes: int | None = None,
    parts: Parts = "all",
    jpeg: JpegMode = "exact",
) -> Session:
    """The bundle, open as the request says; the rest as in `Session.open`."""
    return Session.open(
        bundle.path,
        backend=request.backend,
        threads=request.threads,
        variant=request.variant,
        target=request.target,
        device=request.device,
        engine_options=request.engine_options,
        optimized=request.optimized,
        accurate=request.accurate,
        verify=request.verify,
        require_signed=request.require_signed,
        max_batch=max_batch,
        prefix_bytes=prefix_bytes,
        parts=parts,
        jpeg=jpeg,
    )


def require_tokenizer(bundle: Bundle) -> None:
    """Raise BadInput for a bundle that takes no questions in words."""
    if bundle.manifest.tokenizer is None:
        raise BadInput(
            f"{bundle.path} has no tokenizer.json, and a question in words needs one: put tokenizer.json or "
            f"tokenizer.model beside the checkpoint's config.json and export it again"
        )


def require_memory(
    bundle: Bundle, request: AskRequest | LookRequest | ServeRequest | AgentRequest, parts: Parts = "all"
) -> None:
    """Raise RunFailed for what cannot fit this machine's memory. `parts`: as in `Session.open`."""
    if request.backend not in (AUTOMATIC, "onnxruntime", "openvino"):
        return
    machine = read_machine()
    # Engines may answer; if none fit, a lack of memory is reported when it occurs.
    if request.backend == AUTOMATIC and machine.gpus:
        return
    whole = graph_variant(bundle, request.variant)
    variant = whole.with_graphs(graph.name for graph in graphs_of(bundle.spec, parts))
    mapped_bytes = mapped_weights_bytes(bundle, variant, parts) if request.optimized else None
    require_cpu_memory(bundle, variant, machine.memory_available_bytes, mapped_bytes)
