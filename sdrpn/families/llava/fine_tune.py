"""Fine-tunes stored beside a model's weights or instead of them: adapters, LLaVA's trained parts, separate projectors.

adapter_config.json, adapter_model.*   LoRA as PEFT saves it, LLaVA's own among it
non_lora_trainables.bin                what LLaVA trained besides the LoRA: the projector, sometimes the tower
mm_projector.bin                       LLaVA's projector after its first stage
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sdrpn.checkpoint.adapter import ADAPTER_CONFIG_NAME, Adapter, adapter_weights, read_adapter
from sdrpn.checkpoint.config_section import read_config
from sdrpn.checkpoint.low_rank import LowRank
from sdrpn.checkpoint.source import PARTS, Source, some_tensors
from sdrpn.checkpoint.tensor_shapes import Shapes, tensor_shapes
from sdrpn.checkpoint.tensors import TensorFolder, has_weights
from sdrpn.errors import BadCheckpoint
from sdrpn.families.llava.names import NameTable
from sdrpn.method.spec import ModelSpec

__all__ = ["FineTune", "FolderParts", "find_parts", "read_fine_tune"]

_TRAINABLES_NAME = "non_lora_trainables.bin"
_PROJECTOR_NAME = "mm_projector.bin"


@dataclasses.dataclass(frozen=True)
class FolderParts:
    """Which of these files a folder has."""

    folder: Path
    has_weights: bool
    adapter: Path | None = None  # its config
    trainables: Path | None = None
    projector: Path | None = None

    @property
    def is_fine_tune(self) -> bool:
        """Whether the folder has anything to apply to a base model."""
        return any((self.adapter, self.trainables, self.projector))

    def weights_in(self, base: Path | None) -> Path:
        """The folder with the weights: this one, or that of the base."""
        return self.folder if self.has_weights or base is None else base

    def require_weights(self) -> None:
        """Raise BadCheckpoint where the folder has only a fine-tune, and say what it needs."""
        if self.has_weights or not self.is_fine_tune:
            return
        self.require_adapter()
        if self.adapter is not None:
            name = read_config(self.adapter).get("base_model_name_or_path")
            base = f" ({name!r})" if isinstance(name, str) and name else ""
            raise BadCheckpoint(
                f"{self.folder} holds only an adapter; name the folder of its base{base}", options=("base",)
            )
        raise BadCheckpoint(
            f"{self.folder} holds {_PROJECTOR_NAME} and no weights; name the folder of the language model that it was "
            f"trained with as its base",
            options=("base",),
        )

    def require_adapter(self) -> None:
        """Raise BadCheckpoint for a LoRA's other tensors without the LoRA: without it, the model would be another."""
        if self.trainables is not None and self.adapter is None and not self.has_weights:
            raise BadCheckpoint(
                f"{self.folder} has {_TRAINABLES_NAME} without {ADAPTER_CONFIG_NAME} and its weights; download them too"
            )


@dataclasses.dataclass(frozen=True)
class FineTune:
    """Changes to a model: tensors that take precedence, low-rank changes of others, and notes for the user."""

    sources: tuple[Source, ...] = ()
    adapter: Adapter | None = None
    notes: tuple[str, ...] = ()
    projector: Source | None = None  # a projector that the caller named; it supplies nothing else

    def parts_of(self, source: Source) -> tuple[str, ...]:
        """Which parts of a model a source may supply."""
        return ("projector",) if source is self.projector else PARTS


_NO_CHANGES: Mapping[str, LowRank] = MappingProxyType({})


def find_parts(folder: Path) -> FolderParts:
    """Find the parts that a folder has; opens no file."""

    def there(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    adapter = there(ADAPTER_CONFIG_NAME)
    return FolderParts(folder, has_weights(folder), adapter, there(_TRAINABLES_NAME), there(_PROJECTOR_NAME))


def read_fine_tune(parts: FolderParts, spec: ModelSpec, projector: Path | None, own: Source) -> FineTune:
    """Decide which parts of a folder are applied to its weights, or to those of its base.

    Args:
        spec: the spec of the whole model
        projector: a file (or its folder) to take the projector from, in preference to any other
        own: the weights that the parts are applied to
    Raises BadCheckpoint for parts that cannot be read, have no place in the model, or are ambiguous.
    """
    shapes = tensor_shapes(spec)
    named = None if projector is None else _some(_projector_file(projector), shapes, projector_only=True)
    first = () if named is None else (named,)
    if parts.has_weights:
        if named is None:
            _require_own_projector(parts, own)
        return FineTune(first, notes=_left_over(parts, named is not None), projector=named)
    parts.require_adapter()
    files = (parts.trainables, None if projector is not None else parts.projector)
    sources = [_some(file, shapes) for file in files if file is not None]
    adapter = None if parts.adapter is None else read_adapter(parts.folder, shapes, NameTable(shapes))
    if adapter is not None:
        weights = adapter_weights(parts.folder)
        assert weights is not None
        sources.append(some_tensors(weights, adapter.tensors, adapter.replaced))
    changes = _NO_CHANGES if adapter is None else adapter.changes
    if spec.llm.tied_embeddings:
        _require_untied(parts.folder, sources, changes)
    return FineTune((*first, *sources), adapter, _merged_notes(parts, changes), named)


def _projector_file(given: Path) -> Path:
    file = Path(given) / _PROJECTOR_NAME if Path(given).is_dir() else Path(given)
    if not file.is_file():
        raise BadCheckpoint(f"{file} does not exist; expected a projector as LLaVA saves it, {_PROJECTOR_NAME}")
    return file


def _some(file: Path, shapes: Shapes, *, projector_only: bool = False) -> Source:
    """A file that LLaVA saved; it has the whole projector or nothing of it."""
    tensors, table = TensorFolder((file,)), NameTable(shapes)
    found = {canonical: name for name in sorted(tensors.names) if (canonical := table.canonical(name, where=str(file)))}
    expected = {name for name in shapes if name.startswith("projector.")}
    there = expected & found.keys()
    if there != expected and (there or projector_only):
        missing = sorted(expected - there)
        raise BadCheckpoint(
            f"{file} lacks {missing[0]} (and {len(missing) - 1} more) of the projector that the config describes; "
            f"expected all of it: is it for another mm_projector_type?"
        )
    return some_tensors(file, tensors, {name: found[name] for name in expected} if projector_only else found)


def _require_own_projector(parts: FolderParts, own: Source) -> None:
    """Refuse a projector beside weights without one: only its owner knows which stage of training it is from."""
    if parts.projector is not None and not own.has("projector.fc1.weight"):
        raise BadCheckpoint(
            f"the weights of {parts.folder} have no projector, and {_PROJECTOR_NAME} beside them may be of an earlier "
            f"stage of training; to use it, name it as the projector: {parts.projector}",
            options=("projector",),
        )


def _left_over(parts: FolderParts, projector_is_named: bool) -> tuple[str, ...]:
    notes = []
    if parts.adapter is not None or parts.trainables is not None:
        names = [path.name for path in (parts.adapter, parts.trainables) if path is not None]
        notes.append(
            f"{parts.folder} has whole weights, and they are used as they are: {' and '.join(names)} beside them is "
            f"not merged (to merge it into a base, move it to a folder of its own and name the base)"
        )
    if parts.projector is not None and not projector_is_named:
        notes.append(
            f"the weights of {parts.folder} have a projector, and it is used: {_PROJECTOR_NAME} beside them is not "
            f"(it would be, named as the projector)"
        )
    return tuple(notes)


def _merged_notes(parts: FolderParts, changes: Mapping[str, LowRank]) -> tuple[str, ...]:
    if parts.adapter is None:
        return ()
    return (f"the adapter in {parts.folder} is merged into its base: {len(changes)} tensors are changed by it",)


def _require_untied(folder: Path, sources: list[Source], changes: Mapping[str, LowRank]) -> None:
    for name in ("llm.embed.weight", "llm.head.weight"):
        if name in changes or any(source.has(name) for source in sources):
            raise BadCheckpoint(
                f"{folder} changes the embedding table or the head, which are one tensor in this model: whether both "
                f"were meant is unknown; merge it where it was trained, and export the result"
            )
