"""Where a training runs: one device in each process of a launcher, through accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sdrpn.workflows.teacher import require_device

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TrainingDevice", "open_accelerator"]

TrainingDevice = Literal["auto", "cpu", "cuda"]


def open_accelerator(device: str) -> Accelerator:
    """Accelerate's view of this process. Raises BadInput where the device cannot be used here.

    Args:
        device: "auto": a GPU if there is one, or the launcher's device; otherwise a device by PyTorch's name, of which
            the launcher's process takes its own
    """
    from accelerate import Accelerator

    if device != "auto":
        require_device(device)
    return Accelerator(cpu=device == "cpu")
