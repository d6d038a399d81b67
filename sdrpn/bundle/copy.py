"""Copy a bundle to a writable folder. Knows nothing about the content of its files."""

from __future__ import annotations

import shutil
from pathlib import Path

from sdrpn.bundle.bundle import MANIFEST_NAME, Bundle
from sdrpn.host.atomic import replacing_directory, require_free_space, require_new_directory

__all__ = ["copy_bundle", "is_copy", "require_copyable"]


def copy_bundle(bundle: Bundle, out: Path) -> Path:
    """Copy the files that the manifest lists, not what `sdrpn build` added. An existing copy is left as it is.

    Returns: `out`
    Raises: BadInput if `out` holds anything else, BadBundle if a file is missing, RunFailed if the disk is full
    """
    if is_copy(bundle, out):
        return out
    files = bundle.manifest.files
    require_free_space(out, sum(file.size_bytes for file in files.values()))
    with replacing_directory(out) as folder:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), folder / name)
        shutil.copyfile(bundle.path / MANIFEST_NAME, folder / MANIFEST_NAME)
    return out


def require_copyable(bundle: Bundle, out: Path) -> None:
    """Raise BadInput where `out` could not become a copy, before anything is written."""
    if not is_copy(bundle, out):
        require_new_directory(out)


def is_copy(bundle: Bundle, out: Path) -> bool:
    """Whether `out` is a copy of this bundle, apart from engines: the manifests, with all digests, are equal."""
    try:
        return (out / MANIFEST_NAME).read_bytes() == (bundle.path / MANIFEST_NAME).read_bytes()
    except OSError:
        return False
