"""Open the session that a request asks for: what can be refused is refused before graphs are loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from sdrpn.bundle.bundle import Bundle
from sdrpn.bundle.graphs import Parts, graphs_of
from sdrpn.bundle.memory import MemoryNeeds, require_cpu_memory
from sdrpn.errors import BadInput
from sdrpn.host.machine import read_machine
from sdrpn.runtime import Session
from sdrpn.runtime.backends import AUTOMATIC, backend_info
from sdrpn.runtime.backends.info import MemoryRequest
from sdrpn.runtime.opening import OpeningRequest, RunOptions
from sdrpn.runtime.pictures.picture import JpegMode
from sdrpn.runtime.select import graph_variant, mapped_weights_bytes
from sdrpn.workflows.saved_again import saved_again

__all__ = ["SessionRequest", "opened_session", "require_memory", "require_tokenizer"]


@dataclass(frozen=True, kw_only=True)
class SessionRequest(RunOptions):
    """What jobs that open a session have in common: how and where it runs, as in `Session.open`.

    check_memory: refuse if the estimated memory does not fit this machine
    rebuild_optimized: save graphs for this machine's CPU again, as `optimize_bundle` does, where those of the bundle
        are for another machine, another version of the library or another export
    """

    check_memory: bool = True
    rebuild_optimized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rebuild_optimized and (self.accurate or not self.optimized):
            raise BadInput(
                "graphs are to be saved again, and not to be used; leave one of the options out",
                options=("rebuild-optimized", "accurate" if self.optimized else "no-optimized"),
            )


def opened_session(
    bundle: Bundle,
    request: SessionRequest,
    *,
    max_batch: int | None = None,
    prefix_bytes: int | None = None,
    parts: Parts = "all",
    jpeg: JpegMode = "exact",
    note: Callable[[str], None] = lambda text: None,
) -> Session:
    """The bundle, open as the request says; the rest as in `Session.open`.

    Args: note: called before work that takes minutes
    """
    again = functools.partial(saved_again, threads=request.threads, note=note) if request.rebuild_optimized else None
    opening = OpeningRequest(bundle.path, request, max_batch=max_batch, parts=parts, save_again=again)
    return Session.open_with(opening, jpeg=jpeg, prefix_bytes=prefix_bytes)


def require_tokenizer(bundle: Bundle) -> None:
    """Raise BadInput for a bundle that takes no questions in words."""
    if bundle.manifest.tokenizer is None:
        raise BadInput(
            f"{bundle.path} has no tokenizer.json, and a question in words needs one: put tokenizer.json or "
            f"tokenizer.model beside the checkpoint's config.json and export it again"
        )


def require_memory(bundle: Bundle, request: SessionRequest, parts: Parts = "all") -> None:
    """Raise RunFailed for what cannot fit this machine's memory. `parts`: as in `Session.open`."""
    if request.backend not in (AUTOMATIC, "onnxruntime", "openvino"):
        return
    machine = read_machine()
    # Engines may answer; if none fit, a lack of memory is reported when it occurs.
    if request.backend == AUTOMATIC and machine.gpus:
        return
    # AUTOMATIC takes another library only where its memory fits.
    info = backend_info("onnxruntime" if request.backend == AUTOMATIC else request.backend)
    whole = graph_variant(bundle, request.variant, info=info)
    variant = whole.with_graphs(graph.name for graph in graphs_of(bundle.spec, parts))
    mapped_bytes = mapped_weights_bytes(bundle, variant, parts, info) if request.optimized else None

    def needs(context: int) -> MemoryNeeds:
        return info.needs(
            bundle, variant, MemoryRequest(context, 1, mapped_bytes, request.kv_cache, request.decode_copy)
        )

    require_cpu_memory(bundle, variant, machine.memory_available_bytes, needs)
