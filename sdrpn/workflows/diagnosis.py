"""What this machine can run, what is missing, and the command that installs it.

The JSON form is an object with these entries, which only ever gain new ones while `format_version` is 1:
    format_version  1
    sdrpn           version of this package
    machine         sdrpn.host.machine.Machine: system, arch, python, cpu_cores, memory_bytes, gpus, jetson, ...
    libraries       list of {name, version or null, wanted, good, extras}
    providers       execution providers of the installed ONNX Runtime
    extras          list of {name, gives, complete, missing, command}
    abilities       list of {name, ready, detail, command or null}
    notes           problems of this installation, and likely ones
    plan            what the bundle that was named needs here, as `sdrpn plan --json` prints it, or null
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn import __version__
from sdrpn.bundle.graphs import Parts
from sdrpn.host.libraries import Extra, Library, install_command, installed_version, read_extras
from sdrpn.host.machine import Machine, read_machine
from sdrpn.host.native_modules import native_module, why_no_native_module
from sdrpn.runtime.backends import BACKENDS
from sdrpn.runtime.backends.info import BackendInfo
from sdrpn.runtime.backends.onnxruntime_info import onnxruntime_providers
from sdrpn.runtime.backends.openvino_info import STEPS_MODULE, has_fast_steps

if TYPE_CHECKING:
    from sdrpn.workflows.memory_plan import MemoryPlan

__all__ = ["Ability", "Diagnosis", "diagnose_machine"]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Ability:
    """A feature of the package, and whether it works here."""

    name: str
    ready: bool
    detail: str  # the library that it uses, or what is missing
    command: str | None = None  # the command that enables it, if there is one


@dataclass(frozen=True)
class Diagnosis:
    """This machine, the installed libraries, and what works here."""

    machine: Machine
    extras: Mapping[str, Extra]
    providers: tuple[str, ...]
    abilities: tuple[Ability, ...]
    notes: tuple[str, ...]
    plan: MemoryPlan | None = None  # of a bundle, where one is named

    @property
    def libraries(self) -> tuple[Library, ...]:
        """Each library once, those of the base install first."""
        every = {library.name: library for extra in self.extras.values() for library in extra.libraries}
        return tuple(every.values())

    def to_json(self) -> dict[str, object]:
        """The JSON form that the module's docstring describes."""
        return {
            "format_version": FORMAT_VERSION,
            "sdrpn": __version__,
            "machine": dataclasses.asdict(self.machine),
            "libraries": [dataclasses.asdict(library) for library in self.libraries],
            "providers": list(self.providers),
            "extras": [_extra_to_json(extra) for extra in self.extras.values()],
            "abilities": [dataclasses.asdict(ability) for ability in self.abilities],
            "notes": list(self.notes),
            "plan": None if self.plan is None else self.plan.to_json(),
        }


def diagnose_machine(bundle: Path | str | None = None, parts: Parts = "all") -> Diagnosis:
    """Find out what this machine can run, what is missing, and the command that installs it.

    Imports nothing heavier than ONNX Runtime; a broken installation is listed in the notes.

    Args:
        bundle: folder, or "demo", of which to say how much memory it needs here
        parts: of the bundle: "look": vision, trunk and RPN alone
    Raises: as `plan_memory`, of the bundle
    """
    machine, extras = read_machine(), read_extras()
    providers, problem = onnxruntime_providers(installed_version)
    return Diagnosis(
        machine=machine,
        extras=extras,
        providers=providers,
        abilities=tuple(_abilities(machine, extras)),
        notes=(*((problem,) if problem else ()), *_notes(machine)),
        plan=None if bundle is None else _plan(bundle, parts),
    )


def _plan(bundle: Path | str, parts: Parts) -> MemoryPlan:
    from sdrpn.workflows.memory_plan import plan_memory  # imports Pillow, which a broken installation may lack

    return plan_memory(bundle, parts=parts)


def _abilities(machine: Machine, extras: Mapping[str, Extra]) -> list[Ability]:
    return [
        *(_backend(info, machine) for info in BACKENDS.values()),
        _needs_library("look, videos and cameras", "av", "video"),
        _needs_extra("export", extras["export"]),
        _needs_extra("verify", extras["train"]),
        _tensorrt(machine),
        _native_image_path(),
        _native_steps(),
        _needs_library("TensorRT-RTX", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
    ]


def _backend(info: BackendInfo, machine: Machine) -> Ability:
    found = info.probe(machine, installed_version)
    return Ability(info.purpose, found.ready, found.detail, found.command)


# Modules of the native image path, and what they do.
NATIVE_PARTS = {"_native": "resize", "_native_jpeg": "JPEG by parts", "_native_cuda": "CUDA kernels"}


def _native_image_path() -> Ability:
    absent = {does: why_no_native_module(name) for name, does in NATIVE_PARTS.items()}
    first = absent[NATIVE_PARTS["_native"]]
    if first is not None:
        return Ability("native image path", ready=False, detail=f"{first}: Pillow is used (docs/native.md)")
    parts = [f"compiled: {', '.join(does for does, why in absent.items() if why is None)}"]
    parts += [f"{does}: {why}" for does, why in absent.items() if why is not None]
    return Ability("native image path", ready=True, detail="; ".join(parts))


def _native_steps() -> Ability:
    name, module = "native decode steps", native_module(STEPS_MODULE)
    if module is None:
        return Ability(
            name, ready=False, detail=f"{why_no_native_module(STEPS_MODULE)}: OpenVINO's own (docs/native.md)"
        )
    if not has_fast_steps(module):
        return Ability(name, ready=False, detail="not for this processor: OpenVINO's own are used (docs/native.md)")
    return Ability(name, ready=True, detail=f"with {module.instructions()}, for OpenVINO")


def _needs_extra(name: str, extra: Extra) -> Ability:
    if extra.complete:
        return Ability(name, ready=True, detail=", ".join(_versions(extra.libraries)))
    return Ability(name, ready=False, detail=f"missing: {', '.join(extra.missing)}", command=extra.command)


def _needs_library(name: str, library: str, extra: str) -> Ability:
    version = installed_version(library)
    if version is None:
        return Ability(name, ready=False, detail="not installed", command=install_command(extra))
    return Ability(name, ready=True, detail=f"version {version}")


def _tensorrt(machine: Machine) -> Ability:
    ability = _needs_library("TensorRT", "tensorrt", "tensorrt")
    if machine.jetson is not None and not ability.ready:
        return dataclasses.replace(ability, detail="comes with JetPack, see the notes", command=None)
    return ability


def _notes(machine: Machine) -> list[str]:
    notes = []
    if _own_version("onnxruntime") and _own_version("onnxruntime-gpu"):
        pip = shlex.join([sys.executable, "-m", "pip"])
        notes.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; keep one: "
            f"{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install onnxruntime-gpu"
        )
    if machine.jetson is not None:
        notes.append(
            "on Jetson, TensorRT and CUDA come with JetPack (apt install nvidia-jetpack), never from PyPI: make the "
            "environment with python3 -m venv --system-site-packages"
        )
        if not machine.system_site_packages:
            notes.append(
                "this environment does not see JetPack's Python packages; make it with python3 -m venv "
                "--system-site-packages"
            )
    return notes


def _own_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _versions(libraries: Sequence[Library]) -> list[str]:
    return [
        f"{library.name} {library.version}"
        for library in libraries
        if library.name in {"onnxruntime", "onnxscript", "torch"}
    ]


def _extra_to_json(extra: Extra) -> dict[str, object]:
    return {
        "name": extra.name,
        "gives": extra.gives,
        "complete": extra.complete,
        "missing": list(extra.missing),
        "command": extra.command,
    }
