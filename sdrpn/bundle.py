"""Read a bundle: the folder that passes a model from stage to stage. Knows no weights and runs nothing.

BUNDLE/
├── manifest.json                 what is here, with sizes and digests; written last
├── trunk.fused-fp32.onnx ...     one graph a file, named GRAPH.VARIANT.onnx
├── weights/*.bin                 external data, shared by all graphs that need the same bytes
└── tokenizer.json                absent where the checkpoint has none
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sdrpn.errors import BadBundle, BadInput
from sdrpn.links import AllowLinks, link_roots, real_file
from sdrpn.shipped import bundle_path, export_advice
from sdrpn.spec import ModelSpec

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "Bundle",
    "FileInfo",
    "GraphInfo",
    "Manifest",
    "TensorInfo",
    "Variant",
    "file_digest",
    "open_bundle",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
# Digests of files up to this size are always checked; --no-verify skips the larger ones.
SMALL_FILE_BYTES = 4 * 1024 * 1024
# Precisions that ONNX Runtime has no kernels for on a CPU, in any graph as these are.
_ENGINES_ONLY = ("bf16", "nvfp4")


# What NumPy lacks -> as it holds the bytes.
_STORED_AS = {"float8_e4m3fn": "uint8", "bfloat16": "uint16"}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph; a string in `dims` is a dynamic dimension."""

    name: str
    dtype: str  # as NumPy spells it, with the names of ml_dtypes for what NumPy lacks
    dims: tuple[int | str, ...]

    def __post_init__(self) -> None:
        _require_type(str, self, "name", "dtype")
        if not all(isinstance(dim, (int, str)) for dim in self.dims):
            raise TypeError(f"dims of {self.name} are {self.dims}, expected numbers and names")

    @property
    def storage(self) -> str:
        """The type that NumPy holds it in: bytes for what it lacks."""
        return _STORED_AS.get(self.dtype, self.dtype)


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX graph and the files that hold its weights."""

    name: str
    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    weights: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_type(str, self, "name", "file")
        if not all(isinstance(file, str) for file in self.weights):
            raise TypeError(f"weights of {self.name} are {self.weights}, expected names of files")


@dataclass(frozen=True)
class Variant:
    """One way to write the model: a dialect in a precision."""

    name: str
    dialect: str
    precision: str
    opset: int
    graphs: Mapping[str, GraphInfo]
    embedding: str  # file of the token embedding table, (V, D)
    embedding_dtype: str
    # Of int8 and int4: bits, block, method, keep; of fp8 and nvfp4: format, keep.
    quantization: Mapping[str, Any] | None = None
    kv_cache: str | None = None  # how trunk and tail keep keys and values: int8 or fp8; None: as they compute

    def __post_init__(self) -> None:
        _require_type(str, self, "name", "dialect", "precision", "embedding", "embedding_dtype")
        _require_type(int, self, "opset")
        if self.kv_cache is not None:
            _require_type(str, self, "kv_cache")

    @property
    def numerics(self) -> str:
        """All that decides how far results lie from float32, as `tolerances_of` takes it."""
        return self.precision if self.kv_cache is None else f"{self.precision}-kv-{self.kv_cache}"

    @property
    def for_cpu(self) -> bool:
        """Of the two forms of a quantised variant, the one that computes in fp32."""
        return self.name.endswith("-cpu")

    @property
    def computes_in_half(self) -> bool:
        """Whether activations and caches have 16 bits: fp16, or bf16."""
        return self.precision != "fp32" and not self.for_cpu

    @property
    def for_engines_only(self) -> bool:
        """Whether ONNX Runtime cannot answer with it."""
        return self.precision in _ENGINES_ONLY

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that this variant needs."""
        own = {self.embedding}
        for graph in self.graphs.values():
            own.update((graph.file, *graph.weights))
        return tuple(sorted(own))


@dataclass(frozen=True)
class FileInfo:
    """Size and SHA-256 of one file."""

    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _require_type(int, self, "size_bytes")
        _require_type(str, self, "sha256")


@dataclass(frozen=True)
class Manifest:
    """All that `manifest.json` says."""

    spec: ModelSpec
    max_context: int
    variants: Mapping[str, Variant]
    files: Mapping[str, FileInfo]
    tokenizer: str | None
    source: Mapping[str, Any]  # the checkpoint: path, layout, sha256
    tools: Mapping[str, str]  # library -> version at export
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _require_type(int, self, "max_context")
        _require_type(dict, self, "variants", "files", "source", "tools")
        if self.tokenizer is not None:
            _require_type(str, self, "tokenizer")

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return {**_plain(self), "spec": self.spec.to_json()}

    def to_text(self) -> str:
        """As `manifest.json` holds it."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_json`; KeyError or TypeError where something is missing or of another type."""
        return cls(
            spec=ModelSpec.from_json(value["spec"]),
            max_context=value["max_context"],
            variants={name: _variant(v) for name, v in value["variants"].items()},
            files={name: FileInfo(**v) for name, v in value["files"].items()},
            tokenizer=value["tokenizer"],
            source=value["source"],
            tools=value["tools"],
            format_version=value["format_version"],
        )


class Bundle:
    """A bundle whose manifest was read; files are handed out only after a look at their path and digest."""

    def __init__(self, path: Path, manifest: Manifest, allow_links: AllowLinks = ()) -> None:
        """Args: allow_links: where links of the bundle may lead besides where `link_roots` says"""
        self.path = path
        self.manifest = manifest
        self._allow_links = allow_links

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.manifest.spec

    def variant(self, name: str | None = None) -> Variant:
        """The named variant, or the first of `variants_for_cpu`."""
        variants = self.manifest.variants
        if name is None:
            return self.variants_for_cpu[0]
        if name not in variants:
            raise BadInput(
                f"{self.path} has no variant {name!r}; it has {', '.join(sorted(variants))}. "
                f"Add one: {export_advice(self.path, '--dialect ... --precision ...')}"
            )
        return variants[name]

    @property
    def variants_for_cpu(self) -> tuple[Variant, ...]:
        """All of them, first what suits a plain CPU best: fused before primitive, then the most exact that computes in
        fp32; those for engines only come last."""
        return tuple(sorted(self.manifest.variants.values(), key=_cpu_order))

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, which may be a link.

        Raises BadBundle if it is not listed, absent, or a link to where none may lead.
        """
        if name not in self.manifest.files:
            raise BadBundle(f"{self.path / MANIFEST_NAME} names {name!r} but does not list it; export the bundle again")
        path = self.path / _inside(self.path, name)
        with _reading(path):
            if not path.is_file():
                raise BadBundle(f"{path} is missing; export the bundle again")
            real_file(path, link_roots(self.path, self._allow_links), BadBundle)
        return path

    def verify(
        self, names: Iterable[str], *, large: bool = True, advance: Callable[[int], None] = lambda size_bytes: None
    ) -> None:
        """Compare files with the manifest: sizes always, digests of all files or of the small ones only.

        Raises BadBundle for the first that differs.
        """
        for name in names:
            path, expected = self.file(name), self.manifest.files[name]
            with _reading(path):
                size_bytes = path.stat().st_size
            if size_bytes != expected.size_bytes:
                raise BadBundle(
                    f"{path} has {size_bytes} bytes, the manifest says {expected.size_bytes}; export the bundle again"
                )
            if large or size_bytes <= SMALL_FILE_BYTES:
                with _reading(path):
                    found = file_digest(path, advance)
                if found != expected.sha256:
                    raise BadBundle(
                        f"{path} was changed: its SHA-256 is {found[:12]}..., the manifest says "
                        f"{expected.sha256[:12]}...; export the bundle again"
                    )


def open_bundle(path: Path | str, *, allow_links: AllowLinks = ()) -> Bundle:
    """Read a bundle's manifest. Raises BadBundle or BadInput; verifies no other file.

    Args:
        path: its folder; the text "default" is the shipped one
        allow_links: folders that links of the bundle may lead to, besides itself and its cache's blobs; True: any
    """
    path = bundle_path(path)
    manifest_path = path / MANIFEST_NAME
    with _reading(manifest_path):
        if not path.exists():
            raise BadInput(f"{path} does not exist; expected a bundle folder, as `sdrpn export` writes it")
        if not path.is_dir():
            raise BadBundle(f"{path} is a file; expected a bundle folder, as `sdrpn export` writes it")
        if not manifest_path.exists():
            raise BadBundle(f"{path} has no {MANIFEST_NAME}; expected a bundle, as `sdrpn export` writes it")
        real_file(manifest_path, link_roots(path, allow_links), BadBundle)
        content = manifest_path.read_bytes()
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{manifest_path} cannot be read ({error}); export the bundle again") from error
    return Bundle(path, _manifest(manifest_path, value), allow_links)


def file_digest(path: Path, advance: Callable[[int], None] = lambda size_bytes: None) -> str:
    """SHA-256 of a file as hex, read in pieces; `advance` is told the bytes of each."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(8 * 1024 * 1024):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of the file system, as a user can act on them."""
    try:
        yield
    except PermissionError:
        raise BadBundle(f"{path} cannot be read: permission denied; check the folder's owner and mode") from None
    except OSError as error:
        raise BadBundle(f"{path} cannot be read ({error}); export the bundle again") from error


def _manifest(path: Path, value: object) -> Manifest:
    if not isinstance(value, dict) or "format_version" not in value:
        raise BadBundle(f"{path} is not a bundle manifest; export the bundle again")
    if value["format_version"] != FORMAT_VERSION:
        raise BadBundle(
            f"{path} has format version {value['format_version']!r}, this release reads {FORMAT_VERSION}; "
            f"export the bundle again, or install the release that wrote it"
        )
    try:
        manifest = Manifest.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise BadBundle(f"{path} cannot be understood ({reason}); export the bundle again") from error
    for name in manifest.files:
        _inside(path.parent, name)
    if not manifest.variants:
        raise BadBundle(f"{path} lists no variant; export the bundle again")
    for variant in manifest.variants.values():
        for graph in _graph_names(manifest.spec):
            if graph not in variant.graphs:
                raise BadBundle(f"{path}: variant {variant.name!r} has no graph {graph!r}; export the bundle again")
    return manifest


def _cpu_order(variant: Variant) -> tuple[bool, bool, bool, bool, int, str]:
    exactness = ("fp32", "fp16", "int8", "fp8", "int4")
    rank = exactness.index(variant.precision) if variant.precision in exactness else len(exactness)
    half = variant.computes_in_half
    coded = variant.kv_cache is not None
    return variant.for_engines_only, variant.dialect != "fused", half, coded, rank, variant.name


def _graph_names(spec: ModelSpec) -> tuple[str, ...]:
    return ("vision", "trunk", "tail") if spec.rpn is None else ("vision", "trunk", "rpn", "tail")


def _inside(root: Path, name: str) -> PurePosixPath:
    """`name` as a relative path that stays below the bundle."""
    relative = PurePosixPath(name)
    foreign = "\\" in name or "\0" in name
    if relative.is_absolute() or ".." in relative.parts or foreign or not relative.parts:
        raise BadBundle(f"{root / MANIFEST_NAME} names {name!r}, which leaves the bundle; expected a path inside it")
    return relative


def _variant(value: Mapping[str, Any]) -> Variant:
    graphs = {name: _graph(graph) for name, graph in value["graphs"].items()}
    return Variant(**{**value, "graphs": graphs})


def _graph(value: Mapping[str, Any]) -> GraphInfo:
    tensors = {
        side: tuple(TensorInfo(t["name"], t["dtype"], tuple(t["dims"])) for t in value[side])
        for side in ("inputs", "outputs")
    }
    return GraphInfo(value["name"], value["file"], tensors["inputs"], tensors["outputs"], tuple(value["weights"]))


def _require_type(kind: type, owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            what = f"{name} of a {type(owner).__name__}"
            raise TypeError(f"{what} is of type {type(value).__name__}, expected {kind.__name__}")


def _plain(value: object) -> Any:
    """Dataclasses, mappings and tuples as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
