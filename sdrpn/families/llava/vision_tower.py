"""Find the folder of a checkpoint's vision tower on this machine. Downloads nothing."""

from __future__ import annotations

import os
from pathlib import Path

from sdrpn.checkpoint.model_file import short
from sdrpn.errors import BadCheckpoint

__all__ = ["find_vision_tower"]


def find_vision_tower(checkpoint: Path, name: str, given: Path | None) -> Path:
    """Find the folder that `mm_vision_tower` refers to.

    Args:
        checkpoint: the checkpoint's folder
        name: a path (absolute, or relative to the checkpoint) or a hub name that is in Hugging Face's local cache
        given: a folder that the caller names instead
    Raises BadCheckpoint where no such folder exists, and names the places that were searched.
    """
    if given is not None:
        if os.path.isfile(given / "config.json"):  # noqa: PTH113  # a name may be any text, too long or with a NUL
            return given
        raise BadCheckpoint(f"the vision tower {given} has no config.json; expected the folder of a CLIP model")
    places = [checkpoint / name, *_cached(name)]  # an absolute name replaces the checkpoint's folder
    for place in places:
        if os.path.isfile(place / "config.json"):  # noqa: PTH113
            return place
    raise BadCheckpoint(
        f"the vision tower {short(name)} of {checkpoint} is not on this machine (searched "
        f"{short(places[0])} and {_hub_cache()}); download it and name its folder",
        options=("vision_tower",),
    )


def _hub_cache() -> Path:
    """The download cache of huggingface_hub, by the same environment variables in the same order."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME", f"{cache}/huggingface")).expanduser() / "hub"


def _cached(name: str) -> list[Path]:
    """Downloaded snapshots of a hub name: first the one that `main` points to, then the others."""
    parts = name.split("/")
    if len(parts) != 2 or not all(part.strip(".") for part in parts):  # not "owner/name"
        return []
    repository = _hub_cache() / f"models--{parts[0]}--{parts[1]}"
    snapshots = repository / "snapshots"
    main = repository / "refs" / "main"
    newest = [snapshots / main.read_text("utf-8").strip()] if main.is_file() else []
    return newest + (sorted(snapshots.iterdir()) if snapshots.is_dir() else [])
