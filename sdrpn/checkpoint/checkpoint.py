"""A checkpoint under canonical names, whichever layout and files it has. NumPy only.

Opening reads configs and headers, and checks every tensor that the model needs; weights are read when asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.config import read_llm_layers, read_spec, vision_tower_name
from sdrpn.checkpoint.config_section import read_config
from sdrpn.checkpoint.names import clip_name, detect_layout, detect_vision_prefix
from sdrpn.checkpoint.rpn_file import RPN_CONFIG_NAME, RpnFile, read_rpn
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.checkpoint.tensors import TensorFolder, weight_files
from sdrpn.checkpoint.vision_tower import find_vision_tower
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.spec import ModelSpec

__all__ = ["Checkpoint", "open_checkpoint"]

_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
_TOWER_PREFIXES = ("vision_model.", "")  # in a CLIP folder of its own
_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model")
# Besides the weights, these decide what is exported.
_CONFIG_NAMES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
_PIECE_BYTES = 8 * 1024 * 1024


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """One folder that tensors can come from, and what it calls them. Two sources are never equal."""

    path: Path
    files: tuple[Path, ...]
    tensors: TensorFolder
    file_name: Callable[[str], str]
    layout: str = ""
    has_vision: bool = True


# For each part of a model (the first word of a canonical name), where to look for it, in order.
Sources: TypeAlias = dict[str, list[_Source]]


class Checkpoint:
    """Tensors and description of a model; made by `open_checkpoint`, used as a context manager."""

    def __init__(self, path: Path, spec: ModelSpec, layout: str, sources: Sources, configs: tuple[Path, ...]) -> None:
        """`configs` are the files that the spec was read from."""
        self.path = path
        self.spec = spec
        self.layout = layout
        self._sources = sources
        self._configs = configs
        self._places = _place_tensors(spec, sources)
        self._digest: str | None = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        for source in self._all_sources():
            source.tensors.close()

    @property
    def names(self) -> frozenset[str]:
        """The canonical names of all tensors that the spec needs."""
        return frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a canonical tensor. Raises KeyError for a name outside `names`."""
        source, file_name = self._places[name]
        return source.tensors.shape(file_name)

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as it is stored (float64, float32, float16 or ml_dtypes.bfloat16), read-only where it is mapped.

        Raises KeyError for a name outside `names`.
        """
        source, file_name = self._places[name]
        return source.tensors.read(file_name)

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder with the tokenizer's files, if any."""
        folders = (source.path for source in self._sources["llm"])
        return next((path for path in folders if any((path / name).is_file() for name in _TOKENIZER_NAMES)), None)

    def digest(self, progress: Callable[[int], None] = lambda size_bytes: None) -> str:
        """SHA-256 as hex over all configs and weight files: names, sizes and contents, in a fixed order.

        `progress` is told the bytes of each piece that was read. The second call costs nothing.
        """
        if self._digest is None:
            self._digest = _digest(self._all_files(), progress)
        return self._digest

    def _all_sources(self) -> list[_Source]:
        return list({id(source): source for sources in self._sources.values() for source in sources}.values())

    def _all_files(self) -> list[Path]:
        return [*self._configs, *(path for source in self._all_sources() for path in source.files)]


def open_checkpoint(
    path: Path | str,
    *,
    vision_tower: Path | None = None,
    rpn: Path | None = None,
    base: Path | None = None,
) -> Checkpoint:
    """Open a checkpoint folder in any known layout and check that it holds every tensor it should.

    Args:
        vision_tower: a CLIP folder for a checkpoint in LLaVA's own layout. It says what the tower is; its weights are
            used unless the checkpoint carries the tower's weights itself, because those may have been tuned
        rpn: an RPN of ours (folder or .safetensors file); without it, `rpn.json` in the checkpoint's folder is used if
            it is there, and else the RPN of the checkpoint itself
        base: another checkpoint of the same sizes that has what this one lacks (upper LLM layers, norm, head)
    Raises BadCheckpoint for whatever is missing, malformed or not supported.
    """
    folder = Path(path)
    _require_checkpoint_folder(folder)
    tower = _vision_tower(folder, vision_tower)
    spec = read_spec(folder, tower)
    own = _checkpoint_source(folder, with_rpn=spec.rpn is not None)
    sources = {part: [own] for part in ("vision", "projector", "llm", "rpn")}
    if tower is not None and not own.has_vision:
        sources["vision"] = [_tower_source(tower)]
    if base is not None:
        spec = _add_base(sources, spec, Path(base))
    configs = _config_files(folder, tower, base)
    file = _rpn_file(folder, rpn)
    if file is not None:
        spec = dataclasses.replace(spec, tap_layer=file.tap_layer, rpn=file.rpn)
        sources["rpn"] = [_rpn_source(file)]
        configs += (file.config,)
    return Checkpoint(folder, spec, own.layout, sources, configs)


def _config_files(*folders: Path | None) -> tuple[Path, ...]:
    paths = [Path(folder) / name for folder in folders if folder is not None for name in _CONFIG_NAMES]
    return tuple(path for path in paths if path.is_file())


def _require_checkpoint_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BadCheckpoint(f"{folder} is not a folder; expected a checkpoint's folder, with config.json and weights")
    if (folder / "config.json").is_file():
        return
    if (folder / RPN_CONFIG_NAME).is_file():
        raise BadCheckpoint(f"{folder} holds only an RPN; open its base checkpoint and give this folder as --rpn")
    if (folder / "adapter_config.json").is_file():
        raise BadCheckpoint(f"{folder} holds only an adapter; merge it into its base model first")
    raise BadCheckpoint(f"{folder} has no config.json; expected a checkpoint's folder")


def _vision_tower(folder: Path, given: Path | None) -> Path | None:
    name = vision_tower_name(read_config(folder / "config.json"))
    if name is not None:
        return find_vision_tower(folder, name, None if given is None else Path(given))
    if given is not None:
        raise BadInput(f"{folder} carries its own vision tower; leave out the vision tower {given}")
    return None


def _checkpoint_source(folder: Path, *, with_rpn: bool) -> _Source:
    files = weight_files(folder)
    tensors = TensorFolder(files)
    layout = detect_layout(tensors.names, with_rpn=with_rpn, where=str(folder))
    prefix = detect_vision_prefix(tensors.names, layout.vision)
    return _Source(
        folder,
        files,
        tensors,
        lambda name: layout.file_name(name, prefix),
        layout=layout.name,
        has_vision=prefix is not None,
    )


def _tower_source(tower: Path) -> _Source:
    files = weight_files(tower)
    tensors = TensorFolder(files)
    prefix = detect_vision_prefix(tensors.names, _TOWER_PREFIXES) or ""
    return _Source(tower, files, tensors, lambda name: prefix + clip_name(name.removeprefix("vision.")))


def _rpn_file(folder: Path, given: Path | None) -> RpnFile | None:
    if given is not None:
        return read_rpn(Path(given))
    return read_rpn(folder) if (folder / RPN_CONFIG_NAME).is_file() else None


def _rpn_source(file: RpnFile) -> _Source:
    tensors = TensorFolder((file.weights,))
    return _Source(file.weights.parent, (file.weights,), tensors, lambda name: name.removeprefix("rpn."))


def _add_base(sources: Sources, spec: ModelSpec, folder: Path) -> ModelSpec:
    """Let `folder` supply what is missing, and take its number of LLM layers where the checkpoint's were cut."""
    _require_checkpoint_folder(folder)
    base = _checkpoint_source(folder, with_rpn=False)
    for part in ("projector", "llm", *(["vision"] if base.has_vision else [])):
        sources[part] = [*sources[part], base]
    layers = max(spec.llm.layers, read_llm_layers(folder))
    return dataclasses.replace(spec, llm=dataclasses.replace(spec.llm, layers=layers))


# Every tensor is found and checked before any is read ---------------------------------------------------------------


def _place_tensors(spec: ModelSpec, sources: Sources) -> dict[str, tuple[_Source, str]]:
    """For each tensor that the spec needs: where it lies and under which name."""
    places = {}
    missing = []
    for name, expected in tensor_shapes(spec).items():
        stored = "llm.embed.weight" if spec.llm.tied_embeddings and name == "llm.head.weight" else name
        candidates = sources[name.split(".")[0]]
        place = next(((s, s.file_name(stored)) for s in candidates if s.file_name(stored) in s.tensors.names), None)
        if place is None:
            missing.append((name, candidates[0], expected))
        else:
            _require_stored_well(name, *place, expected)
            places[name] = place
    if missing:
        raise _missing_error(missing, set(places.values()), has_base=len(sources["llm"]) > 1)
    return places


def _require_stored_well(name: str, source: _Source, file_name: str, expected: tuple[int, ...]) -> None:
    found, dtype = source.tensors.shape(file_name), source.tensors.dtype(file_name)
    if dtype not in _FLOATS:
        raise BadCheckpoint(
            f"{file_name} of {source.path} is stored as {dtype}; expected float32, float16 or bfloat16: "
            f"use the checkpoint from before it was quantised"
        )
    if found != expected:
        about_vision = name.startswith("vision.") or name == "projector.fc1.weight"
        advice = (
            "is this the right vision tower? name another one with --vision-tower"
            if about_vision
            else "config.json and the weights are not of one model"
        )
        raise BadCheckpoint(
            f"{file_name} of {source.path} has the shape {list(found)}; expected {list(expected)}: {advice}"
        )


def _missing_error(
    missing: list[tuple[str, _Source, tuple[int, ...]]], placed: set[tuple[_Source, str]], *, has_base: bool
) -> BadCheckpoint:
    name, source, expected = missing[0]
    file_name = source.file_name(name)
    text = f"{file_name} {list(expected)} is missing from {source.path}"
    if len(missing) > 1:
        text += f" (and {len(missing) - 1} more)"
    # A name that is in use already is no misspelling of this one.
    unused = source.tensors.names - {used for place, used in placed if place is source}
    similar = difflib.get_close_matches(file_name, sorted(unused), n=1)
    if similar:
        text += f"; the closest name in it is {similar[0]} {list(source.tensors.shape(similar[0]))}"
    if all(part.startswith("llm.") for part, _, _ in missing) and not has_base:
        text += "; if upper layers were cut from this checkpoint, name the full one with --base"
    return BadCheckpoint(text)


def _digest(files: Iterable[Path], progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                progress(len(piece))
    return digest.hexdigest()
