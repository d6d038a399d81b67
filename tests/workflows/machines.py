"""Made-up machines."""

from __future__ import annotations

import dataclasses

from sdrpn.host.machine import Gpu, Jetson, Machine

__all__ = ["GPU_PC", "ORIN", "PC"]

PC = Machine(
    system="Debian",
    arch="x86_64",
    python="3.11.2",
    python_path="/venv/bin/python",
    virtual_environment=True,
    system_site_packages=False,
    cpu_cores=8,
    memory_bytes=32 * 10**9,
    memory_available_bytes=20 * 10**9,
    gpus=(),
    jetson=None,
)
GPU_PC = dataclasses.replace(PC, gpus=(Gpu("NVIDIA RTX A6000", 48 * 10**9, "8.6", "560.35.03"),))
ORIN = dataclasses.replace(
    PC,
    arch="aarch64",
    gpus=(Gpu("Orin (nvgpu)", None, None, "540.4.0"),),
    jetson=Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6"),
)
