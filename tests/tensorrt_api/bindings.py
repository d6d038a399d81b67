"""Real Python bindings of TensorRT without TensorRT: downloaded, and imported against stubs of its libraries.

They lie in a cache outside the repository. What they offer is read in a process of its own, once a release.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["RELEASES", "REQUIRED", "RTX", "Api", "downloaded", "read_api"]

HERE = Path(__file__).parent
RTX = "tensorrt-rtx"
# A skipped test shows nothing. Where this is set, as in CI, what cannot be had is a failure.
REQUIRED = "SDRPN_REQUIRE_TENSORRT_API"
# What the bindings take from the libraries; none of it is ever called.
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")


def _releases() -> dict[str, str]:
    """Version -> requirement, for this Python."""
    found = {}
    for line in (HERE / "bindings.txt").read_text(encoding="utf-8").splitlines():
        requirement, _, marker = line.partition(";")
        below = re.search(r'python_version < "3\.(\d+)"', marker)
        if not line.startswith("#") and (below is None or sys.version_info < (3, int(below.group(1)))):
            found[requirement.partition("==")[2].strip()] = requirement.strip()
    return found


RELEASES = (*_releases(), RTX)


@dataclass(frozen=True)
class Api:
    """What one release offers.

    `classes` has the attributes of every class: their kind (method, property, member) and, where its documentation
    says so, the class of what they give.
    """

    release: str
    version: str
    module: dict[str, str]  # name -> class, function or value
    classes: dict[str, dict[str, Any]]

    @property
    def flavour(self) -> str:
        return RTX if self.release == RTX else "tensorrt"

    def class_named(self, name: str | None) -> str | None:
        """The class that documentation means; some are documented under the name that they have in C++."""
        candidates = (name, (name or "").removeprefix("I"))
        return next((candidate for candidate in candidates if candidate in self.classes), None)

    def has(self, owner: str | None, name: str) -> bool:
        """Whether a class, or the module itself (None), has an attribute."""
        return name in (self.module if owner is None else self.classes[owner])


@functools.cache
def read_api(release: str) -> Api:
    """Skips, or where it is required fails, if the release cannot be had here."""
    if release == RTX:
        pytest.importorskip("tensorrt_rtx_bindings")
        return _dumped(release, {}, "tensorrt_rtx_bindings", None)
    folder = downloaded(_releases()[release])
    stubs = _stubs(folder.parent, release.partition(".")[0])
    return _dumped(release, {"LD_LIBRARY_PATH": str(stubs)}, "tensorrt_bindings", folder)


def _cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sdrpn-tests" / f"tensorrt-{sys.implementation.cache_tag}-{os.uname().machine}"


def downloaded(requirement: str) -> Path:
    """The unpacked wheel, which appears whole or not at all."""
    folder = _cache() / requirement
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--retries", "1", "--timeout", "20", "--dest", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            _unavailable(f"{requirement} cannot be downloaded: {(done.stderr.splitlines() or ['no reason'])[-1]}")
        (wheel,) = Path(temporary).glob("*.whl")
        unpacked = Path(temporary) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        if not folder.is_dir():  # another run may have been faster
            unpacked.rename(folder)
    return folder


def _stubs(cache: Path, major: str) -> Path:
    """Libraries that export the symbols and do nothing."""
    folder = cache / f"stubs-{major}"
    if folder.is_dir():
        return folder
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        _unavailable("there is no C compiler for the stub libraries; install gcc")
    source = "\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in SYMBOLS)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "stubs"
        made.mkdir()
        for library in LIBRARIES:
            command = [str(compiler), "-shared", "-fPIC", "-x", "c", "-", "-o", str(made / f"lib{library}.so.{major}")]
            subprocess.run(command, input=source, text=True, check=True, timeout=60)
        if not folder.is_dir():
            made.rename(folder)
    return folder


def _dumped(release: str, environment: dict[str, str], module: str, folder: Path | None) -> Api:
    command = [sys.executable, "-W", "ignore", str(HERE / "dump.py"), module, str(folder or "")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    return Api(release, value["version"], value["module"], value["classes"])


def _unavailable(reason: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason} ({REQUIRED} is set)")
    pytest.skip(reason)
