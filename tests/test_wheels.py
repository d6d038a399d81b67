"""Every requirement has wheels where the package says that it runs: arm64 devices with the Pythons of their JetPack.

Asks the package index, and is skipped where there is none: SDRPN_REQUIRE_INDEX=1 makes that a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

# glibc of Ubuntu 22.04 (JetPack 6) and 24.04 (JetPack 7, DGX Spark), and what wheels for either may call it.
GLIBC_MINOR = {"3.10": 35, "3.11": 35, "3.12": 39, "3.13": 39}
# What devices run. `train` and `dev` are for workstations, `tensorrt-rtx` and `cuda` have no arm64 wheels and say so.
EXTRAS = ("", "device", "tensorrt", "export", "serve", "mcp", "nvimgcodec", "cuda")
RTX = ("tensorrt-rtx",)  # by itself: it wants CUDA 13 where `device` is for JetPack 6


def requirements(python: str, extras: tuple[str, ...] = EXTRAS, machine: str = "aarch64") -> Iterator[Requirement]:
    """What pip would install there, with these extras."""
    seen = set()
    for line in requires("sdrpn") or ():
        requirement = Requirement(line)
        environment = {"python_version": python, "platform_machine": machine, "sys_platform": "linux"}
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({**environment, "extra": extra}) for extra in extras
        )
        if wanted and requirement.name != "sdrpn" and line not in seen:
            seen.add(line)
            yield requirement


def pip_options(python: str) -> list[str]:
    glibc = range(17, GLIBC_MINOR[python] + 1)
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in glibc)]
    return [
        *("--python-version", python, "--only-binary", ":all:"),
        *(word for platform in platforms for word in ("--platform", platform)),
    ]


def find_wheels(python: str, wanted: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
    place = ["--report", "-", "--target", str(folder / "nowhere")]
    return subprocess.run(
        [*command, *place, *pip_options(python), *wanted], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An index that answers at all."""
    found = find_wheels("3.12", ["packaging"], tmp_path_factory.mktemp("index"))
    if found.returncode and not os.environ.get("SDRPN_REQUIRE_INDEX"):
        pytest.skip("no package index can be reached")


def _without_marker(requirement: Requirement) -> str:
    """pip would read it for the machine that it runs on."""
    requirement.marker = None
    return str(requirement)


def asked_for(python: str, extras: tuple[str, ...] = EXTRAS) -> list[str]:
    return [_without_marker(requirement) for requirement in requirements(python, extras)]


@pytest.fixture(scope="module")
def found(index: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """What pip found for each Python; they mostly wait for the index, so they do it at the same time."""
    folder = tmp_path_factory.mktemp("wheels")
    with ThreadPoolExecutor() as pool:
        started = {python: pool.submit(find_wheels, python, asked_for(python), folder) for python in GLIBC_MINOR}
    return {python: future.result() for python, future in started.items()}


@pytest.mark.parametrize("python", list(GLIBC_MINOR))
def test_arm64_wheels(found: dict[str, subprocess.CompletedProcess[str]], python: str) -> None:
    assert len(asked_for(python)) >= 12
    assert found[python].returncode == 0, found[python].stderr
    installed = json.loads(found[python].stdout)["install"]
    names = {package["metadata"]["name"].lower().replace("_", "-") for package in installed}
    assert {"numpy", "pillow", "onnxruntime", "tokenizers", "cuda-python", "onnx"} <= names


@pytest.mark.usefixtures("index")
def test_arm64_wheels_beside_tensorrt_rtx(tmp_path: Path) -> None:
    """The library itself has none on the index: it is NVIDIA's package for arm64. What is asked for above is found."""
    further = {python: sorted(set(asked_for(python, RTX)) - set(asked_for(python))) for python in GLIBC_MINOR}
    assert further["3.10"] == ["cuda-python>=13.0"]  # beside `device`, which is for JetPack 6 there
    for python, wanted in further.items():
        if wanted:
            outcome = find_wheels(python, wanted, tmp_path)
            assert outcome.returncode == 0, outcome.stderr


def test_python_3_10_gets_what_was_made_for_it() -> None:
    def specifier(python: str, name: str) -> str:
        return next(str(found.specifier) for found in requirements(python) if found.name == name)

    assert specifier("3.10", "onnxruntime") != specifier("3.11", "onnxruntime")
    assert "<13" in specifier("3.10", "cuda-python")  # JetPack 6 has CUDA 12
