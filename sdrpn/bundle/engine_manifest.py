"""What is known of a built engine: `GRAPH.engine.json` beside `GRAPH.engine`. Knows no TensorRT and runs nothing.

BUNDLE/engines/TARGET/
├── trunk.engine            what TensorRT built
├── trunk.engine.json       the manifest; written last, so an engine without it is not one
└── trunk.layers.json       the kernels that TensorRT chose
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdrpn.bundle.tolerances import more_is_better
from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_reader import read_dataclass, shown
from sdrpn.host.links import link_roots
from sdrpn.host.listed_files import read_manifest

__all__ = [
    "ENGINE_FORMAT_VERSION",
    "NOT_JUDGED",
    "REMARK",
    "EngineManifest",
    "EngineTensor",
    "Fallback",
    "ParityGate",
    "Stamp",
    "TimingCacheUse",
    "engine_paths",
    "read_engine_manifest",
    "write_engine_manifest",
]

# 2: a digest of all entries; 3: parity; 4: every option, CUDA, timing cache; 5: the GPU; 6: contexts, how attention was
# built, what was built instead
ENGINE_FORMAT_VERSION = 6
# What the kernel gate says beside its findings: that it cannot read the list of kernels; what costs a little.
NOT_JUDGED, REMARK = "not judged: ", "remark: "
_DIGEST = "digest"
_MOST_DIM = 2**31


@dataclass(frozen=True)
class EngineTensor:
    """An input or output. `profiles` has (least, usual, most) dims of every profile; none for an output."""

    name: str
    mode: str  # input or output
    dtype: str  # as NumPy spells it
    dims: tuple[int, ...]  # -1: as the profile says
    profiles: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in ("input", "output"):
            raise BadInput(f"mode of {shown(self.name)} is {shown(self.mode)}; expected input or output")
        shapes = (self.dims, *(dims for profile in self.profiles for dims in profile))
        if not all(-1 <= dim < _MOST_DIM for dims in shapes for dim in dims):
            raise BadInput(f"dims of {shown(self.name)} are beyond -1 to {_MOST_DIM - 1}")

    @classmethod
    def from_json(cls, value: object) -> EngineTensor:
        """From plain dicts and lists. Raises BadInput where something is missing or odd."""
        return read_dataclass(cls, value)


@dataclass(frozen=True)
class Stamp:
    """A file as it was: while size and time are unchanged its digest is believed."""

    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class TimingCacheUse:
    """How large the file was that TensorRT keeps its measurements in, before and after the build."""

    read_bytes: int  # 0: there was none
    written_bytes: int


@dataclass(frozen=True)
class Fallback:
    """What was to be built, and why this is there instead."""

    variant: str
    reason: str  # as the library said
    cache_key: str  # of what was to be built


# What only a GPU can measure: answers with engines, and what the smoke test says of each engine.
_ENGINES = "engines"
_ENGINE_KINDS = frozenset({"finite", "smoke test", "two at once"})


@dataclass(frozen=True)
class ParityGate:
    """All checks of one kind of a graph, or of whole answers: the worst of them against the limit."""

    graph: str  # or "answer"
    kind: str
    tensor: str  # where the worst was found
    found: str | float  # text for what has no number: nothing came out, or no finite number
    limit: float
    checks: int
    ok: bool

    @property
    def on_engine(self) -> bool:
        """Whether a GPU ran the engine for it; else it is about the graph, in ONNX Runtime."""
        return self.graph == _ENGINES or self.kind in _ENGINE_KINDS

    @property
    def text(self) -> str:
        """The worst, and what it is held to."""
        lower = more_is_better(self.kind)
        found = f"{self.found:{'.7f' if lower else '.3g'}}" if isinstance(self.found, float) else str(self.found)
        return f"{found}, {'at least' if lower else 'at most'} {self.limit:g}"


@dataclass(frozen=True)
class EngineManifest:
    """All that the manifest of one engine says."""

    graph: str
    target: str
    variant: str
    precision: str
    flavour: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    system: str  # where it was built
    machine: str
    gpu: str | None  # of the machine that built it; None: it had none, or none that tells
    driver: str | None  # of the machine that built it; None: it had none
    cuda: int | None  # the newest that its driver had: 13040 is 13.4
    max_context: int  # rows of the caches, at most
    contexts: tuple[int, ...]  # the lengths of the caches that there are profiles for, shortest first
    max_batch: int
    opt_level: int | None  # None: the library's own
    workspace_mb: int | None
    weight_streaming: bool
    hardware_compatibility: str  # the level that the library took: NONE, AMPERE_PLUS
    version_compatible: bool
    refit: bool
    profiling_verbosity: str  # detailed, names or none
    timing_cache: TimingCacheUse | None  # None: built without
    profiles: tuple[str, ...]  # in the order of their numbers
    tensors: tuple[EngineTensor, ...]
    decomposed_attention: bool  # the library got leave to build attention from its parts, after it had failed
    fallback: Fallback | None  # the variant that no engine could be built of; None: this is the one that was asked for
    kernels: int  # of all profiles
    kernel_gate: tuple[str, ...]  # what the gate found, NOT_JUDGED and REMARK aside; nothing: passed
    activation_bytes: int | None  # the largest of all profiles, as TensorRT says
    build_s: float
    peak_rss_bytes: int
    compiled_sha256: str  # the graph with its numbers written in, as the parser saw it
    sources: Mapping[str, Stamp]  # files of the bundle: the graph and its weights
    engine: Stamp
    cache_key: str  # of everything that changes the result
    parity: tuple[ParityGate, ...]  # what `sdrpn verify` found last; nothing: never verified
    format_version: int = ENGINE_FORMAT_VERSION

    @property
    def kernel_verdict(self) -> Literal["passed", "failed", "unjudged"]:
        """Of the kernel gate. A listing that does not say what the gate asks is unjudged, which is not passed."""
        if not all(line.startswith((NOT_JUDGED, REMARK)) for line in self.kernel_gate):
            return "failed"
        return "unjudged" if any(line.startswith(NOT_JUDGED) for line in self.kernel_gate) else "passed"

    @property
    def passed_kernel_gate(self) -> bool:
        """Whether the kernels were judged and there is no finding."""
        return self.kernel_verdict == "passed"

    @property
    def kernels_text(self) -> str:
        """How many there are and what the gate said of them, short."""
        remarks = sum(line.startswith(REMARK) for line in self.kernel_gate)
        added = f" with {remarks} remark{'s' * (remarks > 1)}" if remarks else ""
        verdict = {"passed": f"passed{added}", "failed": "FAILED", "unjudged": f"not judged{added}"}
        return f"{self.kernels}, {verdict[self.kernel_verdict]}"

    @property
    def build_notes(self) -> tuple[str, ...]:
        """What the build did after the library had no engine for the graph as it was."""
        notes = []
        if self.decomposed_attention:
            notes.append("attention was built from its parts: the library had no kernel for the whole")
        if self.fallback is not None:
            was = f"built of {self.variant} instead of {self.fallback.variant}, of which no engine could be built"
            notes.append(f"{was}: {self.fallback.reason}")
        return tuple(notes)

    def to_text(self) -> str:
        """As the file holds it: the entries, and a digest of them all, so that an altered one does not pass."""
        entries = dataclasses.asdict(self)
        return json.dumps({**entries, _DIGEST: _digest(entries)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, value: object) -> EngineManifest:
        """The inverse of `to_text`, digest aside. Raises BadInput with the place of what is missing or odd."""
        return read_dataclass(cls, value)


def engine_paths(bundle: Path, target: str, graph: str) -> tuple[Path, Path, Path]:
    """The engine, its manifest and its layers."""
    folder = bundle / "engines" / target
    return folder / f"{graph}.engine", folder / f"{graph}.engine.json", folder / f"{graph}.layers.json"


def read_engine_manifest(path: Path, roots: Sequence[Path] | None = None) -> EngineManifest:
    """Raises BadBundle for a file that is missing, not a manifest of this version, was altered, or lies elsewhere.

    Args:
        roots: real folders that a link may lead to, as of `Bundle.roots`; None: the folder that it lies in
    """
    mend = "build it again: sdrpn build BUNDLE --target NAME"
    value = read_manifest(path, roots if roots is not None else link_roots(path.parent), mend)
    version = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(value, dict) or version != ENGINE_FORMAT_VERSION:
        raise BadBundle(
            f"{path} has format version {shown(version)}, this release reads {ENGINE_FORMAT_VERSION}; {mend}"
        )
    told, found = value.pop(_DIGEST, None), _digest(value)
    if told != found:
        raise BadBundle(f"{path} was altered: its digest is {shown(told)}, its entries give {found}; {mend}")
    try:
        return EngineManifest.from_json(value)
    except BadInput as error:
        raise BadBundle(f"{path} cannot be understood ({error}); {mend}") from error


def write_engine_manifest(path: Path, manifest: EngineManifest) -> None:
    """The file appears whole or not at all. Raises BadInput or RunFailed where it cannot be written."""
    with replacing_file(path) as temporary:
        temporary.write_text(manifest.to_text(), encoding="utf-8")


def _digest(entries: Mapping[str, Any]) -> str:
    """SHA-256 of the entries as JSON has them."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
