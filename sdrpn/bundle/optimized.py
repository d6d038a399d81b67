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
from collections.abc import Mapping
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
    "source_digest",
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
        others = sorted(path.parent.name for path in folder.parent.glob(f"{_LIBRARIES[library][0]}-*/{OPTIMIZED_NAME}"))
        note = f"the optimized graphs are for {', '.join(others)}, not for {folder.name}; {_advice(folder)}"
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
    if manifest.source_sha256 != source_digest(bundle, variant) or manifest.graphs.keys() != variant.graphs.keys():
        return None, f"{folder} was made from another export of this bundle; {_advice(folder)}"
    return OptimizedSet(folder, manifest, bundle.roots), None


def _advice(folder: Path) -> str:
    bundle, variant = folder.parents[2], folder.parent.name
    end = " --for openvino" if folder.name.startswith("openvino-") else ""
    return f"make them again: sdrpn optimize {bundle} --variant {variant}{end} (or run without them: optimized=False)"
