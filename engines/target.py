"""Device recipes: which GPU, which TensorRT, which graphs. Knows nothing about bundles; imports no TensorRT."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sdrpn.bundle import numerics
from sdrpn.errors import BadInput
from sdrpn.host.suggestion import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FlavourName", "Target", "read_target", "read_targets", "release"]

FlavourName = Literal["tensorrt", "tensorrt-rtx"]

_FOLDER = Path(__file__).parent / "targets"
_CHOICES = {
    "flavour": ("tensorrt", "tensorrt-rtx"),
    "dialect": numerics.DIALECT_NAMES,
    "built": ("here", "device"),
}
# Precision -> the lowest compute capability with kernels for it.
_PRECISIONS: Mapping[str, int] = {
    row.name: row.least_capability for row in numerics.PRECISIONS.values() if row.least_capability is not None
}
# The first release whose parser supports all of RMSNormalization, RotaryEmbedding, TensorScatter and Attention.
_FUSED_MIN = "10.15"


@dataclass(frozen=True)
class Target:
    """One device recipe."""

    name: str
    device: str
    compute_capabilities: tuple[str, ...]  # in TensorRT-RTX's spelling: SM86
    flavour: FlavourName
    tensorrt_min: str  # the first supported release
    dialect: str
    precisions: tuple[str, ...]  # useful on this device, best first
    memory_gb: float  # of the device, in 1e9 bytes
    unified_memory: bool  # shared between CPU and GPU
    built: Literal["here", "device"]  # here: on any x86-64 machine, without a GPU
    tensorrt_below: str = ""  # the first release that is not supported any more; empty: none known
    note: str = ""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _require(getattr(self, name) in choices, self, name, f"one of {', '.join(choices)}")
        capabilities = self.compute_capabilities
        good = bool(capabilities) and all(re.fullmatch(r"SM\d{2,3}", capability) for capability in capabilities)
        _require(good, self, "compute_capabilities", 'a list such as ["SM86"]')
        known = bool(self.precisions) and set(self.precisions) <= _PRECISIONS.keys()
        _require(known, self, "precisions", f"a list of {', '.join(_PRECISIONS)}")
        least = min(capabilities, key=lambda capability: int(capability[2:]))
        for precision in self.precisions:
            first = _PRECISIONS[precision]
            _require(int(least[2:]) >= first, self, "precisions", f"no {precision} for {least}: SM{first} is the first")
        _require(self.memory_gb > 0, self, "memory_gb", "a number above 0")
        for name, text in (("tensorrt_min", self.tensorrt_min), ("tensorrt_below", self.tensorrt_below or "0")):
            _require(re.fullmatch(r"\d+(\.\d+)*", text) is not None, self, name, 'a release such as "10.3"')
        if self.flavour == "tensorrt":
            _require(
                len(capabilities) == 1, self, "compute_capabilities", "one: TensorRT builds for the GPU it runs on"
            )
            _require(self.built == "device", self, "built", "device: TensorRT builds on the GPU itself")
            reads = self.dialect != "fused" or release(self.tensorrt_min) >= release(_FUSED_MIN)
            _require(reads, self, "tensorrt_min", f"{_FUSED_MIN} or later for the dialect fused")

    @property
    def memory_bytes(self) -> int:
        """Memory of the device in bytes."""
        return int(self.memory_gb * 1e9)

    def accepts(self, version: str) -> bool:
        """Whether a release of TensorRT is in the target's range."""
        here = release(version)
        return release(self.tensorrt_min) <= here and (not self.tensorrt_below or here < release(self.tensorrt_below))

    def may_write_scores(self, dialect: str) -> bool:
        """Whether attention may be unfused and store its scores: for `primitive` graphs with plain TensorRT, which
        was not tested.
        """
        return self.flavour == "tensorrt" and dialect == "primitive"

    @property
    def versions(self) -> str:
        """The range of releases, as text."""
        return f">={self.tensorrt_min}" + (f",<{self.tensorrt_below}" if self.tensorrt_below else "")


def read_targets() -> dict[str, Target]:
    """The targets shipped with the package, by name."""
    return {path.stem: _read(path) for path in sorted(_FOLDER.glob("*.toml"))}


def read_target(name: str) -> Target:
    """A target shipped with the package, or the one that a file describes (a path that ends in .toml).

    Raises: BadInput for an unknown name, or a file that is not a target
    """
    if name.endswith(".toml"):
        return _read(Path(name))
    path = _FOLDER / f"{name}.toml"
    if not re.fullmatch(r"[\w.-]+", name) or not path.is_file():
        known = [path.stem for path in sorted(_FOLDER.glob("*.toml"))]
        raise BadInput(
            f"there is no target {name!r}{did_you_mean(name, known)}; known targets are {', '.join(known)}; or name a "
            f".toml file (see docs/engines.md)"
        )
    return _read(path)


def release(version: str) -> tuple[int, ...]:
    """10.16.1.11 -> (10, 16, 1, 11); suffixes are dropped."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _read(path: Path) -> Target:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); expected a target file") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise BadInput(f"{path} is not a target file ({error}); see docs/engines.md for the entries") from error
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", path.stem):
        raise BadInput(f"{path}: the file's name is the target's; expected letters, digits, dots and dashes")
    return Target(**_checked(path, value), name=path.stem)


def _checked(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, with lists as tuples. Raises BadInput for a missing or unknown entry, or one of a wrong type."""
    entries = {field.name: str(field.type) for field in fields(Target) if field.name != "name"}
    missing = [name for name in entries if name not in value and name not in ("tensorrt_below", "note")]
    unknown = [name for name in value if name not in entries]
    for what, names in (("lacks", missing), ("has unknown entries", unknown)):
        if names:
            raise BadInput(f"{path} {what}: {', '.join(names)}; a target has {', '.join(entries)}")
    for name, entry in value.items():
        kinds: tuple[type, ...] = (str,)
        if entries[name].startswith("tuple"):
            kinds = (list,)
        elif name == "memory_gb":
            kinds = (int, float)
        elif name == "unified_memory":
            kinds = (bool,)
        fits = isinstance(entry, kinds) and (kinds == (bool,) or not isinstance(entry, bool))
        if not fits or (kinds == (list,) and not all(isinstance(element, str) for element in entry)):
            raise BadInput(f"{path}: {name} is {entry!r}, expected {_kind_named(kinds)}")
    return {name: tuple(entry) if isinstance(entry, list) else entry for name, entry in value.items()}


def _kind_named(kinds: tuple[type, ...]) -> str:
    return {str: "text", list: "a list of text", bool: "true or false"}.get(kinds[0], "a number")


def _require(good: bool, target: Target, name: str, expected: str) -> None:
    if not good:
        raise BadInput(f"target {target.name}: {name} is {getattr(target, name)!r}; expected {expected}")
