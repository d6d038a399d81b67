"""Which files a release takes from a bundle, and which contents an archive or a folder has. Loads no graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdrpn.bundle.bundle import MANIFEST_NAME, Bundle
from sdrpn.bundle.engine_manifest import engine_paths
from sdrpn.bundle.graphs import graphs_of
from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.listed_files import FileInfo, errors_of, file_digest, require_loadable
from sdrpn.host.progress import Grown, ShowProgress, counting, show_nothing
from sdrpn.release.archive import StoredObject
from sdrpn.release.index import BUNDLE_FOLDER

__all__ = ["ReleaseFile", "bundle_files", "objects_of"]

_PIECE = 4 * 1024 * 1024


@dataclass(frozen=True)
class ReleaseFile:
    """A file that goes into a release: where it is read from (a path, or its content), and what it holds."""

    source: Path | bytes
    info: FileInfo

    def pieces(self) -> Iterator[bytes]:
        """Its content."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        with errors_of(self.source, "pack the bundle again"), self.source.open("rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece


def bundle_files(
    bundle: Bundle, targets: Sequence[str], *, graphs: bool, progress: ShowProgress = show_nothing
) -> dict[str, ReleaseFile]:
    """Path in the release -> file: a bundle, or what of it its engines need, and the engines of these targets.

    Args:
        graphs: with the ONNX graphs and their weights, which a CPU answers with and engines are built from
        progress: of reading them
    Raises: BadBundle for a file that differs from its manifest; BadInput for a target without engines
    """
    manifest = bundle.manifest
    listed = list(manifest.files) if graphs else _needed_by_engines(bundle)
    files = {name: ReleaseFile(bundle.file(name), manifest.files[name]) for name in listed}
    others = [bundle.path / MANIFEST_NAME, *(path for target in targets for path in _engine_files(bundle, target))]
    size_bytes = sum(file.info.size_bytes for file in files.values()) + sum(path.stat().st_size for path in others)
    with progress("check the bundle", None) as advance:
        grown = counting(advance, size_bytes)
        bundle.verify(listed, advance=grown)
        for path in others:
            files[path.relative_to(bundle.path).as_posix()] = _described(bundle, path, grown)
    return {f"{BUNDLE_FOLDER}/{name}": file for name, file in sorted(files.items())}


def objects_of(files: Mapping[str, ReleaseFile], without: frozenset[str] = frozenset()) -> Iterator[StoredObject]:
    """Each content once, in the order of an archive; `without`: SHA-256 of those that are left out."""
    by_digest = {file.info.sha256: file for file in files.values()}
    for digest in sorted(by_digest.keys() - without):
        file = by_digest[digest]
        yield StoredObject(digest, file.info.size_bytes, file.pieces)


def _needed_by_engines(bundle: Bundle) -> list[str]:
    """The token embedding of every variant, and the tokenizer."""
    embeddings = {variant.embedding for variant in bundle.manifest.variants.values()}
    return sorted(embeddings | ({bundle.manifest.tokenizer} if bundle.manifest.tokenizer else set()))


def _engine_files(bundle: Bundle, target: str) -> Iterator[Path]:
    found = [engine_paths(bundle.path, target, graph.name) for graph in graphs_of(bundle.spec)]
    missing = [engine.name for engine, manifest, _ in found if not (engine.is_file() and manifest.is_file())]
    if missing:
        there = sorted({path.parent.name for path in (bundle.path / "engines").glob("*/*.engine.json")})
        raise BadInput(
            f"{bundle.path} lacks {', '.join(missing)} for target {target!r}; it has engines for "
            f"{', '.join(there) or 'none'}. Build them: {bundle.build_command(target)}"
        )
    for paths in found:
        yield from (path for path in paths if path.is_file())


def _described(bundle: Bundle, path: Path, advance: Grown) -> ReleaseFile:
    status = require_loadable(path, bundle.roots, "pack the bundle again")
    if status.st_size == 0:
        raise BadBundle(f"{path} is empty; build it again")
    return ReleaseFile(path, FileInfo(status.st_size, file_digest(path, advance)))
