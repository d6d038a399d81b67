"""A release: the part of a bundle that devices need to answer with engines, without ONNX graphs.

`examples/ci/build-engines.sh` writes one; `sdrpn release pack --no-graphs` packs it (sdrpn.release). Knows file names
only and opens no file.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from sdrpn.bundle.manifest import Manifest

__all__ = ["BUNDLE_FOLDER", "CURRENT", "INDEX_NAME", "bundle_within", "release_advice", "release_targets"]

# Of a release that was packed and installed (sdrpn.release): its index, its bundle, and the link to it in a store.
INDEX_NAME, BUNDLE_FOLDER, CURRENT = "release.json", "bundle", "current"


def bundle_within(path: Path) -> Path:
    """The bundle that a folder holds: that of a store's current release, that of a release, or the folder itself.

    The link to the current release is followed here, so that a bundle that is open stays the same when it changes.
    A folder that cannot be read is returned as it is: opening it fails with the reason.
    """
    with suppress(OSError):
        if (path / CURRENT / INDEX_NAME).is_file():
            return (path / CURRENT).resolve() / BUNDLE_FOLDER
        if (path / INDEX_NAME).is_file():
            return path / BUNDLE_FOLDER
    return path


def release_targets(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """The targets of the engines in a folder without graphs; empty if it has graphs and so is not a release."""
    graphs = (graph.file for variant in manifest.variants.values() for graph in variant.graphs.values())
    if any((folder / name).exists() for name in graphs) or (folder / "optimized").is_dir():
        return ()
    return tuple(sorted({path.parent.name for path in (folder / "engines").glob("*/*.engine.json")}))


def release_advice(folder: Path, manifest: Manifest, targets: tuple[str, ...], needed: str = "") -> str:
    """A message: what a release is, and what to do instead.

    Args:
        needed: what the graphs are needed for, such as "to build engines", and why the engines cannot be used
    """
    checkpoint = manifest.source.get("checkpoint")
    return (
        f"{folder} is a release: engines for {', '.join(targets)}, without the ONNX graphs that they were built from"
        f"{f', which are needed {needed}' if needed else ''}; answer on a GPU that the engines fit (sdrpn inspect "
        f"{shlex.quote(str(folder))} --engines says which), or take the whole bundle, as `sdrpn export` made it"
        f"{f' from {checkpoint}' if checkpoint else ''}"
    )
