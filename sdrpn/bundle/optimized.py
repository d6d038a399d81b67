"""The manifest of graphs that a library saved for one machine. Imports no such library and runs nothing.

BUNDLE/optimized/VARIANT/ort-VERSION-CPU/ or openvino-VERSION-CPU/
├── optimized.json                 library, processor and files; a folder without it is ignored
├── trunk.onnx or trunk.xml ...    one graph a file
└── trunk.onnx.data ...            its weights, in the layout of the kernels; or trunk.bin, in OpenVINO's types

The bundle's own graphs remain the source: these are made from them and can be deleted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sdrpn.bundle.bundle import Bundle, FileInfo, Variant
from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.json_reader import read_dataclass, shown
from sdrpn.host.links import real_file
from sdrpn.host.listed_files import ListedFiles, read_manifest
from sdrpn.host.machine import Cpu

__all__ = [
    "OPTIMIZED_NAME",
    "OptimizedManifest",
    "OptimizedSet",
    "find_optimized",
    "libraries_with_graphs",
    "optimized_folder",
    "saved_before",
    "source_digest",
    "stale_folders",
]

OPTIMIZED_NAME = "optimized.json"
OPTIMIZED_FORMAT_VERSION = 2
# Libraries that save graphs -> how names of folders begin, and how files of graphs end.
_LIBRARIES = {"onnxruntime": ("ort", ".onnx"), "openvino": ("openvino", ".xml")}


@dataclass(frozen=True)
class OptimizedManifest:
    """The content of `optimized.json`."""

    variant: str
    version: str  # of the library
    cpu: str  # model
    cpu_sha256: str
    attention: str  # "group-query" or "standard"
    source_sha256: str  # see `source_digest`
    graphs: Mapping[str, str]  # graph -> its file
    files: Mapping[str, FileInfo]
    mapped_bytes: int  # of all weights in the layout that is used: what stays in memory
    # Parts whose floats became 8 bits -> how far the results of their graph are from before: a share of their spread.
    int8: Mapping[str, float] = field(default_factory=dict)
    int4: Mapping[str, float] = field(default_factory=dict)  # likewise parts that became 4 bits
    library: str = "onnxruntime"  # the name of its backend
    block: int | None = None  # inputs that share a scale, where that is not as in the bundle
    # Graph -> bytes of its weights as kernels read them: a scale that is packed with its codes counts there alone.
    read_bytes: Mapping[str, int] = field(default_factory=dict)
    format_version: int = OPTIMIZED_FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.library not in _LIBRARIES:
            raise BadInput(f"library is {shown(self.library)}; expected one of {', '.join(_LIBRARIES)}")
        _, ending = _LIBRARIES[self.library]
        for graph, file in self.graphs.items():
            if file not in self.files or not file.endswith(ending):
                raise BadInput(f"graphs.{graph} is {shown(file)}; expected a listed file that ends in {ending}")
        for file in self.files:
            if "/" in file:
                raise BadInput(f"files has {shown(file)}; expected names of files in the same folder")
        if self.mapped_bytes < 0:
            raise BadInput(f"mapped_bytes is {self.mapped_bytes}; expected 0 or more")

    @property
    def int8_parts(self) -> tuple[str, ...]:
        """The parts in 8 bits by their names for `sdrpn optimize`, where a gate is part of the RPN."""
        return tuple(sorted({"rpn" if part == "gate" else part for part in self.int8}))

    @property
    def options(self) -> str:
        """The options of `sdrpn optimize` that make such graphs, besides bundle and variant; each behind a space."""
        given = []
        if self.library != "onnxruntime":
            given.append(f"--for {self.library}")
        elif self.attention == "standard":
            given.append("--attention standard")
        if self.int8:
            given.append(f"--int8 {','.join(self.int8_parts)}")
        if self.int4:
            given.append(f"--int4 {','.join(sorted(self.int4))}")
        if self.block is not None:
            given.append(f"--block {self.block} --checkpoint CHECKPOINT")
        return "".join(f" {each}" for each in given)

    def to_text(self) -> str:
        """The text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, value: object) -> OptimizedManifest:
        """The inverse of `to_text`. Raises BadInput with the place of an entry that is missing, unknown or of another
        type."""
        return read_dataclass(cls, value)


@dataclass(frozen=True)
class OptimizedSet:
    """A folder of saved graphs that fit the machine and the bundle."""

    path: Path
    manifest: OptimizedManifest
    roots: tuple[Path, ...]  # of the bundle: see `link_roots`

    @property
    def graphs(self) -> dict[str, Path]:
        """The file of each graph."""
        return {name: self.path / file for name, file in self.manifest.graphs.items()}

    def weights_bytes(self, graph: str) -> int:
        """Sizes of the files that hold this graph's weights; 0 where they are in the graph itself."""
        name = self.manifest.graphs[graph]
        others = ((file, info) for file, info in self.manifest.files.items() if file != name)
        return sum(info.size_bytes for file, info in others if file.startswith(f"{graph}."))

    def variant(self, bundle: Variant) -> Variant:
        """The bundle's variant, with the weight files of these graphs."""
        weights = tuple(self.manifest.files.keys() - {*self.manifest.graphs.values()})
        graphs = {name: dataclasses.replace(graph, weights=weights) for name, graph in bundle.graphs.items()}
        return dataclasses.replace(bundle, graphs=graphs)

    def verify(self, *, large: bool = True) -> None:
        """Compare sizes with the manifest, and digests, of large files on request.

        Raises: BadBundle for the first file that differs or is outside of the bundle
        """
        files = self.manifest.files
        listed = ListedFiles(self.path, self.path / OPTIMIZED_NAME, files, self.roots, _advice(self.path))
        listed.verify(files, large=large)


def optimized_folder(bundle: Bundle, variant: Variant, version: str, cpu: Cpu, library: str = "onnxruntime") -> Path:
    """The folder of the graphs for this release of a library on this processor."""
    return bundle.path / "optimized" / variant.name / f"{_LIBRARIES[library][0]}-{version}-{cpu.digest[:12]}"


def libraries_with_graphs(bundle: Bundle) -> frozenset[str]:
    """The libraries that have saved graphs of a bundle, for whatever machine."""
    names = {path.name.partition("-")[0] for path in bundle.path.glob("optimized/*/*")}
    return frozenset(library for library, (beginning, _) in _LIBRARIES.items() if beginning in names)


def source_digest(bundle: Bundle, variant: Variant) -> str:
    """SHA-256 of the digests of all files of the variant's graphs."""
    files = {file for graph in variant.graphs.values() for file in (graph.file, *graph.weights)}
    lines = (f"{file} {bundle.manifest.files[file].sha256}" for file in sorted(files))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find_optimized(
    bundle: Bundle, variant: Variant, version: str, cpu: Cpu, library: str = "onnxruntime"
) -> tuple[OptimizedSet | None, str | None]:
    """The graphs that fit, or None; and why existing graphs of this variant are not used, if there are any.

    Raises: BadBundle for a manifest that is damaged, or that is or leads outside of the bundle
    """
    folder = optimized_folder(bundle, variant, version, cpu, library)
    path = folder / OPTIMIZED_NAME
    if not path.exists():
        others = sorted(other.name for other in _saved_folders(bundle, variant, library))
        advice = _advice(folder, saved_before(bundle, variant, library))
        note = f"the optimized graphs are for {', '.join(others)}, not for {folder.name}; {advice}"
        return None, note if others else None
    real_file(folder, bundle.roots, BadBundle)
    value = read_manifest(path, bundle.roots, _advice(folder))
    form = value.get("format_version") if isinstance(value, dict) else None
    if form != OPTIMIZED_FORMAT_VERSION:
        return None, f"{folder} has format version {shown(form)}; {_advice(folder)}"
    try:
        manifest = OptimizedManifest.from_json(value)
    except BadInput as error:
        raise BadBundle(f"{path} cannot be understood ({error}); {_advice(folder)}") from error
    made_for = manifest.variant, manifest.library, manifest.version, manifest.cpu_sha256
    if made_for != (variant.name, library, version, cpu.digest):  # a folder that was renamed
        what = f"{manifest.variant} with {manifest.library} {manifest.version} on {manifest.cpu}"
        return None, f"the optimized graphs in {folder} are for {what}, not for its name; {_advice(folder, manifest)}"
    if not _is_of(manifest, bundle, variant):
        return None, f"{folder} was made from another export of this bundle; {_advice(folder, manifest)}"
    return OptimizedSet(folder, manifest, bundle.roots), None


def saved_before(bundle: Bundle, variant: Variant, library: str) -> OptimizedManifest | None:
    """How graphs of a variant were saved for a library last, for whatever machine; None: unknown, or not yet."""
    found = [
        (folder.stat().st_mtime_ns, _readable(folder, bundle)) for folder in _saved_folders(bundle, variant, library)
    ]
    known = [(when, manifest) for when, manifest in found if manifest is not None]
    return max(known, key=lambda each: each[0])[1] if known else None


def stale_folders(bundle: Bundle, folder: Path) -> list[Path]:
    """What need not be kept beside the saved graphs in `folder`, which have just been written.

    Graphs for other versions of the library on this processor, and those that no machine takes, since the export that
    they were made from or its variant is gone. Others, for other processors, may be in use on other machines.
    """
    beginning, processor = folder.name.partition("-")[0], folder.name.rpartition("-")[2]
    found = []
    for variant in sorted((bundle.path / "optimized").iterdir()):
        for other in sorted(variant.iterdir() if _is_folder(variant) else ()):
            if other == folder or not _is_folder(other) or not (other / OPTIMIZED_NAME).exists():
                continue
            begins, _, rest = other.name.partition("-")
            same = variant == folder.parent and begins == beginning and rest.rpartition("-")[2] == processor
            if same or _is_of_nothing(other, bundle):
                found.append(other)
    return found


def _is_of_nothing(folder: Path, bundle: Bundle) -> bool:
    """Whether saved graphs are of a variant or an export that the bundle no longer has."""
    variant = bundle.manifest.variants.get(folder.parent.name)
    manifest = _readable(folder, bundle)
    return variant is None or (manifest is not None and not _is_of(manifest, bundle, variant))


def _is_of(manifest: OptimizedManifest, bundle: Bundle, variant: Variant) -> bool:
    return manifest.source_sha256 == source_digest(bundle, variant) and manifest.graphs.keys() == variant.graphs.keys()


def _saved_folders(bundle: Bundle, variant: Variant, library: str) -> Iterator[Path]:
    pattern = f"optimized/{variant.name}/{_LIBRARIES[library][0]}-*/{OPTIMIZED_NAME}"
    return (path.parent for path in bundle.path.glob(pattern))


def _readable(folder: Path, bundle: Bundle) -> OptimizedManifest | None:
    """The manifest of saved graphs that are not to be used; None where it is damaged or of another format."""
    with suppress(BadBundle, BadInput):
        real_file(folder, bundle.roots, BadBundle)
        return OptimizedManifest.from_json(read_manifest(folder / OPTIMIZED_NAME, bundle.roots, ""))
    return None


def _is_folder(path: Path) -> bool:
    """Whether it is a folder, and no link to one."""
    return stat.S_ISDIR(path.lstat().st_mode)


def _advice(folder: Path, before: OptimizedManifest | None = None) -> str:
    """Args: before: how they were made before; None: unknown"""
    bundle, variant = folder.parents[2], folder.parent.name
    end = " --for openvino" if folder.name.startswith("openvino-") else ""
    options = end if before is None else before.options
    command = f"sdrpn optimize {bundle} --variant {variant}{options}"
    return f"make them again: {command} (or run without them: `sdrpn ask --no-optimized`, optimized=False)"
