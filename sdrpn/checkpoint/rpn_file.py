"""A separate RPN: `rpn.safetensors` and `rpn.json`, small enough to keep beside any base checkpoint.

If the model has a gate, its tensors are in `gate.safetensors` beside them; earlier releases wrote them into the RPN's
file, where they are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sdrpn.checkpoint.config_section import ConfigSection, read_config
from sdrpn.checkpoint.safetensors_file import SafetensorsWriter
from sdrpn.checkpoint.tensor_shapes import proposal_shapes
from sdrpn.checkpoint.tensors import GATE_WEIGHTS_NAME, RPN_WEIGHTS_NAME
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.registry import fit_of
from sdrpn.host.atomic import replacing_file
from sdrpn.method.geometry import Fit
from sdrpn.method.policy import ModelPolicy, policy_from_json
from sdrpn.method.spec import ModelSpec, RpnSpec, Scheme

__all__ = ["RPN_CONFIG_NAME", "RpnFile", "read_rpn", "write_rpn"]

RPN_CONFIG_NAME = "rpn.json"
FORMAT_VERSION = 1
# Entries of other families than LLaVA; where they are absent, the defaults of `RpnSpec` hold.
_FURTHER = (
    "scheme",
    "rotary",
    "outer_norm",
    "sink_query",
    "reuse_positions",
    "gate_layers",
    "gate_probe",
    "prune_above",
)


@dataclass(frozen=True)
class RpnFile:
    """The content of `rpn.json`, and the path of the weights."""

    weights: Path
    config: Path
    tap_layer: int  # K of the model that it was trained on
    rpn: RpnSpec
    note: str = ""
    fit: Fit = "pad"  # how pictures were made square in its training
    policy: ModelPolicy | None = None  # chosen at the end of its training; older files have none

    @property
    def gate_weights(self) -> Path:
        """The file of the gate's tensors, where it has one."""
        own = self.weights.with_name(GATE_WEIGHTS_NAME)
        return own if own.is_file() else self.weights


def read_rpn(path: Path) -> RpnFile:
    """Read `rpn.json`; `path` is the folder or the `.safetensors` file beside it.

    Raises BadCheckpoint where a file is missing, of another version, or incomplete.
    """
    weights = path if path.suffix == ".safetensors" else path / RPN_WEIGHTS_NAME
    if not weights.is_file():
        raise BadCheckpoint(f"{weights} does not exist; expected {RPN_WEIGHTS_NAME} and {RPN_CONFIG_NAME} of an RPN")
    config = read_config(weights.with_suffix(".json"))
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise BadCheckpoint(
            f"{config.where} has format version {version}; expected {FORMAT_VERSION}: write the RPN again"
        )
    config.require("loss", "bce", "focal", "mse")
    config.require("fit", *get_args(Fit))
    return RpnFile(
        weights=weights,
        config=weights.with_suffix(".json"),
        tap_layer=config.whole("tap_layer"),
        rpn=_rpn(config),
        note=str(config.get("note", "")),
        fit=config.get("fit", "pad"),
        policy=_policy(config),
    )


def write_rpn(
    folder: Path,
    spec: ModelSpec,
    read: Callable[[str], NDArray[Any]],
    *,
    dtype: str = "float32",
    note: str = "",
    policy: ModelPolicy | None = None,
) -> RpnFile:
    """Write the RPN of a model to `folder`, which may be that of its base checkpoint.

    Args:
        spec: must have an RPN, else ValueError
        read: gives the tensor of a canonical name (`rpn.layers.0.input_norm.weight`)
        dtype: float32 or float16
        policy: by what a model looks again that uses it
    """
    if spec.rpn is None:
        raise ValueError("the model has no RPN to write")
    shapes = proposal_shapes(spec.llm, spec.rpn)
    gate = {name: shape for name, shape in shapes.items() if name.startswith("gate.")}
    own = {name.removeprefix("rpn."): shape for name, shape in shapes.items() if name not in gate}
    fit = fit_of(spec)
    names = folder / RPN_WEIGHTS_NAME, folder / RPN_CONFIG_NAME
    file = RpnFile(*names, spec.tap_layer, spec.rpn, note, fit, policy)
    with replacing_file(file.weights) as path, SafetensorsWriter(path, own, np.dtype(dtype)) as writer:
        for name in own:
            writer.write(name, read(f"rpn.{name}"))
    gate_file = folder / GATE_WEIGHTS_NAME
    if gate:
        with replacing_file(gate_file) as path, SafetensorsWriter(path, gate, np.dtype(dtype)) as writer:
            for name in gate:
                writer.write(name, read(name))
    else:
        gate_file.unlink(missing_ok=True)  # of an RPN that was there before
    # Written last: an RPN without its description is not read.
    with replacing_file(file.config) as path:
        path.write_text(json.dumps(_description(file), indent=1) + "\n", "utf-8")
    return file


def _rpn(config: ConfigSection) -> RpnSpec:
    config.require("scheme", *get_args(Scheme))
    with config.naming():
        return RpnSpec(
            layers=config.whole("layers"),
            multi_head=config.flag("multi_head", True),
            loss=config.get("loss", "bce"),
            scheme=config.get("scheme", "sd-rpn"),
            outer_norm=config.flag("outer_norm", True),
            rotary=config.flag("rotary"),
            sink_query=config.flag("sink_query"),
            reuse_positions=config.flag("reuse_positions"),
            gate_layers=config.whole("gate_layers", 0),
            gate_probe=config.flag("gate_probe"),
            prune_above=config.whole("prune_above", 0),
        )


def _policy(config: ConfigSection) -> ModelPolicy | None:
    value = config.get("policy")
    try:
        return None if value is None else policy_from_json(value, "policy")
    except BadInput as error:
        raise BadCheckpoint(f"{config.where}: {error}") from error


def _description(file: RpnFile) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(RpnSpec)}
    return {
        "format_version": FORMAT_VERSION,
        "tap_layer": file.tap_layer,
        "layers": file.rpn.layers,
        "multi_head": file.rpn.multi_head,
        "loss": file.rpn.loss,
        **{name: getattr(file.rpn, name) for name in _FURTHER if getattr(file.rpn, name) != defaults[name]},
        "note": file.note,
        "fit": file.fit,
        **({} if file.policy is None else {"policy": file.policy.to_json()}),
    }
