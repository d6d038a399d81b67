"""Open a checkpoint of these families, of any of the three kinds, with what is put beside it. NumPy only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sdrpn.checkpoint.checkpoint import Checkpoint
from sdrpn.checkpoint.config_section import RANDOM_WEIGHTS, read_config
from sdrpn.checkpoint.prompt_config import with_template
from sdrpn.checkpoint.request import CheckpointRequest, config_files, require_checkpoint_folder, rpn_file_of
from sdrpn.checkpoint.rpn_file import RpnFile
from sdrpn.checkpoint.source import PARTS, Source, TensorHints, gate_source, rpn_source
from sdrpn.checkpoint.tensors import TensorFolder, weight_files
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.qwen.config import qwen_spec, require_deepstack_below_tap
from sdrpn.families.qwen.names import detect_names
from sdrpn.method.spec import AskedScheme, ModelSpec

__all__ = ["open_qwen", "open_qwen_checkpoint"]


class QwenHints(TensorHints):
    """See `TensorHints`."""

    takes_base = False


def open_qwen_checkpoint(request: CheckpointRequest) -> Checkpoint:
    """See `sdrpn.checkpoint.open_checkpoint`."""
    request.require_without("vision_tower", "base", "projector")
    if request.fit != "pad":
        raise BadInput(
            f"{request.folder} is of a family whose pictures keep their shape; there is no fit to choose: leave it out",
            options=("fit",),
        )
    folder = request.folder
    require_checkpoint_folder(folder)
    config = read_config(folder / "config.json")
    files = weight_files(folder)
    tensors = TensorFolder(files)
    spec = qwen_spec(folder, tensors.names, request.scheme)
    table = detect_names(tensors.names, family=spec.vision.family, where=str(folder))
    own = Source(folder, files, tensors, table.file_name, layout=table.layout)
    sources = {part: [own] for part in PARTS}
    configs = config_files(folder)
    file = rpn_file_of(folder, request.rpn)
    if file is not None:
        spec = _with_rpn(spec, file, request.scheme)
        sources["rpn"], sources["gate"] = [rpn_source(file)], [gate_source(file)]
        configs += (file.config,)
    if request.template is not None:
        spec = with_template(spec, request.template, folder)
    trained = file is not None or not config.flag(RANDOM_WEIGHTS)
    policy = None if file is None else file.policy
    hints = QwenHints()
    return Checkpoint(folder, spec, table.layout, sources, configs, hints=hints, rpn_trained=trained, policy=policy)


def open_qwen(folder: Path, scheme: AskedScheme = "auto") -> Checkpoint:
    """The checkpoint in a folder, with nothing put beside it."""
    return open_qwen_checkpoint(CheckpointRequest(folder, scheme=scheme))


def _with_rpn(spec: ModelSpec, file: RpnFile, asked: AskedScheme) -> ModelSpec:
    """The spec with the RPN of a file of its own in place of the checkpoint's."""
    family, rpn = spec.vision.family, file.rpn
    if (rpn.rotary, rpn.outer_norm, rpn.sink_query) != (True, False, family == "qwen3-vl"):
        raise BadCheckpoint(
            f"{file.config} is an RPN for a model of another family; expected one for {family}",
            options=("rpn",),
        )
    if asked not in ("auto", rpn.scheme):
        raise BadInput(f"{file.config} is an RPN of the scheme {rpn.scheme}; got {asked}", options=("scheme",))
    require_deepstack_below_tap(spec.vision, file.tap_layer, str(file.config))
    try:
        return dataclasses.replace(spec, tap_layer=file.tap_layer, rpn=rpn)
    except BadInput as error:
        raise BadCheckpoint(f"{file.config}: {error}", options=("rpn",)) from error
