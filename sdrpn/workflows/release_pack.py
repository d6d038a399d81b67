"""Make releases: pack a bundle into an archive, sign it, verify it, and make a delta. Moves contents in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.bundle.engine_manifest import EngineManifest
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.listed_files import FileInfo
from sdrpn.host.progress import ShowProgress, counting, show_nothing
from sdrpn.release.archive import Archive, StoredObject, open_archive, write_archive
from sdrpn.release.content import ReleaseFile, bundle_files, objects_of
from sdrpn.release.documents import provenance_bytes, sbom_bytes
from sdrpn.release.index import CPU, PROVENANCE_NAME, SBOM_NAME, Needs, ReleaseIndex, text_from_time
from sdrpn.release.installed import InstalledRelease, read_installed, unsigned
from sdrpn.release.keys import load_private_key, load_public_keys
from sdrpn.release.signature import require_signed_by, sign_index
from sdrpn.release.store import store_of
from sdrpn.release.trust import require_fresh
from sdrpn.runtime.engines.engine_set import EngineSet, engine_set
from sdrpn.runtime.engines.preflight import device_bytes
from sdrpn.workflows.memory_plan import PlanRequest, plan_bundle

__all__ = ["PackRequest", "PackedRelease", "pack_release", "sign_release", "verify_release"]


@dataclass(frozen=True)
class PackRequest(CheckedFields):
    """What becomes a release.

    source: a bundle (`demo`: the shipped one), or an archive, of which a delta is made. name, version: of the release;
    None for an archive, which has both. targets: whose engines it takes. graphs: whether it takes the ONNX graphs,
    without which only engines answer. created, expires_in_days (0: never): when, and for how long devices install it.
    against: an archive, a release or a store that has what the delta leaves out.
    """

    source: Path | str
    out: Path
    created: datetime
    name: str | None = None
    version: int | None = None
    targets: tuple[str, ...] = ()
    graphs: bool = True
    expires_in_days: int = 365
    against: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expires_in_days < 0:
            raise BadInput(
                f"expires_in_days is {self.expires_in_days}; expected 1 or more, or 0: it never expires",
                options=("expires_in",),
            )
        if not self.graphs and not self.targets:
            raise BadInput("a release without graphs needs engines; name at least one target", options=("target",))


@dataclass(frozen=True)
class PackedRelease:
    """A release in an archive, or in a folder. missing_bytes: of the contents that a delta leaves out."""

    path: str
    id: str
    name: str
    version: int
    created: str
    expires: str | None
    targets: tuple[str, ...]  # or cpu
    files: int
    size_bytes: int  # of the archive; of a folder that of its contents
    missing_bytes: int
    key_id: str | None  # of the key that signed it; None: not signed
    trusted: bool = False  # whether the signature was checked with a trusted key


def pack_release(request: PackRequest, *, progress: ShowProgress = show_nothing) -> PackedRelease:
    """Write an archive. Raises BadBundle, BadInput or RunFailed; nothing is left behind then.

    Args: progress: of reading and writing, in bytes
    """
    left_out = frozenset(() if request.against is None else _index_at(request.against).sizes)
    source = bundle_path(request.source)
    if source.is_file():
        return _delta(source, request, left_out, progress)
    if request.name is None or request.version is None:
        raise BadInput("a release of a bundle needs a name and a version", options=("name", "version"))
    bundle = open_bundle(source)
    engines = {target: _complete(engine_set(bundle, target)) for target in request.targets}
    if request.graphs:
        bundle.require_graphs("in the release")
    files = bundle_files(bundle, request.targets, graphs=request.graphs, progress=progress)
    created = text_from_time(request.created)
    needs = tuple(_needs(bundle, engines, graphs=request.graphs))
    files |= _documents(request.name, request.version, created, bundle, files, engines)
    index = ReleaseIndex(
        name=request.name,
        version=request.version,
        created=created,
        expires=_expiry(request),
        needs=needs,
        files={name: file.info for name, file in sorted(files.items())},
        tools={**bundle.manifest.tools, "sdrpn": version("sdrpn")},
    )
    size = _written(request.out, index, None, objects_of(files, left_out), left_out, progress)
    return _described(request.out, index, size, _missing_bytes(index, left_out), None)


def sign_release(
    path: Path,
    key: Path,
    *,
    password: bytes | None = None,
    out: Path | None = None,
    progress: ShowProgress = show_nothing,
) -> PackedRelease:
    """Write the archive again with a signature, in place of one that it may have. Raises as `verify_release`.

    Args:
        key: private key, in a PEM file
        out: the signed archive; None: the same file
        progress: of reading and writing, in bytes
    """
    private = load_private_key(key, password)
    target, missing = path if out is None else out, _Missing()
    with open_archive(path) as archive:
        signature = sign_index(archive.index, private)
        size = _written(target, archive.index, signature, missing.watched(archive), frozenset(), progress)
        return _described(target, archive.index, size, missing.size_bytes(archive), private.public.id)


def verify_release(
    path: Path, keys: Sequence[Path] = (), *, now: datetime | None = None, progress: ShowProgress = show_nothing
) -> PackedRelease:
    """Check every byte of an archive, or every file of an installed release.

    Args:
        path: an archive, the folder of a release, or a store, whose current release is meant
        keys: public keys; one of them must have signed it. Empty: a signature is only compared with the files
        now: refuse a release that has expired by then; None: do not ask
        progress: of reading, in bytes
    Raises: BadBundle where something was changed, the signature is missing or another's; BadInput
    """
    trusted = load_public_keys(keys)
    if path.is_dir():
        release = _installed(path)
        if trusted:
            release.require_signed(trusted)
        if now is not None:
            require_fresh(release.index, now, path)
        size_bytes = sum(file.size_bytes for file in release.index.files.values())
        with progress("verify", None) as advance:
            release.verify(advance=counting(advance, size_bytes))
        return _described(path, release.index, release.index.size_bytes, 0, release.key_id, bool(trusted))
    missing = _Missing()
    with open_archive(path) as archive:
        if trusted:
            if archive.signed is None:
                raise unsigned(path)
            require_signed_by(archive.signed, trusted, archive.index, path)
        if now is not None:
            require_fresh(archive.index, now, path)
        with progress("verify", None) as advance:
            grown = counting(advance, path.stat().st_size)
            for stored in missing.watched(archive):
                for piece in stored.pieces():
                    grown(len(piece))
        key_id = None if archive.signed is None else archive.signed.key_id
        left_out = missing.size_bytes(archive)
        return _described(path, archive.index, path.stat().st_size, left_out, key_id, bool(trusted))


class _Missing:
    """Notes which contents an archive has while it is read."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def watched(self, archive: Archive) -> Iterator[StoredObject]:
        """Its contents, as they are read."""
        for stored in archive.objects():
            self._seen.add(stored.sha256)
            yield stored

    def size_bytes(self, archive: Archive) -> int:
        """Size of the contents that were not there."""
        return sum(size for digest, size in archive.index.sizes.items() if digest not in self._seen)


def _delta(source: Path, request: PackRequest, left_out: frozenset[str], progress: ShowProgress) -> PackedRelease:
    """An archive without what another release has; index and signature stay, so that it needs no key."""
    if request.against is None:
        raise BadInput(
            f"{source} is packed already; name the release that a delta is made against", options=("against",)
        )
    if request.name is not None or request.version is not None or request.targets or not request.graphs:
        raise BadInput(f"{source} has its name, version and content; only a bundle is given others")
    with open_archive(source) as archive:
        wanted = (stored for stored in archive.objects() if stored.sha256 not in left_out)
        size = _written(request.out, archive.index, archive.signature, wanted, left_out, progress)
        key_id = None if archive.signed is None else archive.signed.key_id
        return _described(request.out, archive.index, size, _missing_bytes(archive.index, left_out), key_id)


def _written(
    path: Path,
    index: ReleaseIndex,
    signature: bytes | None,
    objects: Iterable[StoredObject],
    left_out: frozenset[str],
    progress: ShowProgress,
) -> int:
    """As `write_archive`. left_out: SHA-256 of contents that are not written."""
    with progress("write", None) as advance:
        size_bytes = index.size_bytes - _missing_bytes(index, left_out)
        return write_archive(path, index, signature, objects, counting(advance, size_bytes))


def _missing_bytes(index: ReleaseIndex, left_out: frozenset[str]) -> int:
    return sum(size for digest, size in index.sizes.items() if digest in left_out)


def _index_at(path: Path) -> ReleaseIndex:
    """The index of an archive, a release or a store. Raises BadInput or BadBundle."""
    if path.is_dir():
        return _installed(path).index
    with open_archive(path) as archive:
        return archive.index


def _installed(path: Path) -> InstalledRelease:
    store = store_of(path)
    current = None if store is None else store.current
    return read_installed(path) if current is None else current


def _complete(engines: EngineSet) -> EngineSet:
    """Raises BadInput for engines that are missing or whose manifests cannot be trusted."""
    faults = [engine.fault for engine in engines.engines.values() if engine.fault is not None]
    if faults:
        raise BadInput(faults[0])
    if engines.missing:
        raise BadInput(
            f"{engines.bundle.path} has no engine of {', '.join(engines.missing)} for target {engines.target!r}; "
            f"build it: {engines.build_command}"
        )
    return engines


def _needs(bundle: Bundle, engines: Mapping[str, EngineSet], *, graphs: bool) -> list[Needs]:
    found = []
    if graphs and any(not variant.for_engines_only for variant in bundle.manifest.variants.values()):
        found.append(Needs(CPU, plan_bundle(PlanRequest(bundle.path)).needs.total_bytes))
    for target, own in engines.items():
        first = next(iter(own.manifests.values()))
        found.append(
            Needs(
                target,
                device_bytes(own, None),
                first.compute_capabilities,
                first.flavour,
                first.library_version,
                first.machine if first.flavour == "tensorrt" else None,
            )
        )
    if not found:
        raise BadInput(f"{bundle.path} has graphs for engines only; name at least one target", options=("target",))
    return found


def _documents(
    name: str,
    number: int,
    created: str,
    bundle: Bundle,
    files: Mapping[str, ReleaseFile],
    engines: Mapping[str, EngineSet],
) -> dict[str, ReleaseFile]:
    infos = {path: file.info for path, file in files.items()}
    built: dict[str, list[EngineManifest]] = {target: list(own.manifests.values()) for target, own in engines.items()}
    contents = {
        SBOM_NAME: sbom_bytes(name, number, created, bundle.manifest, infos, built),
        PROVENANCE_NAME: provenance_bytes(created, bundle.manifest, infos, built),
    }
    return {
        path: ReleaseFile(content, FileInfo(len(content), hashlib.sha256(content).hexdigest()))
        for path, content in contents.items()
    }


def _expiry(request: PackRequest) -> str | None:
    days = request.expires_in_days
    if not days:
        return None
    try:
        return text_from_time(request.created + timedelta(days=days))
    except OverflowError as error:
        raise BadInput(
            f"expires_in_days is {days}, which is after the year 9999; expected fewer, or 0: it never expires",
            options=("expires_in",),
        ) from error


def _described(
    path: Path, index: ReleaseIndex, size: int, missing: int, key_id: str | None, trusted: bool = False
) -> PackedRelease:
    return PackedRelease(
        path=str(path),
        id=index.id,
        name=index.name,
        version=index.version,
        created=index.created,
        expires=index.expires,
        targets=tuple(needs.target for needs in index.needs),
        files=len(index.files),
        size_bytes=size,
        missing_bytes=missing,
        key_id=key_id,
        trusted=trusted,
    )
