"""What is known of graphs that ONNX Runtime saved for one machine. Knows no ONNX Runtime and runs nothing.

BUNDLE/optimized/VARIANT/ort-VERSION-CPU/
├── optimized.json                 which library, which processor, which files; without it the folder is nothing
├── trunk.onnx ...                 one graph a file
└── trunk.onnx.data ...            its weights, also as the library's kernels want them

The bundle's own graphs stay what counts: these are made from them and can be thrown away.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.bundle import SMALL_FILE_BYTES, Bundle, FileInfo, Variant, file_digest
from sdrpn.errors import BadBundle
from sdrpn.machine import Cpu

__all__ = [
    "OPTIMIZED_NAME",
    "OptimizedManifest",
    "OptimizedSet",
    "find_optimized",
    "optimized_folder",
    "source_digest",
]

OPTIMIZED_NAME = "optimized.json"
OPTIMIZED_FORMAT_VERSION = 1


@dataclass(frozen=True)
class OptimizedManifest:
    """All that `optimized.json` says."""

    variant: str
    onnxruntime: str  # version
    cpu: str  # model
    cpu_sha256: str
    attention: str  # "group-query" or "standard"
    source_sha256: str  # see `source_digest`
    graphs: Mapping[str, str]  # graph -> its file
    files: Mapping[str, FileInfo]
    mapped_bytes: int  # of all weights as they are used: what stays in memory
    format_version: int = OPTIMIZED_FORMAT_VERSION

    def to_text(self) -> str:
        """As the file holds it."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OptimizedManifest:
        """The inverse of `to_text`; KeyError or TypeError where something is missing or odd."""
        return cls(**{**value, "files": {name: FileInfo(**info) for name, info in value["files"].items()}})


@dataclass(frozen=True)
class OptimizedSet:
    """A folder of such graphs, whose manifest fits the machine and the bundle."""

    path: Path
    manifest: OptimizedManifest

    @property
    def graphs(self) -> dict[str, Path]:
        """The file of each graph."""
        return {name: self.path / file for name, file in self.manifest.graphs.items()}

    def variant(self, bundle: Variant) -> Variant:
        """The bundle's variant with the weights that these graphs have."""
        weights = tuple(self.manifest.files.keys() - {*self.manifest.graphs.values()})
        graphs = {name: dataclasses.replace(graph, weights=weights) for name, graph in bundle.graphs.items()}
        return dataclasses.replace(bundle, graphs=graphs)

    def verify(self, *, large: bool = True) -> None:
        """Compare sizes with the manifest, and digests (of large files too, or not).

        Raises: BadBundle for the first file that differs
        """
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not path.is_file() or path.stat().st_size != expected.size_bytes:
                raise BadBundle(f"{path} is missing or was cut; {_mend(self.path)}")
            if (large or expected.size_bytes <= SMALL_FILE_BYTES) and file_digest(path) != expected.sha256:
                raise BadBundle(f"{path} was changed; {_mend(self.path)}")


def optimized_folder(bundle: Bundle, variant: Variant, onnxruntime: str, cpu: Cpu) -> Path:
    """Where the graphs for this library on this processor lie."""
    return bundle.path / "optimized" / variant.name / f"ort-{onnxruntime}-{cpu.digest[:12]}"


def source_digest(bundle: Bundle, variant: Variant) -> str:
    """SHA-256 of the digests of all that the variant's graphs are made of."""
    files = {file for graph in variant.graphs.values() for file in (graph.file, *graph.weights)}
    lines = (f"{file} {bundle.manifest.files[file].sha256}" for file in sorted(files))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find_optimized(
    bundle: Bundle, variant: Variant, onnxruntime: str, cpu: Cpu
) -> tuple[OptimizedSet | None, str | None]:
    """The graphs that fit; or none, and why those that are there for this variant are not used, if some are."""
    folder = optimized_folder(bundle, variant, onnxruntime, cpu)
    if not (folder / OPTIMIZED_NAME).is_file():
        others = sorted(path.parent.name for path in folder.parent.glob(f"*/{OPTIMIZED_NAME}"))
        note = f"the optimized graphs are for {', '.join(others)}, not for {folder.name}; {_mend(folder)}"
        return None, note if others else None
    try:
        value = json.loads((folder / OPTIMIZED_NAME).read_text(encoding="utf-8"))
        if value["format_version"] != OPTIMIZED_FORMAT_VERSION:
            return None, f"{folder} has format version {value['format_version']!r}; {_mend(folder)}"
        manifest = OptimizedManifest.from_json(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{folder / OPTIMIZED_NAME} cannot be understood ({error}); {_mend(folder)}"
    if manifest.source_sha256 != source_digest(bundle, variant) or manifest.graphs.keys() != variant.graphs.keys():
        return None, f"{folder} was made from another export of this bundle; {_mend(folder)}"
    return OptimizedSet(folder, manifest), None


def _mend(folder: Path) -> str:
    bundle, variant = folder.parents[2], folder.parent.name
    return f"make them again: sdrpn optimize {bundle} --variant {variant}"
