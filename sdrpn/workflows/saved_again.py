"""Graphs that were saved for a machine's CPU and no longer fit: saved again as they were, when a bundle is opened."""

from __future__ import annotations

from collections.abc import Callable

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.optimized import saved_before
from sdrpn.errors import SdrpnError
from sdrpn.host.file_lock import locked_folder
from sdrpn.host.freed_memory import trim_heap
from sdrpn.runtime.backends import backend_info
from sdrpn.runtime.select import choose_optimized
from sdrpn.workflows.graph_optimization import OptimizeRequest, save_graphs

__all__ = ["saved_again"]


def saved_again(
    bundle: Bundle,
    variant: Variant,
    library: str,
    *,
    threads: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> str | None:
    """Save graphs of a variant for this machine's CPU, with the options that they were saved with last.

    Of several processes one does it, and the others wait for it. Graphs for other versions of the library stay, since
    another process may run them: `sdrpn optimize` removes them.

    Args:
        library: which is to run them, by the name of its backend
        note: called before that begins
    Returns: why it was not done; None: they fit
    """
    with locked_folder(bundle.path):
        if choose_optimized(bundle, variant, backend_info(library), verify=False)[0] is not None:
            return None  # another process did it meanwhile
        before = saved_before(bundle, variant, library)
        if before is None:
            return "how they were made is not known"
        if before.block is not None:
            return f"their blocks of {before.block} are made from the checkpoint"
        attention = before.attention if library == "onnxruntime" else None
        note(f"making graphs of {variant.name} for {backend_info(library).library} again; this may take minutes")
        try:
            request = OptimizeRequest(
                bundle.path, variant.name, attention, threads, before.int8_parts, tuple(before.int4), library
            )
            save_graphs(bundle, request)
        except SdrpnError as error:  # a read-only folder, a full disk, a missing extra: the bundle's own graphs answer
            return str(error)
        finally:
            trim_heap()
    return None
