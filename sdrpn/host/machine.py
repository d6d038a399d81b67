"""Describe this machine: processor, memory, GPUs, Jetson. Standard library only; knows no Python packages."""

from __future__ import annotations

import csv
import ctypes
import hashlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.host.threads import usable_cores

__all__ = [
    "Cpu",
    "Gpu",
    "Jetson",
    "Machine",
    "read_available_memory",
    "read_cpu",
    "read_cuda_driver",
    "read_gpus",
    "read_jetson",
    "read_machine",
]

_ROOT = Path("/")
# Long, because nvidia-smi wakes sleeping GPUs one after the other.
_NVIDIA_SMI_TIMEOUT_S = 20
_GPU_FIELDS = ("name", "memory.total", "compute_cap", "driver_version")
# Implementer and part (MIDR_EL1), as in Linux's arch/arm64/include/asm/cputype.h.
_ARM_CORES = {
    "0x41 0xd03": "Arm Cortex-A53",
    "0x41 0xd07": "Arm Cortex-A57",
    "0x41 0xd08": "Arm Cortex-A72",
    "0x41 0xd0b": "Arm Cortex-A76",
    "0x41 0xd0c": "Arm Neoverse N1",
    "0x41 0xd40": "Arm Neoverse V1",
    "0x41 0xd42": "Arm Cortex-A78AE",
    "0x41 0xd49": "Arm Neoverse N2",
    "0x41 0xd4f": "Arm Neoverse V2",
    "0x41 0xd83": "Arm Neoverse V3AE",
    "0x41 0xd84": "Arm Neoverse V3",
    "0x41 0xd85": "Arm Cortex-X925",
    "0x41 0xd87": "Arm Cortex-A725",
    "0x4e 0x004": "NVIDIA Carmel",
}
# NVIDIA's release notes of JetPack: each major version has one series of L4T.
_JETPACK_OF_L4T = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; None where the driver does not report a value."""

    name: str
    memory_bytes: int | None
    compute_capability: str | None
    driver: str | None


@dataclass(frozen=True)
class Jetson:
    """An NVIDIA Jetson and its system release."""

    model: str
    l4t: str | None  # e.g. 36.4.3
    jetpack: str | None  # the major version, e.g. 6


@dataclass(frozen=True)
class Cpu:
    """The model and the instruction sets of a processor, which determine the kernels that libraries choose."""

    model: str
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        """The common name of the processor; for Arm, Linux gives only numbers."""
        return _ARM_CORES.get(" ".join(self.model.split()[:2]), self.model)

    @property
    def digest(self) -> str:
        """SHA-256 of model and instruction sets."""
        return hashlib.sha256("\n".join((self.model, *self.features)).encode()).hexdigest()


@dataclass(frozen=True)
class Machine:
    """The hardware and the Python on it."""

    system: str
    arch: str
    python: str
    python_path: str
    virtual_environment: bool
    system_site_packages: bool
    cpu_cores: int
    memory_bytes: int | None
    memory_available_bytes: int | None
    gpus: tuple[Gpu, ...]
    jetson: Jetson | None


def read_machine(root: Path = _ROOT) -> Machine:
    """Describe this machine; `root` replaces `/` in tests. Never fails: unknown values are None."""
    memory_bytes, memory_available_bytes = _memory_bytes(root)
    return Machine(
        system=_system(),
        arch=platform.machine(),
        python=platform.python_version(),
        python_path=sys.executable,
        virtual_environment=sys.prefix != sys.base_prefix,
        system_site_packages=_sees_system_packages(Path(sys.prefix)),
        cpu_cores=usable_cores(root),
        memory_bytes=memory_bytes,
        memory_available_bytes=memory_available_bytes,
        gpus=read_gpus(),
        jetson=read_jetson(root),
    )


def read_cpu(root: Path = _ROOT) -> Cpu:
    """The first processor of this machine; `root` replaces `/` in tests."""
    text = _text(root / "proc/cpuinfo")
    entries = dict(re.findall(r"^([^:\n]+?)\s*:[ ]*(.*)$", text.split("\n\n")[0], re.MULTILINE))
    model = entries.get("model name") or " ".join(
        entries[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in entries
    )
    features = entries.get("flags") or entries.get("Features") or ""  # the names on x86 and on Arm
    return Cpu(model or platform.processor() or platform.machine(), tuple(sorted(features.split())))


def read_available_memory(root: Path = _ROOT) -> int | None:
    """Bytes of memory available to programs, file caches included; None where the system does not report it."""
    return _memory_bytes(root)[1]


def read_gpus(run: Callable[[], str] | None = None) -> tuple[Gpu, ...]:
    """List the NVIDIA GPUs that the driver shows; none without a driver.

    Args:
        run: returns the output of nvidia-smi (for tests)
    """
    try:
        text = (run or _nvidia_smi)()
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    return tuple(_gpu(row) for row in rows if len(row) == len(_GPU_FIELDS))


def read_cuda_driver(load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """The newest CUDA version that the driver supports: 13040 is 13.4; None without a driver.

    Args:
        load: loads the driver's library (for tests)
    """
    version = ctypes.c_int()
    try:
        failed = load("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value


def read_jetson(root: Path = _ROOT) -> Jetson | None:
    """Recognise a Jetson by its device tree and its release file; None on anything else."""
    # The device tree ends strings as C does.
    model = _text(root / "proc/device-tree/model").rstrip("\0").strip()
    release = _text(root / "etc/nv_tegra_release")
    if not release and not re.search(r"jetson|tegra", model, re.IGNORECASE):
        return None
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release)
    if found is None:
        return Jetson(model=model or "NVIDIA Jetson", l4t=None, jetpack=None)
    major, revision = found.groups()
    return Jetson(model=model or "NVIDIA Jetson", l4t=f"{major}.{revision}", jetpack=_JETPACK_OF_L4T.get(int(major)))


def _nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise FileNotFoundError("nvidia-smi")
    command = [program, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    # check: without a working driver it prints the error to stdout and fails.
    done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True)
    return done.stdout


def _gpu(row: list[str]) -> Gpu:
    name, memory_mib, compute_capability, driver = row
    # GPUs that share the system's memory report [N/A].
    return Gpu(
        name=name,
        memory_bytes=int(memory_mib) * 2**20 if memory_mib.isdigit() else None,
        compute_capability=compute_capability if re.fullmatch(r"\d+\.\d+", compute_capability) else None,
        driver=driver if driver[:1].isdigit() else None,
    )


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _memory_bytes(root: Path) -> tuple[int | None, int | None]:
    """Total and available memory, within the limit of a container."""
    entries = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE))
    total = int(entries["MemTotal"]) * 1024 if "MemTotal" in entries else None
    available = int(entries["MemAvailable"]) * 1024 if "MemAvailable" in entries else None
    limit = _text(root / "sys/fs/cgroup/memory.max").strip()
    if total is None or not limit.isdigit() or int(limit) >= total:
        return total, available
    used = _text(root / "sys/fs/cgroup/memory.current").strip()
    left = int(limit) - int(used) if used.isdigit() else None
    candidates = [size for size in (available, left) if size is not None]
    return int(limit), min(candidates, default=None)


def _sees_system_packages(prefix: Path) -> bool:
    """Whether packages of the system's Python can be imported: always so outside a virtual environment."""
    if sys.prefix == sys.base_prefix:
        return True
    return bool(re.search(r"^include-system-site-packages\s*=\s*true", _text(prefix / "pyvenv.cfg"), re.MULTILINE))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
