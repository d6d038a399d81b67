"""Open a checkpoint of this family, in any of its layouts, with what is put beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sdrpn.checkpoint.checkpoint import Checkpoint
from sdrpn.checkpoint.config_section import RANDOM_WEIGHTS, read_config
from sdrpn.checkpoint.model_file import require_links
from sdrpn.checkpoint.prompt_config import with_template
from sdrpn.checkpoint.request import (
    CheckpointRequest,
    config_files,
    require_checkpoint_folder,
    rpn_file_of,
    text_folders,
)
from sdrpn.checkpoint.source import PARTS, gate_source, rpn_source
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.llava.config import read_llm_layers, read_spec, vision_tower_name
from sdrpn.families.llava.fine_tune import FolderParts, find_parts, read_fine_tune
from sdrpn.families.llava.processor_config import Processor, read_processor
from sdrpn.families.llava.sources import LlavaHints, checkpoint_source, require_whole_projector, tower_source
from sdrpn.families.llava.unsupported import refuse_foreign_tower
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.families.llava.vision_tower import find_vision_tower
from sdrpn.method.geometry import Fit
from sdrpn.method.spec import ModelSpec

__all__ = ["open_llava"]


def open_llava(request: CheckpointRequest) -> Checkpoint:
    """See `sdrpn.checkpoint.open_checkpoint`."""
    folder, base, fit, template = request.folder, request.base, request.fit, request.template
    if request.scheme == "q-zoom":
        raise BadInput(f"{folder}: Q-Zoom has no LLaVA; expected the scheme sd-rpn, or auto", options=("scheme",))
    parts = find_parts(folder)
    described_in = _described_in(parts, base)
    tower = _vision_tower(described_in, request.vision_tower)
    require_links((tower,), request.allow_links)
    texts = text_folders(folder, base)
    spec = read_spec(described_in, tower, texts)
    processor = read_processor(tower if tower is not None else described_in)
    processor.require_fit(fit, clip_of(spec).image_size_px)
    spec = dataclasses.replace(spec, vision=dataclasses.replace(clip_of(spec), fit=fit))
    if template is not None:
        spec = with_template(spec, template, texts[0])
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
    configs = config_files(folder, tower, base)
    file = rpn_file_of(folder, request.rpn)
    if file is not None:
        if file.fit != fit:
            raise BadCheckpoint(
                f"{file.config} was trained on pictures of the fit {file.fit} and is used with {fit}; name the same",
                options=("fit",),
            )
        spec = dataclasses.replace(spec, tap_layer=file.tap_layer, rpn=file.rpn)
        sources["rpn"], sources["gate"] = [rpn_source(file)], [gate_source(file)]
        configs += (file.config,)
    tuning = read_fine_tune(parts, spec, request.projector, own)
    for part in PARTS:
        sources[part] = [*(source for source in tuning.sources if part in tuning.parts_of(source)), *sources[part]]
    trained = file is not None or not read_config(described_in / "config.json").flag(RANDOM_WEIGHTS)
    checkpoint = Checkpoint(
        folder,
        spec,
        own.layout,
        sources,
        configs,
        adapter=tuning.adapter,
        hints=LlavaHints(clip_of(spec)),
        notes=tuning.notes,
        pictures=_fit_note(processor, fit),
        rpn_trained=trained,
        policy=None if file is None else file.policy,
    )
    require_whole_projector(spec, sources)
    return checkpoint


def _described_in(parts: FolderParts, base: Path | None) -> Path:
    """The folder whose config.json describes the model."""
    if base is not None:
        require_checkpoint_folder(base)
        if not find_parts(base).has_weights:
            raise BadCheckpoint(f"{base} has no weights of its own and cannot be a base; expected a whole model")
    if not parts.has_weights and parts.is_fine_tune and base is not None:
        return parts.folder if (parts.folder / "config.json").is_file() else base
    parts.require_weights()
    require_checkpoint_folder(parts.folder)
    return parts.folder


def _with_layers_of(base: Path, spec: ModelSpec) -> ModelSpec:
    """The spec with the base's number of LLM layers, where the checkpoint's upper layers were removed."""
    layers = max(spec.llm.layers, read_llm_layers(base))
    return dataclasses.replace(spec, llm=dataclasses.replace(spec.llm, layers=layers))


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


def _fit_note(processor: Processor, fit: Fit) -> str:
    if fit == "crop":
        return "pictures: the ends of the longer side are cut off (fit: crop), as transformers' processor does it"
    if processor.fit == "crop":
        return (
            "pictures: padded to squares (fit: pad), as LLaVA's own code and SD-RPN's training do it; transformers' "
            "processor cuts the ends of the longer side off instead (fit: crop)"
        )
    return "pictures: padded to squares (fit: pad), as the checkpoint's processor does it"
