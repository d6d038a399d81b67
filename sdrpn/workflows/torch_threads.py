"""How many threads PyTorch computes with while a job runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdrpn.host.threads import choose_threads

if TYPE_CHECKING:
    from sdrpn.method.spec import ModelSpec

__all__ = ["torch_threads"]


@contextmanager
def torch_threads(wished: int | None, spec: ModelSpec | None = None) -> Iterator[int]:
    """Let PyTorch use so many threads within this block; afterwards as many as before.

    Args:
        wished: None: one per free core, and a single one for a small model
        spec: the model that answers one question at a time; None: a training, whose products are large in any model
    Yields: how many
    Raises: BadInput where `wished` is out of range
    """
    import torch

    count = choose_threads(wished, None if spec is None else spec.llm.largest_matrix).count
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
