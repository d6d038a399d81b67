"""The manifest of a built engine: `GRAPH.engine.json` beside `GRAPH.engine`. Imports no TensorRT and runs nothing.

BUNDLE/engines/TARGET/
├── trunk.engine            the engine that TensorRT built
├── trunk.engine.json       the manifest; written last: an engine without it is incomplete
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

# 2: a digest of all entries; 3: parity; 4: every option, CUDA, timing cache; 5: the GPU; 6: contexts, decomposed
# attention, fallback
ENGINE_FORMAT_VERSION = 6
# Prefixes of kernel gate lines that are not failures: the list of kernels cannot be judged; a small cost.
NOT_JUDGED, REMARK = "not judged: ", "remark: "
_DIGEST = "digest"
_MOST_DIM = 2**31


@dataclass(frozen=True)
class EngineTensor:
    """An input or output. `profiles` has (min, opt, max) dims of every profile; empty for an output."""

    name: str
    mode: str  # input or output
    dtype: str  # as NumPy spells it
    dims: tuple[int, ...]  # -1: given by the profile
    profiles: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in ("input", "output"):
            raise BadInput(f"mode of {shown(self.name)} is {shown(self.mode)}; expected input or output")
        shapes = (self.dims, *(dims for profile in self.profiles for dims in profile))
        if not all(-1 <= dim < _MOST_DIM for dims in shapes for dim in dims):
            raise BadInput(f"dims of {shown(self.name)} are beyond -1 to {_MOST_DIM - 1}")

    @classmethod
    def from_json(cls, value: object) -> EngineTensor:
        """From plain dicts and lists. Raises BadInput if something is missing or invalid."""
        return read_dataclass(cls, value)


@dataclass(frozen=True)
class Stamp:
    """A file's digest, with its size and modification time: while these are unchanged, the digest is trusted."""

    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class TimingCacheUse:
    """Size of the timing cache file before and after the build."""

    read_bytes: int  # 0: there was no file
    written_bytes: int


@dataclass(frozen=True)
class Fallback:
    """The variant that was requested, and why another one was built."""

    variant: str
    reason: str  # the library's own message
    cache_key: str  # of the requested build


# Gates that only a GPU can measure: answers with engines, and the smoke test of each engine.
_ENGINES = "engines"
_ENGINE_KINDS = frozenset({"finite", "smoke test", "two at once"})


@dataclass(frozen=True)
class ParityGate:
    """The worst of all checks of one kind, of a graph or of whole answers, against the limit."""

    graph: str  # or "answer"
    kind: str
    tensor: str  # tensor and run of the worst check
    found: str | float  # text if there is no number: no result, or not a finite one
    limit: float
    checks: int
    ok: bool

    @property
    def on_engine(self) -> bool:
        """Whether it was measured on the engine, on a GPU; else on the graph, in ONNX Runtime."""
        return self.graph == _ENGINES or self.kind in _ENGINE_KINDS

    @property
    def text(self) -> str:
        """The worst value and its limit."""
        lower = more_is_better(self.kind)
        found = f"{self.found:{'.7f' if lower else '.3g'}}" if isinstance(self.found, float) else str(self.found)
        return f"{found}, {'at least' if lower else 'at most'} {self.limit:g}"


@dataclass(frozen=True)
class EngineManifest:
    """The manifest of one engine."""

    graph: str
    target: str
    variant: str
    precision: str
    flavour: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    system: str  # where it was built
    machine: str
    gpu: str | None  # of the machine that built it; None: no GPU, or an unknown one
    driver: str | None  # of the machine that built it; None: no driver
    cuda: int | None  # the newest version that the driver supports: 13040 is 13.4
    max_context: int  # most rows of the caches
    contexts: tuple[int, ...]  # cache lengths that have profiles, in ascending order
    max_batch: int
    opt_level: int | None  # None: the library's default
    workspace_mb: int | None
    weight_streaming: bool
    hardware_compatibility: str  # the library's level: NONE, AMPERE_PLUS
    version_compatible: bool
    refit: bool
    profiling_verbosity: str  # detailed, names or none
    timing_cache: TimingCacheUse | None  # None: built without
    profiles: tuple[str, ...]  # by index
    tensors: tuple[EngineTensor, ...]
    decomposed_attention: bool  # whether the library was allowed to decompose attention, after the fused one had failed
    fallback: Fallback | None  # the variant that could not be built; None: this is the requested one
    kernels: int  # of all profiles
    kernel_gate: tuple[str, ...]  # findings, apart from NOT_JUDGED and REMARK; empty: passed
    activation_bytes: int | None  # the largest of all profiles, as TensorRT reports it
    build_s: float
    peak_rss_bytes: int
    compiled_sha256: str  # of the graph with its weights inlined, as the parser got it
    sources: Mapping[str, Stamp]  # files of the bundle: the graph and its weights
    engine: Stamp
    cache_key: str  # of everything that changes the result
    parity: tuple[ParityGate, ...]  # results of the last `sdrpn verify`; empty: never verified
    format_version: int = ENGINE_FORMAT_VERSION

    @property
    def kernel_verdict(self) -> Literal["passed", "failed", "unjudged"]:
        """The verdict of the kernel gate. A listing without the required details is unjudged, which is not passed."""
        if not all(line.startswith((NOT_JUDGED, REMARK)) for line in self.kernel_gate):
            return "failed"
        return "unjudged" if any(line.startswith(NOT_JUDGED) for line in self.kernel_gate) else "passed"

    @property
    def passed_kernel_gate(self) -> bool:
        """Whether the kernels were judged and there are no findings."""
        return self.kernel_verdict == "passed"

    @property
    def kernels_text(self) -> str:
        """The number of kernels and the gate's verdict, as a short text."""
        remarks = sum(line.startswith(REMARK) for line in self.kernel_gate)
        added = f" with {remarks} remark{'s' * (remarks > 1)}" if remarks else ""
        verdict = {"passed": f"passed{added}", "failed": "FAILED", "unjudged": f"not judged{added}"}
        return f"{self.kernels}, {verdict[self.kernel_verdict]}"

    @property
    def build_notes(self) -> tuple[str, ...]:
        """What the build changed after the library could not build the graph as it was."""
        notes = []
        if self.decomposed_attention:
            notes.append("attention was decomposed: the library had no fused kernel")
        if self.fallback is not None:
            was = f"built from {self.variant} instead of {self.fallback.variant}, for which no engine could be built"
            notes.append(f"{was}: {self.fallback.reason}")
        return tuple(notes)

    def to_text(self) -> str:
        """The text of the file: the entries, and a digest of them, so that changes are detected."""
        entries = dataclasses.asdict(self)
        return json.dumps({**entries, _DIGEST: _digest(entries)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, value: object) -> EngineManifest:
        """The inverse of `to_text`, without the digest. Raises BadInput with the place of a missing or invalid
        entry."""
        return read_dataclass(cls, value)


def engine_paths(bundle: Path, target: str, graph: str) -> tuple[Path, Path, Path]:
    """The engine, its manifest and its layers."""
    folder = bundle / "engines" / target
    return folder / f"{graph}.engine", folder / f"{graph}.engine.json", folder / f"{graph}.layers.json"


def read_engine_manifest(path: Path, roots: Sequence[Path] | None = None) -> EngineManifest:
    """Read a manifest. Raises BadBundle if it is missing, of another version, altered, or outside of `roots`.

    Args:
        roots: real folders that a link may lead to, as in `Bundle.roots`; None: the folder that contains it
    """
    advice = "build it again: sdrpn build BUNDLE --target NAME"
    value = read_manifest(path, roots if roots is not None else link_roots(path.parent), advice)
    version = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(value, dict) or version != ENGINE_FORMAT_VERSION:
        raise BadBundle(
            f"{path} has format version {shown(version)}, this release reads {ENGINE_FORMAT_VERSION}; {advice}"
        )
    listed, found = value.pop(_DIGEST, None), _digest(value)
    if listed != found:
        raise BadBundle(f"{path} was altered: its digest is {shown(listed)}, its entries give {found}; {advice}")
    try:
        return EngineManifest.from_json(value)
    except BadInput as error:
        raise BadBundle(f"{path} cannot be understood ({error}); {advice}") from error


def write_engine_manifest(path: Path, manifest: EngineManifest) -> None:
    """Write a manifest atomically. Raises BadInput or RunFailed if it cannot be written."""
    with replacing_file(path) as temporary:
        temporary.write_text(manifest.to_text(), encoding="utf-8")


def _digest(entries: Mapping[str, Any]) -> str:
    """SHA-256 of the entries as JSON."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
