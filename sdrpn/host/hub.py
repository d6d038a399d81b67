"""Models by their names on Hugging Face's hub: in the local cache, and downloaded where that is allowed.

The one room that imports huggingface_hub, and only when a name is looked up.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput, MissingDependency, RunFailed

__all__ = ["hub_folder", "model_folder"]

# ORGANISATION/MODEL, or ORGANISATION/MODEL@REVISION; the hub's own rule for names.
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?", re.ASCII)
# What one of the two kinds of model has. The cache may hold the rest of a repository or not.
_MARKS = ("config.json", "manifest.json", "adapter_config.json", "rpn.json")
# Weights of other frameworks, and what is no weight.
_NEVER_READ = ("*.h5", "*.msgpack", "*.ot", "*.gguf", "*.pth", "*.onnx_data", "*.md", "optimizer*", "training_args.bin")


def model_folder(name: str | Path, *, download: bool = False) -> Path:
    """The folder that `name` means: a folder here, else what the hub has by this name, in the local cache.

    Only a text is a name: a Path, or what could be none of the hub's, is a path, whether or not anything is there.

    Args:
        download: fetch what is not in the cache
    Raises: BadInput where it is not in the cache and may not be fetched, or is not on the hub; RunFailed where fetching
        failed; MissingDependency where it would have to be fetched without huggingface_hub.
    """
    path = Path(name)
    if not isinstance(name, str) or _HUB_ID.fullmatch(name) is None or path.exists():
        return path
    if _library() is None and not download:
        return path
    return hub_folder(name, download=download)


def hub_folder(name: str, *, download: bool = False) -> Path:
    """The snapshot of a model of the hub; see `model_folder`."""
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise BadInput(f"{name} is not a name of the hub; expected ORGANISATION/MODEL, or ORGANISATION/MODEL@REVISION")
    library = _library()
    if library is None:
        raise MissingDependency(f"{name} is not a folder here, and a model of the hub needs: pip install 'sdrpn[hub]'")
    cached = _cached(library, match["id"], match["revision"])
    if cached is not None and not download:
        return cached
    if download:
        return _downloaded(library, match["id"], match["revision"])
    cache = importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE
    raise BadInput(
        f"{name} is neither a folder here nor in Hugging Face's cache ({cache}); fetch it "
        f"with --download (in Python: download=True), or name a folder"
    )


def _library() -> Any:
    """huggingface_hub; None where it is not installed."""
    try:
        library = importlib.import_module("huggingface_hub")
        library.snapshot_download  # noqa: B018  # a folder of that name on the path imports too
    except (ImportError, AttributeError):
        return None
    return library


def _cached(library: Any, repository: str, revision: str | None) -> Path | None:
    """What is in the cache of it, if any of its files that say what it is."""
    try:
        found = library.snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=_MARKS)
    except (OSError, ValueError):  # of which all errors of a cache are
        return None
    folder = Path(found)
    return folder if any((folder / mark).exists() for mark in _MARKS) else None


def _downloaded(library: Any, repository: str, revision: str | None) -> Path:
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        files = library.list_repo_files(repository, revision=revision)
        ignored = [*_NEVER_READ, *(["pytorch_model*"] if any(one.endswith(".safetensors") for one in files) else [])]
        return Path(library.snapshot_download(repository, revision=revision, ignore_patterns=ignored))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:  # a gated one is of the first kind
        raise BadInput(
            f"{repository} is not on the hub, or not for you ({_first_line(error)}); check its name, and log in with "
            f"`hf auth login` where it is private or gated"
        ) from error
    except Exception as error:  # of the network's library, whichever this release has
        raise RunFailed(f"{repository} could not be downloaded ({_first_line(error)}); try again") from error


def _first_line(error: Exception) -> str:
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)
