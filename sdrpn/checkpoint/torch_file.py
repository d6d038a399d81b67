"""PyTorch's `.bin` files, read without running anything that they contain."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.safetensors_file import StoredTensor
from sdrpn.errors import BadCheckpoint, MissingDependency

__all__ = ["TorchReader"]


class TorchReader:
    """One `.bin` file. It is mapped while its tensors are read, and let go by `close`.

    Raises MissingDependency without torch, BadCheckpoint for anything but a dict of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[str, Any] | None = None
        self.tensors = {name: _stored_tensor(tensor) for name, tensor in self._open().items()}

    def read(self, name: str) -> NDArray[Any]:
        """A copy of the tensor, so that it does not keep the file mapped."""
        tensor = self._open()[name]
        torch = _import_torch(self.path)
        if tensor.dtype == torch.bfloat16:  # NumPy has no such type, torch does not know ml_dtypes
            bits: NDArray[Any] = tensor.contiguous().view(torch.uint16).numpy().copy()
            return bits.view(ml_dtypes.bfloat16)
        array: NDArray[Any] = tensor.numpy().copy()
        return array

    def close(self) -> None:
        """Unmap the file; the next `read` maps it again."""
        self._state = None

    def _open(self) -> dict[str, Any]:
        if self._state is None:
            self._state = _load(self.path)
        return self._state


def _import_torch(path: Path) -> Any:
    try:
        torch = importlib.import_module("torch")
        torch.load  # noqa: B018  # a folder named torch on the path imports too
    except (ImportError, AttributeError) as error:
        raise MissingDependency(
            f"{path} is a PyTorch file and PyTorch is not installed; pip install 'sdrpn[train]', "
            f"or use a checkpoint with .safetensors files"
        ) from error
    return torch


def _load(path: Path) -> dict[str, Any]:
    torch = _import_torch(path)
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)  # written before PyTorch 1.6: no mapping
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(
            f"{path} holds Python objects that are not tensors, and is not opened because they could run code; "
            f"convert it to .safetensors where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise BadCheckpoint(
            f"{path} cannot be read as a PyTorch file ({' '.join(str(error).split())[:120]}); download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadCheckpoint(f"{path} is not a dict of tensors; expected a model's state dict")
    return state


def _stored_tensor(tensor: Any) -> StoredTensor:
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    return StoredTensor(dtype, tuple(tensor.shape), begin=0)
