"""Write a model repository for Triton: configuration, `model.py`, a warm-up request, the bundle. Runs nothing."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.atomic import replacing_directory, require_free_space
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.links import files_below
from sdrpn.runtime.triton_model import INPUTS, OUTPUTS
from sdrpn.workflows.opened_session import require_tokenizer

__all__ = ["TritonRepository", "TritonRequest", "write_triton_repository"]

# What Triton imports; the class has to have this name.
_MODEL = '''\
"""The model that Triton's Python backend runs: sdrpn.runtime.triton_model, of the installed package."""

from sdrpn.runtime.triton_model import TritonModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_BUNDLE, _WARMUP = "bundle", "warmup"
_QUESTION = "what is this ?"
_SIDE_PX = 64


@dataclass(frozen=True)
class TritonRequest(CheckedFields):
    """What the repository serves, and how.

    out: the model's folder in a repository, named after the model. copy: with the bundle in it; else the configuration
    names the bundle where it lies. kind, instances: Triton's instance group; an instance is a session of its own.
    max_batch: most questions that a session answers at once; None: as `Session.open`.
    """

    bundle: Path | str
    out: Path
    kind: Literal["cpu", "gpu"] = "cpu"
    instances: int = 1
    max_batch: int | None = None
    target: str | None = None
    copy: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instances < 1:
            raise BadInput(f"instances are {self.instances}; expected at least 1", options=("instances",))
        if self.target is not None and self.kind == "cpu":
            raise BadInput(f"target {self.target} is a GPU's; expected the kind gpu with it", options=("kind gpu",))


@dataclass(frozen=True)
class TritonRepository:
    """What was written. name: by which Triton serves it."""

    name: str
    path: str
    bundle: str
    size_bytes: int


def write_triton_repository(request: TritonRequest) -> TritonRepository:
    """Write the folder of a model, atomically. Raises BadBundle, BadInput or RunFailed."""
    bundle = open_bundle(bundle_path(request.bundle))
    require_tokenizer(bundle)
    name = request.out.resolve().name
    files = files_below(bundle.path, bundle.roots, BadBundle) if request.copy else []
    size_bytes = sum(path.stat().st_size for path in files)
    require_free_space(request.out, size_bytes, advice="or name the bundle where it lies")
    with replacing_directory(request.out) as folder:
        (folder / "1").mkdir()
        (folder / "1" / "model.py").write_text(_MODEL, encoding="utf-8")
        (folder / _WARMUP).mkdir()
        (folder / _WARMUP / "image").write_bytes(_bytes_tensor(_picture()))
        (folder / _WARMUP / "question").write_bytes(_bytes_tensor(_QUESTION.encode()))
        for path in files:
            target = folder / _BUNDLE / path.relative_to(bundle.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (folder / "config.pbtxt").write_text(_config(name, request, bundle), encoding="utf-8")
    where = _BUNDLE if request.copy else str(bundle.path.resolve())
    return TritonRepository(name, str(request.out), where, size_bytes)


def _config(name: str, request: TritonRequest, bundle: Bundle) -> str:
    """The configuration, as text of the message ModelConfig (triton-inference-server/common, model_config.proto)."""
    inputs = ",\n".join(
        f"  {{ {_tensor(each, kind, dims)}{' optional: true' if optional else ''} }}"
        for each, (kind, dims, optional) in INPUTS.items()
    )
    outputs = ",\n".join(f"  {{ {_tensor(each, kind, dims)} }}" for each, (kind, dims) in OUTPUTS.items())
    parameters = "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in _parameters(request, bundle).items()
    )
    warmup = "\n".join(
        f'  inputs {{ key: "{each}" value {{ data_type: TYPE_STRING dims: [1] input_data_file: "{each}" }} }}'
        for each in ("image", "question")
    )
    return f"""\
# Written by `sdrpn export-triton`. Triton 24.04 or later, with sdrpn in the Python of its backend.
name: {json.dumps(name)}
backend: "python"
# Requests are batched by the session, which joins them at every token.
max_batch_size: 0
# Several responses to a request: the pieces of a stream.
model_transaction_policy {{ decoupled: true }}
input [
{inputs}
]
output [
{outputs}
]
instance_group [ {{ kind: KIND_{request.kind.upper()} count: {request.instances} }} ]
{parameters}\
model_warmup {{
  name: "one question"
  batch_size: 0
{warmup}
}}
"""


def _parameters(request: TritonRequest, bundle: Bundle) -> Mapping[str, str]:
    found = {
        "bundle": _BUNDLE if request.copy else str(bundle.path.resolve()),
        "backend": "onnxruntime" if request.kind == "cpu" else "tensorrt",
    }
    if request.target is not None:
        found["target"] = request.target
    if request.max_batch is not None:
        found["max_batch"] = str(request.max_batch)
    return found


def _tensor(name: str, kind: str, dims: tuple[int, ...]) -> str:
    return f"name: {json.dumps(name)} data_type: {kind} dims: [{', '.join(map(str, dims))}]"


def _bytes_tensor(content: bytes) -> bytes:
    """One element of a tensor of strings, as Triton's protocol has it: its length in four bytes, then itself."""
    return struct.pack("<I", len(content)) + content


def _picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (_SIDE_PX, _SIDE_PX), (128, 128, 128)).save(stream, "PNG")
    return stream.getvalue()
