"""A release as a folder: read its index and signature, and check its files. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdrpn.errors import BadBundle, BadInput
from sdrpn.host.links import link_roots
from sdrpn.host.listed_files import ListedFiles, errors_of, require_loadable
from sdrpn.host.progress import Grown, uncounted
from sdrpn.release.index import BUNDLE_FOLDER, INDEX_NAME, SIGNATURE_NAME, ReleaseIndex, index_from_bytes
from sdrpn.release.keys import PublicKey, load_public_keys
from sdrpn.release.signature import read_signature, require_signed_by

__all__ = ["InstalledRelease", "read_installed", "require_signed_bundle", "unsigned"]

_AGAIN = "install the release again"


@dataclass(frozen=True)
class InstalledRelease:
    """A release in a folder whose index was read. `key_id`: of the key that its signature names; None: it has none."""

    folder: Path
    index: ReleaseIndex
    signature: bytes | None
    key_id: str | None

    @property
    def bundle(self) -> Path:
        """The bundle in it."""
        return self.folder / BUNDLE_FOLDER

    def verify(self, *, large: bool = True, advance: Grown = uncounted) -> None:
        """Compare its files with the index: sizes, and digests of all files or of the small ones only. Raises
        BadBundle."""
        self.listed.verify(self.index.files, large=large, advance=advance)

    @property
    def listed(self) -> ListedFiles:
        """Its files, by their names in the index."""
        roots = link_roots(self.folder)
        return ListedFiles(self.folder, self.folder / INDEX_NAME, self.index.files, roots, _AGAIN)

    def require_signed(self, keys: Sequence[PublicKey]) -> PublicKey:
        """The key, of these, that signed it. Raises BadBundle."""
        if self.signature is None:
            raise unsigned(self.folder)
        return require_signed_by(read_signature(self.signature, self.folder), keys, self.index, self.folder)


def read_installed(folder: Path) -> InstalledRelease:
    """Read index and signature of a folder. Raises BadBundle or BadInput; verifies nothing."""
    index_path, signature_path = folder / INDEX_NAME, folder / SIGNATURE_NAME
    if not index_path.is_file():
        raise BadInput(f"{folder} is not a release: it has no {INDEX_NAME}; expected a folder of an installed release")
    index = index_from_bytes(_read(index_path), folder)
    if not signature_path.exists():
        return InstalledRelease(folder, index, None, None)
    signature = _read(signature_path)
    return InstalledRelease(folder, index, signature, read_signature(signature, folder).key_id)


def require_signed_bundle(bundle: Path, keys: Sequence[Path], *, large: bool = True) -> None:
    """Raise BadBundle unless a bundle lies in a release that one of these public keys signed, unchanged.

    Args:
        bundle: its folder
        large: also check the digests of large files
    """
    loaded = load_public_keys(keys)
    folder = bundle.resolve().parent
    if bundle.resolve().name != BUNDLE_FOLDER or not (folder / INDEX_NAME).is_file():
        raise BadBundle(
            f"{bundle} is not part of a release, and only signed ones are allowed here; install one: "
            "`sdrpn release install`"
        )
    release = read_installed(folder)
    release.require_signed(loaded)
    release.verify(large=large)


def unsigned(where: Path) -> BadBundle:
    """The error for a release without a signature where one is needed."""
    return BadBundle(f"{where} is not signed, and only signed releases are allowed here; sign it: `sdrpn release sign`")


def _read(path: Path) -> bytes:
    with errors_of(path, _AGAIN):
        require_loadable(path, link_roots(path.parent), _AGAIN)
        return path.read_bytes()
