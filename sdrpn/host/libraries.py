"""Which libraries are installed, which are required, and the command that installs the missing ones.

None of them is imported for this: versions come from the metadata of installed packages. Requirements are read from
the metadata of this package, so pyproject.toml stays the only list.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from sdrpn.errors import MissingDependency

__all__ = [
    "BASE",
    "EXTRAS",
    "TENSORRT_MODULES",
    "Extra",
    "Library",
    "importing_extra",
    "install_command",
    "installed_version",
    "read_extras",
    "satisfies",
    "tensorrt_module",
]

# The name of the base install beside the extras.
BASE = "base"

# What each extra of pyproject.toml is for.
EXTRAS: Mapping[str, str] = {
    BASE: "answer on a CPU with ONNX Runtime",
    "openvino": "answer on a CPU with OpenVINO",
    "cuda": "answer on an NVIDIA GPU with ONNX Runtime",
    "device": "answer with engines on Jetson, with JetPack's TensorRT",
    "tensorrt": "TensorRT for datacenter GPUs and Jetson",
    "tensorrt-rtx": "TensorRT-RTX: compile without a GPU, run on RTX GPUs",
    "export": "export checkpoints to bundles",
    "train": "the model in PyTorch: verify, training",
    "nvimgcodec": "decode JPEG files on an NVIDIA GPU",
    "heif": "HEIC pictures",
    "video": "videos, cameras and streams",
    "hub": "models by their names on Hugging Face's hub",
    "serve": "an HTTP server",
    "release": "sign releases, and check signatures",
    "mcp": "tools for agents (MCP)",
    "otel": "traces of a server (OpenTelemetry)",
    "ray": "a rack of servers, and jobs over many pictures, with Ray",
    "dev": "run the tests, linters and type checker",
}

# Other distributions of the same library, for a newer CUDA or from the system's packages.
_ALSO_INSTALLED_AS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx-cu13-libs": ("tensorrt-rtx-cu12-libs", "tensorrt-rtx"),
    "tensorrt-rtx-cu13-bindings": ("tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
    "cuda-python": ("cuda-bindings",),
}

# The second name is that of the bindings of TensorRT-RTX without the metapackage.
TENSORRT_MODULES: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}

VersionOf = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Library:
    """One library: the installed and the required version."""

    name: str
    version: str | None
    wanted: str
    good: bool
    extras: tuple[str, ...]  # the extras that require it


@dataclass(frozen=True)
class Extra:
    """One extra: what it is for and what it lacks."""

    name: str
    gives: str
    libraries: tuple[Library, ...]
    command: str

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of libraries that are missing or of an unsupported version."""
        return tuple(library.name for library in self.libraries if not library.good)

    @property
    def complete(self) -> bool:
        """Whether no library is missing."""
        return not self.missing


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, also under another of its names; None if absent."""
    for candidate in (name, *_ALSO_INSTALLED_AS.get(name, ())):
        try:
            return distribution(candidate).version
        except PackageNotFoundError:
            continue
    return None


def read_extras(
    requirement_lines: Sequence[str] | None = None, version_of: VersionOf = installed_version
) -> dict[str, Extra]:
    """The base install and every extra, by name.

    Args:
        requirement_lines: requirements as in the metadata (None: those of the installed package)
        version_of: returns the installed version of a distribution, or None
    """
    entries = _entries(_own_requirements() if requirement_lines is None else requirement_lines)
    asked_by: dict[str, list[str]] = {}
    for extra, requirements in entries.items():
        for requirement in requirements:
            names = asked_by.setdefault(requirement.name, [])
            if extra not in names:  # an extra may include two that need the same library
                names.append(extra)

    def library(requirement: Requirement) -> Library:
        version, wanted = version_of(requirement.name), str(requirement.specifier)
        good = version is not None and satisfies(version, wanted)
        return Library(requirement.name, version, wanted, good, tuple(asked_by[requirement.name]))

    return {  # an extra may include two others with the same requirement
        extra: Extra(extra, gives, tuple(dict.fromkeys(map(library, entries.get(extra, ())))), install_command(extra))
        for extra, gives in EXTRAS.items()
    }


@contextmanager
def importing_extra(extra: str, purpose: str) -> Iterator[None]:
    """Context manager around imports that need an extra: names a missing library and the command that installs it.

    with importing_extra("export", "sdrpn export"):
        from sdrpn.export import export_bundle

    Raises: MissingDependency instead of an ImportError about another package; those about sdrpn's modules pass.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library == "sdrpn":
            raise
        lack = f"needs {library}, which is not installed; install it"
        if not isinstance(error, ModuleNotFoundError):
            reason = " ".join(str(error).split())
            lack = f"cannot import {library or 'a library'} ({reason}); install a supported version"
        raise MissingDependency(f"{purpose} {lack}: pip install 'sdrpn[{extra}]'") from error


def tensorrt_module(flavour: str, attribute: str) -> Any:
    """Import TensorRT or TensorRT-RTX; None where no module with this attribute is installed.

    Args:
        flavour: one of TENSORRT_MODULES
        attribute: an attribute of the library, to reject a folder of the same name, which imports as an empty package
    """
    for name in TENSORRT_MODULES[flavour]:
        with suppress(ImportError):
            library = import_module(name)
            if hasattr(library, attribute):
                return library
    return None


def install_command(extra: str = BASE) -> str:
    """The command that installs an extra of this package into this Python, with the tool that installed the package and
    from the same source: a checkout (`pip install -e`), a file or folder, or the index."""
    wanted = _source(extra)
    prefix = Path(sys.prefix)
    if prefix.parent.parts[-2:] == ("uv", "tools"):
        return shlex.join(["uv", "tool", "install", "--force", *wanted])
    if prefix.parent.parts[-2:] == ("pipx", "venvs"):
        return shlex.join(["pipx", "install", "--force", *(["--editable", wanted[1]] if wanted[0] == "-e" else wanted)])
    if importlib.util.find_spec("pip") is None:  # environments made by uv have no pip
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, *wanted])
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def _source(extra: str) -> list[str]:
    """The requirement to pass to an installer: the name or path of the package, followed by the extra."""
    suffix = "" if extra == BASE else f"[{extra}]"
    try:
        text = distribution("sdrpn").read_text("direct_url.json")
    except PackageNotFoundError:
        text = None
    origin = json.loads(text or "{}")
    url = str(origin.get("url", ""))
    if not url.startswith("file:"):
        return [f"sdrpn{suffix}"]
    path = unquote(urlsplit(url).path)
    return ["-e", f"{path}{suffix}"] if origin.get("dir_info", {}).get("editable") else [f"{path}{suffix}"]


def _own_requirements() -> Sequence[str]:
    try:
        return distribution("sdrpn").requires or ()
    except PackageNotFoundError:  # a source tree that is not installed
        return ()


def satisfies(version: str, wanted: str) -> bool:
    """Whether an installed version fits bounds such as ">=1.24,<2"; pre-releases count as the release."""
    try:
        return SpecifierSet(wanted).contains(Version(version).base_version)
    except InvalidVersion:  # a custom build: assume that it works
        return True


def _entries(lines: Sequence[str]) -> dict[str, list[Requirement]]:
    """The requirements that pip would install on this machine, by extra; included extras are expanded."""
    entries: dict[str, list[Requirement]] = {BASE: []}
    included: list[tuple[str, str]] = []
    for line in lines:
        requirement = Requirement(line)
        found = re.search(r"\bextra\s*==\s*['\"]([^'\"]+)['\"]", line)
        extra = found.group(1) if found else BASE
        entries.setdefault(extra, [])
        if requirement.marker is not None and not requirement.marker.evaluate(
            {"extra": extra, "platform_machine": platform.machine()}
        ):
            continue
        if requirement.name == "sdrpn":
            included += [(extra, inner) for inner in sorted(requirement.extras)]
        else:
            entries[extra].append(requirement)
    return {
        outer: [requirement for extra in _closure(outer, included) for requirement in entries[extra]]
        for outer in entries
    }


def _closure(extra: str, included: Sequence[tuple[str, str]]) -> list[str]:
    names = [extra]
    for name in names:  # the list grows during the loop
        names += [inner for outer, inner in included if outer == name and inner not in names]
    return names
