"""A Qwen checkpoint under canonical names: recognised, and every tensor checked before any is read. NumPy only."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.config_section import read_config
from sdrpn.checkpoint.finite import count_not_finite
from sdrpn.checkpoint.tensors import TensorFolder, weight_files
from sdrpn.errors import BadCheckpoint
from sdrpn.families.qwen.config import AskedScheme, family_name, qwen_spec
from sdrpn.families.qwen.names import NameTable, detect_names
from sdrpn.families.qwen.tensors import model_shapes
from sdrpn.method.spec import ModelSpec

__all__ = ["QwenWeights", "open_qwen"]

_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))


class QwenWeights:
    """Tensors and spec of a model; made by `open_qwen`, used as a context manager."""

    def __init__(self, path: Path, spec: ModelSpec, tensors: TensorFolder, table: NameTable) -> None:
        self.path = path
        self.spec = spec
        self.layout = table.layout
        self._tensors = tensors
        self._places = _places(path, spec, tensors, table)

    def __enter__(self) -> QwenWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._tensors.close()

    @property
    def names(self) -> frozenset[str]:
        """The canonical names of all tensors that the spec needs."""
        return frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a canonical tensor. Raises KeyError for a name outside `names`."""
        return self._tensors.shape(self._places[name])

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as it is stored. Raises BadCheckpoint where it holds NaN or infinities, KeyError for no tensor."""
        place = self._places[name]
        array = self._tensors.read(place)
        count = count_not_finite(array)
        if count:
            raise BadCheckpoint(
                f"{place} of {self.path} holds {count} of {array.size} numbers that are NaN or infinite; the file is "
                "damaged, or the training diverged: use an earlier checkpoint"
            )
        return array


def open_qwen(folder: Path, scheme: AskedScheme = "auto") -> QwenWeights:
    """Open a checkpoint of Qwen2.5-VL or Qwen3-VL, bare or with a region proposal network.

    Args: scheme: whose second pass it is; "auto": as config and names of tensors say
    Raises: BadCheckpoint for what is missing, malformed or not supported, by the name of the tensor or the entry.
    """
    config = read_config(folder / "config.json")
    tensors = TensorFolder(weight_files(folder))
    spec = qwen_spec(folder, tensors.names, scheme)
    family = family_name(config.values)
    assert family is not None  # else there were no spec
    return QwenWeights(folder, spec, tensors, detect_names(tensors.names, family=family, where=str(folder)))


def _places(path: Path, spec: ModelSpec, tensors: TensorFolder, table: NameTable) -> dict[str, str]:
    """Canonical name -> name in the files. Raises BadCheckpoint for the first that is missing or does not fit."""
    places: dict[str, str] = {}
    missing: list[tuple[str, tuple[int, ...]]] = []
    for name, expected in model_shapes(spec).items():
        place = _stored_as(name, spec, tensors, table)
        if place is None:
            missing.append((table.file_name(name), expected))
        else:
            _require_stored_well(path, tensors, place, expected)
            places[name] = place
    if missing:
        raise _missing_error(path, tensors, missing, set(places.values()))
    return places


def _stored_as(name: str, spec: ModelSpec, tensors: TensorFolder, table: NameTable) -> str | None:
    """The name in the files. A tied head is the embedding table, unless a head is stored as well, and the other way."""
    tied = ("llm.head.weight", "llm.embed.weight")
    others = tied if spec.llm.tied_embeddings and name in tied else ()
    candidates = (table.file_name(each) for each in (name, *others))
    return next((place for place in candidates if place in tensors.names), None)


def _require_stored_well(path: Path, tensors: TensorFolder, place: str, expected: tuple[int, ...]) -> None:
    if tensors.dtype(place) not in _FLOATS:
        raise BadCheckpoint(
            f"{place} of {path} is stored as {tensors.stored_as(place)}; expected float32, float16 or bfloat16: use "
            "the checkpoint from before it was quantised"
        )
    if tensors.shape(place) != expected:
        raise BadCheckpoint(
            f"{place} of {path} has the shape {list(tensors.shape(place))}; expected {list(expected)}: config.json and "
            "the weights are not of one model"
        )


def _missing_error(
    path: Path, tensors: TensorFolder, missing: list[tuple[str, tuple[int, ...]]], used: set[str]
) -> BadCheckpoint:
    place, expected = missing[0]
    text = f"{place} {list(expected)} is missing from {path}"
    if len(missing) > 1:
        text += f" (and {len(missing) - 1} more)"
    similar = difflib.get_close_matches(place, sorted(tensors.names - used), n=1)
    if similar:
        text += f"; the closest name in it is {similar[0]} {list(tensors.shape(similar[0]))}"
    return BadCheckpoint(text)
