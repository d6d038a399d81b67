"""Find models by name on Hugging Face's hub: in the local cache, and downloaded where that is allowed.

The only module that imports huggingface_hub, and only when a name is looked up.
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
# Files that show that a snapshot is a model; the cache may have only some of a repository's files.
_MARKS = ("config.json", "manifest.json", "adapter_config.json", "rpn.json")
# Weights of other frameworks, and files that are not weights.
_NEVER_READ = ("*.h5", "*.msgpack", "*.ot", "*.gguf", "*.pth", "*.onnx_data", "*.md", "optimizer*", "training_args.bin")


def model_folder(name: str | Path, *, download: bool = False) -> Path:
    """The folder that `name` refers to: an existing folder, else the model of this name in the hub's local cache.

    Only a str can be a hub name: a Path, or a str that is not a valid hub name, is a path, whether or not it exists.

    Args:
        download: fetch missing files
    Raises: BadInput where it is not in the cache and `download` is false, or is not on the hub; RunFailed where
        fetching failed; MissingDependency where huggingface_hub is needed and not installed.
    """
    path = Path(name)
    if not isinstance(name, str) or _HUB_ID.fullmatch(name) is None or path.exists():
        return path
    if _library() is None and not download:
        return path
    return hub_folder(name, download=download)


def hub_folder(name: str, *, download: bool = False) -> Path:
    """The snapshot of a model on the hub; see `model_folder`."""
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise BadInput(f"{name} is not a name on the hub; expected ORGANISATION/MODEL, or ORGANISATION/MODEL@REVISION")
    library = _library()
    if library is None:
        raise MissingDependency(f"{name} is not a folder here, and a model on the hub needs: pip install 'sdrpn[hub]'")
    cached = _cached(library, match["id"], match["revision"])
    if cached is not None and not download:
        return cached
    if download:
        return _downloaded(library, match["id"], match["revision"])
    cache = importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE
    raise BadInput(
        f"{name} is neither a folder here nor in Hugging Face's cache ({cache}); download it, or name a folder",
        options=("download",),
    )


def _library() -> Any:
    """huggingface_hub; None where it is not installed."""
    try:
        library = importlib.import_module("huggingface_hub")
        library.snapshot_download  # noqa: B018  # a folder of that name on sys.path can be imported, too
    except (ImportError, AttributeError):
        return None
    return library


def _cached(library: Any, repository: str, revision: str | None) -> Path | None:
    """The cached snapshot, if it has one of the files that show that it is a model."""
    try:
        found = library.snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=_MARKS)
    except (OSError, ValueError):  # the base classes of all cache errors
        return None
    folder = Path(found)
    return folder if any((folder / mark).exists() for mark in _MARKS) else None


def _downloaded(library: Any, repository: str, revision: str | None) -> Path:
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        files = library.list_repo_files(repository, revision=revision)
        ignored = [*_NEVER_READ, *(["pytorch_model*"] if any(file.endswith(".safetensors") for file in files) else [])]
        return Path(library.snapshot_download(repository, revision=revision, ignore_patterns=ignored))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:  # the first also for gated models
        raise BadInput(
            f"{repository} is not on the hub, or you have no access ({_first_line(error)}); check its name, and log in "
            f"with `hf auth login` where it is private or gated"
        ) from error
    except Exception as error:  # the HTTP library depends on the release of huggingface_hub
        raise RunFailed(f"{repository} could not be downloaded ({_first_line(error)}); try again") from error


def _first_line(error: Exception) -> str:
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)
