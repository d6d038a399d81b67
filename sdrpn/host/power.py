"""Sample power and GPU memory while something runs: nvidia-smi (NVML), or tegrastats on a Jetson. No libraries.

Where neither is available, nothing is sampled and no figures are given.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from types import TracebackType

__all__ = ["PowerMeter", "parse_nvidia_smi", "parse_tegrastats"]

_INTERVAL_MS = 200
_TOOLS = {
    "tegrastats": ["--interval", str(_INTERVAL_MS)],
    "nvidia-smi": [
        "--query-gpu=power.draw,memory.used",
        "--format=csv,noheader,nounits",
        f"--loop-ms={_INTERVAL_MS}",
    ],
}


class PowerMeter:
    """A context manager; afterwards `readings` has the average watts, the joules, and the peak GPU memory in bytes."""

    def __init__(self) -> None:
        self._tool = next((tool for tool in _TOOLS if shutil.which(tool)), None)
        self._process: subprocess.Popen[str] | None = None
        self._count, self._sum_watts, self._most_memory = 0, 0.0, 0.0
        self._latest: dict[str, float] = {}
        self._seconds = 0.0

    def __enter__(self) -> PowerMeter:
        self._start_s = time.perf_counter()
        if self._tool is not None:
            self._process = subprocess.Popen(
                [self._tool, *_TOOLS[self._tool]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seconds = time.perf_counter() - self._start_s
        if self._process is not None:
            self._process.terminate()
            self._reader.join(timeout=5)
            self._process.wait(timeout=5)
            if self._process.stdout is not None:
                self._process.stdout.close()

    @property
    def readings(self) -> dict[str, float]:
        """The figures by name; empty where nothing was sampled."""
        found: dict[str, float] = {}
        if self._count:
            mean = self._sum_watts / self._count
            found |= {"watts": mean, "joules": mean * self._seconds}
        if "device_memory_bytes" in self._latest:
            found["device_memory_bytes"] = self._most_memory
        return found

    @property
    def latest(self) -> dict[str, float]:
        """The newest `watts` and `device_memory_bytes`, while it runs; what was not sampled is left out."""
        return dict(self._latest)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        parse = parse_tegrastats if self._tool == "tegrastats" else parse_nvidia_smi
        for line in self._process.stdout:
            watts, memory = parse(line)
            if watts is not None:
                self._count, self._sum_watts = self._count + 1, self._sum_watts + watts
                self._latest["watts"] = watts
            if memory is not None:
                self._most_memory = max(self._most_memory, memory)
                self._latest["device_memory_bytes"] = memory


def parse_nvidia_smi(line: str) -> tuple[float | None, float | None]:
    """`71.23, 1534` -> (watts, bytes); None for values that the GPU does not report."""
    parts = [part.strip() for part in line.split(",")]
    numbers = [float(part) if re.fullmatch(r"\d+(\.\d+)?", part) else None for part in parts]
    watts, mebibytes = [*numbers, None, None][:2]
    return watts, None if mebibytes is None else mebibytes * 1024 * 1024


def parse_tegrastats(line: str) -> tuple[float | None, float | None]:
    """`RAM 3180/30536MB ... VDD_IN 5080mW/5080mW ...` -> (watts of the module, bytes of memory in use).

    The rail of the whole module is called VDD_IN or POM_5V_IN; where only parts are reported (VDD_GPU_SOC and others),
    they are added up.
    """
    rails = {name: float(milliwatts) / 1000 for name, milliwatts in re.findall(r"(\w+) (\d+)mW/\d+mW", line)}
    whole = next((rails[name] for name in ("VDD_IN", "POM_5V_IN") if name in rails), None)
    watts = whole if whole is not None else (sum(rails.values()) if rails else None)
    memory = re.search(r"RAM (\d+)/\d+MB", line)
    return watts, float(memory.group(1)) * 1024 * 1024 if memory else None
