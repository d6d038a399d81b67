"""Where the tensors of a model come from: folders and files, the names in each, and which tensor is in which."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.low_rank import LowRank, merged
from sdrpn.checkpoint.rpn_file import RpnFile
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.checkpoint.tensors import TensorFolder
from sdrpn.errors import BadCheckpoint
from sdrpn.method.spec import ModelSpec

__all__ = [
    "PARTS",
    "Place",
    "Source",
    "Sources",
    "TensorHints",
    "gate_source",
    "place_tensors",
    "rpn_source",
    "some_tensors",
]

PARTS = ("vision", "projector", "llm", "rpn", "gate")  # the first component of a canonical name
_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
_QUANTIZED_NAMES = (".qweight", ".SCB", ".weight.absmax", ".weight.quant_state")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One folder or file that tensors can come from, and the names in it. Compared by identity."""

    path: Path
    files: tuple[Path, ...]
    tensors: TensorFolder
    file_name: Callable[[str], str]
    layout: str = ""
    has_vision: bool = True
    is_whole: bool = True  # False: it has only some tensors, and missing ones are not an error

    def has(self, name: str) -> bool:
        """Whether it has the tensor of a canonical name."""
        return self.file_name(name) in self.tensors.names


# For each part of a model, the sources to search, in order.
Sources: TypeAlias = dict[str, list[Source]]


@dataclasses.dataclass(frozen=True)
class Place:
    """One tensor: where it is stored, and how an adapter changes it."""

    source: Source
    file_name: str
    adapter: TensorFolder | None = None
    change: LowRank | None = None

    def read(self) -> NDArray[Any]:
        """The tensor as it is stored, or after the change, in float32 or float64.

        Raises BadCheckpoint where the changed tensor is not finite.
        """
        stored = self.source.tensors.read(self.file_name)
        if self.adapter is None or self.change is None:
            return stored
        change, read = self.change, self.adapter.read
        down = None if change.down is None else read(change.down)
        magnitude = None if change.magnitude is None else read(change.magnitude)
        found = merged(stored, down, read(change.up), change, magnitude)
        if not np.isfinite(found).all():
            raise BadCheckpoint(
                f"{self.file_name} of {self.source.path} is not finite after {change.up} is merged into it; one of "
                f"them is damaged: download them again"
            )
        return found


def rpn_source(file: RpnFile) -> Source:
    """A separate RPN that sdrpn wrote."""
    tensors = TensorFolder((file.weights,))
    return Source(file.weights.parent, (file.weights,), tensors, lambda name: name.removeprefix("rpn."))


def gate_source(file: RpnFile) -> Source:
    """Its gate, whose names keep their prefix."""
    tensors = TensorFolder((file.gate_weights,))
    return Source(file.weights.parent, (file.gate_weights,), tensors, lambda name: name)


def some_tensors(file: Path, tensors: TensorFolder, names: Mapping[str, str]) -> Source:
    """A file with some tensors: canonical name -> name in the file."""
    return Source(file.parent, (file,), tensors, lambda name: names.get(name, ""), is_whole=False)


# Every tensor is found and checked before any is read ---------------------------------------------------------------


class TensorHints:
    """What errors about tensors say besides what is wrong: here what holds of every family, which may know more."""

    takes_base = True  # whether a further checkpoint can supply what this one lacks

    def wrong_shape(self, name: str) -> tuple[str, tuple[str, ...]]:
        """What to do about the shape of a canonical tensor, and the arguments that change it."""
        return "config.json and the weights are not of one model", ()

    def missing(self, name: str, file_name: str) -> str:
        """What may be wrong where a canonical tensor is missing; empty: nothing is known."""
        return ""


def place_tensors(spec: ModelSpec, sources: Sources, hints: TensorHints) -> dict[str, Place]:
    """For each tensor that the spec needs: where it is stored and under which name.

    Raises BadCheckpoint for tensors that are missing, of another shape, or of a type that holds no weights.
    """
    places: dict[str, Place] = {}
    missing = []
    for name, expected in tensor_shapes(spec).items():
        candidates = sources[name.split(".")[0]]
        place = next((Place(s, s.file_name(n)) for s in candidates for n in _stored_as(name, spec) if s.has(n)), None)
        if place is None:
            missing.append((name, next((s for s in candidates if s.is_whole), candidates[0]), expected))
        else:
            _require_stored_well(name, place, expected, hints)
            places[name] = place
    if missing:
        raise _missing_error(hints, missing, places.values(), has_base=sum(s.is_whole for s in sources["llm"]) > 1)
    return places


def _stored_as(name: str, spec: ModelSpec) -> tuple[str, ...]:
    """Names that a tensor may be stored under. A tied head is the embedding table, unless a head is stored as well."""
    tied = ("llm.head.weight", "llm.embed.weight")
    if not spec.llm.tied_embeddings or name not in tied:
        return (name,)
    return (name, *(other for other in tied if other != name))


def _require_stored_well(name: str, place: Place, expected: tuple[int, ...], hints: TensorHints) -> None:
    source, file_name = place.source, place.file_name
    found, dtype = source.tensors.shape(file_name), source.tensors.dtype(file_name)
    if dtype not in _FLOATS:
        stored_as = source.tensors.stored_as(file_name)
        raise BadCheckpoint(
            f"{file_name} of {source.path} is stored as {stored_as}; expected float32, float16 or bfloat16: use the "
            f"checkpoint from before it was quantised"
        )
    if found != expected:
        advice, options = hints.wrong_shape(name)
        raise BadCheckpoint(
            f"{file_name} of {source.path} has the shape {list(found)}; expected {list(expected)}: {advice}",
            options=options,
        )


def _missing_error(
    hints: TensorHints,
    missing: list[tuple[str, Source, tuple[int, ...]]],
    placed: Iterable[Place],
    *,
    has_base: bool,
) -> BadCheckpoint:
    name, source, expected = missing[0]
    file_name = source.file_name(name)
    quantized = next((n for n in sorted(source.tensors.names) if n.endswith(_QUANTIZED_NAMES)), None)
    if quantized is not None:
        return BadCheckpoint(
            f"{source.path} holds {quantized}: its weights are quantised (GPTQ, AWQ or bitsandbytes), which is not "
            f"supported; use the checkpoint from before that, and quantise it in the export",
            options=("precision int8", "precision int4"),
        )
    text = f"{file_name} {list(expected)} is missing from {source.path}"
    if len(missing) > 1:
        text += f" (and {len(missing) - 1} more)"
    # A name that another tensor uses cannot be a misspelling of this one.
    unused = source.tensors.names - {place.file_name for place in placed if place.source is source}
    similar = difflib.get_close_matches(file_name, sorted(unused), n=1)
    if similar:
        text += f"; the closest name in it is {similar[0]} {list(source.tensors.shape(similar[0]))}"
    hint = hints.missing(name, file_name)
    if hint:
        text += f"; {hint}"
    if hints.takes_base and not has_base and all(part.startswith("llm.") for part, _, _ in missing):
        text += "; if upper layers were cut from this checkpoint, name the full one as its base"
        return BadCheckpoint(text, options=("base",))
    return BadCheckpoint(text)
