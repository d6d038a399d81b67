"""Read a bundle: the folder that passes a model from stage to stage. Knows no weights and runs nothing.

BUNDLE/
├── manifest.json                 what is here, with sizes and digests; written last
├── trunk.fused-fp32.onnx ...     one graph a file, named GRAPH.VARIANT.onnx
├── weights/*.bin                 external data, shared by all graphs that need the same bytes
└── tokenizer.json                absent where the checkpoint has none
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdrpn.bundle.manifest import FORMAT_VERSION, GraphInfo, Manifest, TensorInfo, Variant
from sdrpn.bundle.numerics import CPU_SUFFIX, DIALECT_NAMES, NUMBER_TYPES, PRECISIONS
from sdrpn.bundle.release import bundle_within, release_advice, release_targets
from sdrpn.bundle.shipped import DEMO_NAME, bundle_name, bundle_path, export_advice, is_shipped, is_shipped_name
from sdrpn.bundle.signatures import GraphSignature, expected_signatures
from sdrpn.errors import BadBundle, BadInput
from sdrpn.families.registry import family_of
from sdrpn.host.hub import model_folder
from sdrpn.host.json_reader import shown
from sdrpn.host.links import AllowLinks, link_roots
from sdrpn.host.listed_files import (
    SMALL_FILE_BYTES,
    FileInfo,
    ListedFiles,
    errors_of,
    file_digest,
    read_manifest,
    require_inside,
)
from sdrpn.host.progress import Grown, uncounted
from sdrpn.host.suggestion import did_you_mean_path
from sdrpn.method.spec import ModelSpec

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "SMALL_FILE_BYTES",
    "Bundle",
    "FileInfo",
    "GraphInfo",
    "Manifest",
    "TensorInfo",
    "Variant",
    "file_digest",
    "open_bundle",
]

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
_ADVICE = "export the bundle again"
# Limit for a graph and for a tokenizer, which are read whole; graphs of 13B models have less than a hundredth of it.
_MOST_GRAPH_BYTES = 2**28


class Bundle:
    """A bundle whose manifest was read. Paths of files are checked before they are returned."""

    def __init__(self, path: Path, manifest: Manifest, allow_links: AllowLinks = ()) -> None:
        """Args: allow_links: folders that links may lead to, in addition to `link_roots`"""
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
        """All variants, the best one for a plain CPU first: fused before primitive, then the most exact that computes
        in fp32; variants for engines only come last."""
        return tuple(sorted(self.manifest.variants.values(), key=_cpu_order))

    @property
    def roots(self) -> tuple[Path, ...]:
        """Real folders that files of this bundle may be in."""
        return link_roots(self.path, self._allow_links)

    @property
    def release_targets(self) -> tuple[str, ...]:
        """The targets of a release, which has engines and no graphs; empty for a whole bundle."""
        return release_targets(self.path, self.manifest)

    def build_command(self, target: str = "NAME") -> str:
        """The shell command that builds engines from this bundle."""
        # A release has no graphs to build from: name the whole bundle.
        path = "BUNDLE" if self.release_targets else shlex.quote(bundle_name(self.path))
        # Nothing is written into the installed package.
        out = " --out FOLDER" if is_shipped(self.path) else ""
        return f"sdrpn build {path} --target {shlex.quote(target)}{out}"

    def require_graphs(self, purpose: str, reason: str | None = None) -> None:
        """Raise BadInput if this is a release.

        Args:
            purpose: what needs the graphs, such as "to build engines"
            reason: why the engines cannot be used
        """
        targets = self.release_targets
        if targets:
            needed = f"{purpose} ({reason})" if reason else purpose
            raise BadInput(release_advice(self.path, self.manifest, targets, needed))

    @property
    def _advice(self) -> str:
        targets = self.release_targets
        return release_advice(self.path, self.manifest, targets) if targets else _ADVICE

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, which may be a link; see `ListedFiles.path`. Raises BadBundle."""
        return self._listed.path(name)

    def verify(self, names: Iterable[str], *, large: bool = True, advance: Grown = uncounted) -> None:
        """Compare files with the manifest: sizes always, digests of all files or of the small ones only.

        Raises BadBundle for the first that differs.
        """
        self._listed.verify(names, large=large, advance=advance)

    @property
    def _listed(self) -> ListedFiles:
        return ListedFiles(self.path, self.path / MANIFEST_NAME, self.manifest.files, self.roots, self._advice)


def open_bundle(path: Path | str, *, allow_links: AllowLinks = (), download: bool = False) -> Bundle:
    """Read a bundle's manifest. Raises BadBundle or BadInput; verifies no other file.

    Args:
        path: its folder, that of a release, or a store of releases; the str "demo" is the shipped bundle; a str can
            also name a model on Hugging Face's hub
        allow_links: folders that links may lead to, besides the bundle itself and the hub cache's blobs; True: any
        download: download what the local cache lacks of a model on the hub
    """
    path = bundle_path(path) if is_shipped_name(path) else bundle_within(model_folder(path, download=download))
    manifest_path = path / MANIFEST_NAME
    with errors_of(manifest_path, _ADVICE):
        if not path.exists():
            meant = did_you_mean_path(path, [DEMO_NAME])
            raise BadInput(f"{path} does not exist; expected a bundle folder, as `sdrpn export` writes it{meant}")
        if not path.is_dir():
            raise BadBundle(
                f"{path} is a file; expected a bundle folder, as `sdrpn export` writes it; the archive of a release is "
                "installed first: `sdrpn release install`"
            )
        if not manifest_path.exists():
            raise BadBundle(
                f"{path} has no {MANIFEST_NAME}; expected a bundle, as `sdrpn export` writes it{_bundles_near(path)}"
            )
    value = read_manifest(manifest_path, link_roots(path, allow_links), _ADVICE)
    return Bundle(path, _manifest(manifest_path, value), allow_links)


def _bundles_near(path: Path) -> str:
    """A hint at bundles in or around a folder that is not one, such as a CI build's output, or an engine folder."""
    places = [manifest.parent for manifest in sorted(path.glob(f"*/{MANIFEST_NAME}"))[:4]]
    if path.parent.name == "engines" and (path.parent.parent / MANIFEST_NAME).is_file():
        places.append(path.parent.parent)
    return f"; did you mean {' or '.join(map(str, places))}?" if places else ""


def _manifest(path: Path, value: object) -> Manifest:
    if not isinstance(value, dict) or "format_version" not in value:
        raise BadBundle(f"{path} is not a bundle manifest; {_ADVICE}")
    if value["format_version"] != FORMAT_VERSION:
        raise BadBundle(
            f"{path} has format version {shown(value['format_version'])}, this release reads {FORMAT_VERSION}; "
            f"{_again(path.parent, value)}, or install the release that wrote it"
        )
    try:
        manifest = Manifest.from_json(value)
    except BadInput as error:
        raise BadBundle(f"{path} cannot be understood ({error}); {_ADVICE}") from error
    for name in manifest.files:
        require_inside(path, name)
    if not manifest.variants:
        raise BadBundle(f"{path} lists no variant; {_ADVICE}")
    if manifest.tokenizer is not None and manifest.tokenizer not in manifest.files:
        raise BadBundle(f"{path} names {shown(manifest.tokenizer)} but does not list it; {_ADVICE}")
    for name, variant in manifest.variants.items():
        if variant.name != name:
            raise BadBundle(f"{path}: variants.{name}.name is {shown(variant.name)}; expected {name}; {_ADVICE}")
        _require_fitting(path, manifest, variant)
    return manifest


def _again(folder: Path, value: Mapping[str, object]) -> str:
    """The command that exports a bundle of another format again, with the options of its first variant."""
    variants = value.get("variants")
    named = [f"{name}" for name in variants] if isinstance(variants, dict) else []
    options = ""
    for dialect, precision in itertools.product(DIALECT_NAMES, PRECISIONS):
        if any(name.removesuffix(CPU_SUFFIX).partition("-kv-")[0] == f"{dialect}-{precision}" for name in named):
            options = f" --dialect {dialect} --precision {precision}"
            break
    place = shlex.quote(str(folder))
    return f"export it again: rm -r {place} && sdrpn export CHECKPOINT --out {place}{options}"


def _require_fitting(path: Path, manifest: Manifest, variant: Variant) -> None:
    """Check that the files of a variant are listed, and that its graphs have the model's inputs and outputs."""
    where = f"{path}: variant {variant.name!r}"
    for name in variant.files:
        if name not in manifest.files:
            raise BadBundle(f"{where} names {shown(name)}, which is not listed; {_ADVICE}")
    _require_plausible_sizes(where, manifest, variant)
    llm = manifest.spec.llm
    table_bytes = llm.vocabulary * llm.width * NUMBER_TYPES[variant.embedding_dtype].size_bytes
    if manifest.files[variant.embedding].size_bytes != table_bytes:
        raise BadBundle(
            f"{where}: {shown(variant.embedding)} has {manifest.files[variant.embedding].size_bytes} bytes; "
            f"{llm.vocabulary} rows of {llm.width} {variant.embedding_dtype} have {table_bytes}; {_ADVICE}"
        )
    try:
        wanted = expected_signatures(
            manifest.spec, variant.dialect, variant.precision, for_cpu=variant.for_cpu, kv_cache=variant.kv_cache
        )
    except BadInput as error:
        raise BadBundle(f"{where}: {error}; {_ADVICE}") from error
    for graph in wanted:
        if graph not in variant.graphs:
            raise BadBundle(f"{where} has no graph {graph!r}; {_ADVICE}")
    for name, info in variant.graphs.items():
        if name not in wanted:
            raise BadBundle(f"{where} has a graph {shown(name)}; expected {', '.join(wanted)}; {_ADVICE}")
        difference = GraphSignature.of(info.inputs, info.outputs).difference(wanted[name])
        if difference is not None or len(info.inputs) + len(info.outputs) != wanted[name].size:
            raise BadBundle(f"{where}, graph {name!r}: {difference or 'a tensor is listed twice'}; {_ADVICE}")


def _require_plausible_sizes(where: str, manifest: Manifest, variant: Variant) -> None:
    """Check sizes before anything is read: a sparse file can have any size and take no space."""
    for name in filter(None, (manifest.tokenizer, *(graph.file for graph in variant.graphs.values()))):
        if manifest.files[name].size_bytes > _MOST_GRAPH_BYTES:
            raise BadBundle(
                f"{where}: {shown(name)} has {manifest.files[name].size_bytes} bytes; expected at most "
                f"{_MOST_GRAPH_BYTES}: weights lie in files of their own; {_ADVICE}"
            )
    weights_bytes, most = sum(manifest.files[name].size_bytes for name in variant.files), _most_bytes(manifest.spec)
    if weights_bytes > most:
        raise BadBundle(f"{where} has {weights_bytes} bytes; such a model has less than {most} in float32; {_ADVICE}")


def _most_bytes(spec: ModelSpec) -> int:
    """Twice the size of a model's matrices and tables in float32, plus an allowance for small tensors."""
    llm = spec.llm
    attention = llm.width * llm.head_dim * 2 * (llm.heads + llm.kv_heads)
    layers = llm.layers + (spec.rpn.layers if spec.rpn is not None else 0)
    tables = 2 * llm.vocabulary * llm.width + 4 * llm.max_context * llm.head_dim
    vision = sum(math.prod(shape) for shape in family_of(spec).vision_shapes(spec).values())
    numbers = layers * (attention + 3 * llm.width * llm.mlp_width) + tables + vision
    return 2 * 4 * numbers + 2**26


def _cpu_order(variant: Variant) -> tuple[bool, bool, bool, bool, int, str]:
    rank, half = list(PRECISIONS).index(variant.precision), variant.computes_in_half
    coded = variant.kv_cache is not None
    return variant.for_engines_only, variant.dialect != "fused", half, coded, rank, variant.name
