"""A checkpoint under canonical names, whatever its layout and files. NumPy only.

Opening reads configs and headers and checks every tensor that the model needs; weights are read on demand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from numpy.typing import NDArray

from sdrpn.checkpoint.adapter import ADAPTER_CONFIG_NAME
from sdrpn.checkpoint.config import read_llm_layers, read_spec, vision_tower_name
from sdrpn.checkpoint.config_section import RANDOM_WEIGHTS, read_config
from sdrpn.checkpoint.fine_tune import NO_FINE_TUNE, FineTune, FolderParts, find_parts, read_fine_tune
from sdrpn.checkpoint.finite import count_not_finite
from sdrpn.checkpoint.model_file import require_links, require_model_file
from sdrpn.checkpoint.processor_config import Processor, read_processor
from sdrpn.checkpoint.prompt_config import with_template
from sdrpn.checkpoint.rpn_file import RPN_CONFIG_NAME, RpnFile, read_rpn
from sdrpn.checkpoint.source import (
    PARTS,
    Place,
    Source,
    Sources,
    checkpoint_source,
    place_tensors,
    rpn_source,
    tower_source,
)
from sdrpn.checkpoint.unsupported import refuse_foreign_tower
from sdrpn.checkpoint.vision_tower import find_vision_tower
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.families.registry import claiming_family, family_of, load_part
from sdrpn.host.hub import model_folder
from sdrpn.host.links import AllowLinks
from sdrpn.host.progress import Grown, uncounted
from sdrpn.method.geometry import Fit
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.spec import ModelSpec

__all__ = ["Checkpoint", "open_checkpoint"]

_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model")
# The files besides the weights that determine the export.
_CONFIG_NAMES = (
    "config.json",
    ADAPTER_CONFIG_NAME,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
_PIECE_BYTES = 8 * 1024 * 1024


class Checkpoint:
    """Tensors and description of a model; made by `open_checkpoint`, used as a context manager."""

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        layout: str,
        sources: Sources,
        configs: tuple[Path, ...],
        tuning: FineTune = NO_FINE_TUNE,
        pictures: str = "",
        *,
        rpn_trained: bool = True,
        policy: ModelPolicy | None = None,
    ) -> None:
        """`configs` are the files that the spec was read from; `policy`: None: the family's."""
        # Whether the RPN's weights came out of a training; False where there is none.
        self.rpn_trained = rpn_trained and spec.rpn is not None
        self.path = path
        self.spec = spec
        self.policy = policy or ModelPolicy(family_of(spec).policy(spec), "official")  # by what it looks again
        self.pictures = pictures  # how pictures become squares, as a note for the user
        self.layout = layout
        self._sources = sources
        self._configs = configs
        self.notes = (*_notes(spec), *tuning.notes)
        self._places = tuning.change(place_tensors(spec, sources))
        self._digest: str | None = None
        self._finite: set[str] = set()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for source in self._all_sources():
            source.tensors.close()

    @property
    def names(self) -> frozenset[str]:
        """The canonical names of all tensors that the spec needs."""
        return frozenset(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a canonical tensor. Raises KeyError for a name outside `names`."""
        place = self._places[name]
        return place.source.tensors.shape(place.file_name)

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as it is stored (float64, float32, float16 or ml_dtypes.bfloat16), read-only where it is mapped.

        Tensors that an adapter changes are computed at every call, in float32 or float64. Raises KeyError for a name
        outside `names`.
        """
        place = self._places[name]
        array = place.read()
        if name not in self._finite:
            self._require_finite(name, place, array)
        return array

    def _require_finite(self, name: str, place: Place, array: NDArray[Any]) -> None:
        """Check each tensor once: a diverged training saves NaN without complaint."""
        count = count_not_finite(array)
        if count:
            raise BadCheckpoint(
                f"{place.file_name} of {place.source.path} holds {count} of {array.size} numbers that are NaN or "
                f"infinite; the file is damaged, or the training diverged: use an earlier checkpoint"
            )
        self._finite.add(name)

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder with the tokenizer's files, if any."""
        folders = (source.path for source in self._sources["llm"])
        return next((path for path in folders if _has_tokenizer(path)), None)

    def digest(self, progress: Grown = uncounted) -> str:
        """SHA-256 as hex over all configs and weight files: names, sizes and contents, in a fixed order.

        `progress` gets the number of bytes of each piece that was read. The digest is cached.
        """
        if self._digest is None:
            self._digest = _digest(self._all_files(), progress)
        return self._digest

    def _all_sources(self) -> list[Source]:
        return list({id(source): source for sources in self._sources.values() for source in sources}.values())

    def _all_files(self) -> list[Path]:
        return [*self._configs, *(path for source in self._all_sources() for path in source.files)]


def open_checkpoint(
    path: Path | str,
    *,
    vision_tower: Path | None = None,
    rpn: Path | None = None,
    base: Path | None = None,
    projector: Path | None = None,
    allow_links: AllowLinks = (),
    fit: Fit = "pad",
    download: bool = False,
    template: str | None = None,
) -> Checkpoint:
    """Open a checkpoint folder in any known layout and check that it has every tensor that the model needs.

    Args:
        vision_tower: a CLIP folder for a checkpoint in LLaVA's own layout. It describes the tower; its weights are used
            unless the checkpoint has weights of the tower itself, because those may be fine-tuned
        rpn: an RPN that sdrpn wrote (folder or .safetensors file); without it, `rpn.json` in the checkpoint's folder is
            used if it exists, else the RPN of the checkpoint itself
        base: another checkpoint of the same sizes that has what this one lacks: upper LLM layers, norm, head; or the
            model that a LoRA or a projector in `path` was trained on, which may be a language model alone
        projector: LLaVA's `mm_projector.bin`, or its folder, in place of the checkpoint's own projector
        allow_links: folders that links of the checkpoint may point to, besides its own folder and the blobs of its
            cache; True: any. Applies to all folders named here
        fit: how pictures become squares, overriding the checkpoint's processor: see `VisionSpec`
        path, base, vision_tower: a str may also name a model of Hugging Face's hub that is in the local cache
        download: fetch the files of such a model that the cache lacks
        template: the prompt template, overriding the checkpoint's own (`PromptSpec.template`)
    Raises BadCheckpoint for anything missing, malformed or not supported.
    """
    folder = model_folder(path, download=download)
    opener = _opener(folder)
    if opener is not None:
        if any(part is not None for part in (vision_tower, rpn, base, projector)):
            raise BadInput(f"{folder} is a whole model of its own family; leave out what should be put beside it")
        return opener(folder, template)
    base = None if base is None else model_folder(base, download=download)
    vision_tower = None if vision_tower is None else model_folder(vision_tower, download=download)
    require_links((folder, base, vision_tower, rpn, projector), allow_links)
    _require_tokenizer_files(folder, base)
    parts = find_parts(folder)
    described_in = _described_in(parts, base)
    tower = _vision_tower(described_in, vision_tower)
    require_links((tower,), allow_links)
    text_folders = _text_folders(folder, base)
    spec = read_spec(described_in, tower, text_folders)
    processor = read_processor(tower if tower is not None else described_in)
    processor.require_fit(fit, clip_of(spec).image_size_px)
    spec = dataclasses.replace(spec, vision=dataclasses.replace(clip_of(spec), fit=fit))
    if template is not None:
        spec = with_template(spec, template, text_folders[0])
    if base is not None:
        spec = _with_layers_of(base, spec)
    own = checkpoint_source(parts.weights_in(base), with_rpn=spec.rpn is not None)
    sources = {part: [own] for part in PARTS}
    if tower is not None and not own.has_vision:
        sources["vision"] = [tower_source(tower)]
    if base is not None and parts.has_weights:
        further = checkpoint_source(base, with_rpn=False)
        for part in ("projector", "llm", *(["vision"] if further.has_vision else [])):
            sources[part].append(further)
    configs = _config_files(folder, tower, base)
    file = _rpn_file(folder, rpn)
    if file is not None:
        if file.fit != fit:
            raise BadCheckpoint(
                f"{file.config} was trained on pictures of the fit {file.fit} and is used with {fit}; name the same",
                options=("fit",),
            )
        spec = dataclasses.replace(spec, tap_layer=file.tap_layer, rpn=file.rpn)
        sources["rpn"] = [rpn_source(file)]
        configs += (file.config,)
    tuning = read_fine_tune(parts, spec, projector, own)
    for part in PARTS:
        sources[part] = [*(source for source in tuning.sources if part in tuning.parts_of(source)), *sources[part]]
    trained = file is not None or not read_config(described_in / "config.json").flag(RANDOM_WEIGHTS)
    note = _fit_note(processor, fit)
    policy = None if file is None else file.policy
    return Checkpoint(folder, spec, own.layout, sources, configs, tuning, note, rpn_trained=trained, policy=policy)


def _opener(folder: Path) -> Callable[[Path, str | None], Checkpoint] | None:
    """How the family opens its checkpoints, where these are in none of the layouts that this room reads."""
    if not (folder / "config.json").is_file():
        return None
    family = claiming_family(read_config(folder / "config.json").values)
    if family is None or family.checkpoint_opener is None:
        return None
    return cast("Callable[[Path, str | None], Checkpoint]", load_part(family.checkpoint_opener))


def _text_folders(folder: Path, base: Path | None) -> list[Path]:
    """Folders to search for the template and special tokens: the folder whose tokenizer is used comes first."""
    folders = [folder] if base is None else [folder, base]
    return sorted(folders, key=lambda path: not _has_tokenizer(path))


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_NAMES)


def _require_tokenizer_files(*folders: Path | None) -> None:
    """Raise for a tokenizer file that cannot be read, such as a pipe or a git-lfs pointer: it is not merely missing."""
    for folder in folders:
        present = [folder / name for name in _TOKENIZER_NAMES] if folder is not None else []
        for path in filter(os.path.lexists, present):
            require_model_file(path)


def _described_in(parts: FolderParts, base: Path | None) -> Path:
    """The folder whose config.json describes the model."""
    if base is not None:
        _require_checkpoint_folder(base)
        if not find_parts(base).has_weights:
            raise BadCheckpoint(f"{base} has no weights of its own and cannot be a base; expected a whole model")
    if not parts.has_weights and parts.is_fine_tune and base is not None:
        return parts.folder if (parts.folder / "config.json").is_file() else base
    parts.require_weights()
    _require_checkpoint_folder(parts.folder)
    return parts.folder


def _with_layers_of(base: Path, spec: ModelSpec) -> ModelSpec:
    """The spec with the base's number of LLM layers, where the checkpoint's upper layers were removed."""
    layers = max(spec.llm.layers, read_llm_layers(base))
    return dataclasses.replace(spec, llm=dataclasses.replace(spec.llm, layers=layers))


def _config_files(*folders: Path | None) -> tuple[Path, ...]:
    paths = [Path(folder) / name for folder in folders if folder is not None for name in _CONFIG_NAMES]
    return tuple(path for path in paths if path.is_file())


def _require_checkpoint_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BadCheckpoint(f"{folder} is not a folder; expected a checkpoint's folder, with config.json and weights")
    if (folder / "config.json").is_file():
        return
    if (folder / RPN_CONFIG_NAME).is_file():
        raise BadCheckpoint(
            f"{folder} holds only an RPN; open its base checkpoint and give this folder as its RPN", options=("rpn",)
        )
    raise BadCheckpoint(f"{folder} has no config.json; expected a checkpoint's folder")


def _vision_tower(folder: Path, given: Path | None) -> Path | None:
    config = read_config(folder / "config.json")
    name = vision_tower_name(config)
    if name is not None:
        if given is None:
            refuse_foreign_tower(config, name)
        return find_vision_tower(folder, name, None if given is None else Path(given))
    if given is not None:
        raise BadInput(f"{folder} carries its own vision tower; leave out the vision tower {given}")
    return None


def _rpn_file(folder: Path, given: Path | None) -> RpnFile | None:
    if given is not None:
        return read_rpn(Path(given))
    return read_rpn(folder) if (folder / RPN_CONFIG_NAME).is_file() else None


def _fit_note(processor: Processor, fit: Fit) -> str:
    if fit == "crop":
        return "pictures: the ends of the longer side are cut off (fit: crop), as transformers' processor does it"
    if processor.fit == "crop":
        return (
            "pictures: padded to squares (fit: pad), as LLaVA's own code and SD-RPN's training do it; transformers' "
            "processor cuts the ends of the longer side off instead (fit: crop)"
        )
    return "pictures: padded to squares (fit: pad), as the checkpoint's processor does it"


def _notes(spec: ModelSpec) -> list[str]:
    """Notes for the user on limits of the network itself."""
    scaling = spec.llm.rope_scaling
    if scaling is None or scaling.kind != "dynamic":
        return []
    return [
        f"rope scaling dynamic has no effect up to {scaling.original_context} tokens, and above depends on the length "
        f"of each request, which cached keys cannot follow: the context is limited to that"
    ]


def _digest(files: Iterable[Path], progress: Grown) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                progress(len(piece))
    return digest.hexdigest()
