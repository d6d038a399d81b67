"""All tensors of a folder under the names in its files, over any number of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.model_file import parsed_json, read_small_file, require_model_file, short
from sdrpn.checkpoint.safetensors_file import SafetensorsReader
from sdrpn.checkpoint.stored_tensor import StoredTensor
from sdrpn.checkpoint.torch_file import TorchReader
from sdrpn.errors import BadCheckpoint

__all__ = ["GATE_WEIGHTS_NAME", "RPN_WEIGHTS_NAME", "TensorFolder", "has_weights", "weight_files"]

RPN_WEIGHTS_NAME, GATE_WEIGHTS_NAME = "rpn.safetensors", "gate.safetensors"
# Other formats that models are stored in.
_OTHER_FORMS = {
    ".gguf": "weights of llama.cpp, quantised",
    ".h5": "weights of TensorFlow",
    ".msgpack": "weights of Flax",
    ".onnx": "an exported graph",
    ".pt": "saved by PyTorch, in a custom form",
    ".pth": "LLaMA's original shards, or saved by PyTorch in a form of its own",
}
# Files beside a model's weights that do not belong to them.
_OTHER_NAMES = (RPN_WEIGHTS_NAME, GATE_WEIGHTS_NAME, "adapter_model.safetensors", "mm_projector.safetensors")


class TensorFile(Protocol):
    """Reads the tensors of one file."""

    @property
    def path(self) -> Path: ...
    @property
    def tensors(self) -> dict[str, StoredTensor]: ...
    def read(self, name: str) -> NDArray[Any]: ...
    def close(self) -> None: ...


class TensorFolder:
    """The weight files of one folder as one table of tensors.

    `files`: readers are opened for these; a name that occurs in two of them is BadCheckpoint.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files: dict[str, TensorFile] = {}
        self._last: TensorFile | None = None
        for path in files:
            self._add(_open_file(path))

    def _add(self, file: TensorFile) -> None:
        for name in file.tensors:
            if name in self._files:
                raise BadCheckpoint(
                    f"{name} is in both {self._files[name].path.name} and {file.path.name} of {file.path.parent}; "
                    f"remove the file that does not belong there, or add an index"
                )
            self._files[name] = file
        file.close()

    @property
    def names(self) -> frozenset[str]:
        """Every tensor of the folder, needed or not."""
        return frozenset(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Read from the header only."""
        return self._files[name].tensors[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Read from the header only."""
        return self._files[name].tensors[name].dtype

    def stored_as(self, name: str) -> str:
        """The type, for messages: NumPy's name, or the file's where NumPy has no such type."""
        return self._files[name].tensors[name].stored_as

    def read(self, name: str) -> NDArray[Any]:
        """The array as stored. Only the file that was read last stays open, so each shard is closed before the next."""
        file = self._files[name]
        if self._last is not None and self._last is not file:
            self._last.close()
        self._last = file
        return file.read(name)

    def close(self) -> None:
        """Close the file that was read last."""
        if self._last is not None:
            self._last.close()


def _open_file(path: Path) -> TensorFile:
    return SafetensorsReader(path) if path.suffix == ".safetensors" else TorchReader(path)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with a folder's weights, safetensors before `.bin`; without a separate RPN.

    Raises BadCheckpoint when there are none, or when an index names a file that is missing or in another folder.
    """
    for find in (_indexed("*.safetensors.index.json"), _safetensors, _indexed("*.bin.index.json"), _torch_files):
        files = find(folder)
        if files:
            return files
    other = next((path for path in sorted(folder.glob("*")) if path.suffix in _OTHER_FORMS), None)
    if other is not None:
        raise BadCheckpoint(
            f"{folder} holds {other.name} ({_OTHER_FORMS[other.suffix]}), which is not supported, and no other "
            f"weights; expected *.safetensors or pytorch_model*.bin: download the model in one of these"
        )
    raise BadCheckpoint(
        f"{folder} has no weights; expected *.safetensors or pytorch_model*.bin; download the weight files too"
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights of a model or an index of them, complete or not."""
    indexes = (path for pattern in ("*.safetensors.index.json", "*.bin.index.json") for path in folder.glob(pattern))
    return bool(_safetensors(folder) or _torch_files(folder) or any(indexes))


def _safetensors(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.glob("*.safetensors") if path.name not in _OTHER_NAMES))


def _torch_files(folder: Path) -> tuple[Path, ...]:
    # Not every .bin file: training_args.bin and the optimizer's files are in the same folder.
    return tuple(sorted(folder.glob("pytorch_model*.bin")))


def _indexed(pattern: str) -> Callable[[Path], tuple[Path, ...]]:
    def find(folder: Path) -> tuple[Path, ...]:
        index = next(iter(sorted(folder.glob(pattern))), None)
        return () if index is None else _files_of_index(index)

    return find


def _files_of_index(index: Path) -> tuple[Path, ...]:
    weight_map = parsed_json(read_small_file(index), str(index), names_once=True).get("weight_map")
    if not isinstance(weight_map, dict):
        raise BadCheckpoint(f"{index} is not an index of shards; expected JSON with a weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\0" in name:
            raise BadCheckpoint(f"{index} names the file {short(repr(name))}; expected a file of the same folder")
    shard_names = sorted(set(weight_map.values()))
    for name in shard_names:
        if not _exists(index.parent / name):
            raise BadCheckpoint(f"{index} names {short(name)}, which does not exist; download the missing shard")
        require_model_file(index.parent / name)
    return tuple(index.parent / name for name in shard_names)


def _exists(path: Path) -> bool:
    """Whether a path exists; one that is too long does not."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True
