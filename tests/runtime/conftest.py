"""Sessions on a CPU, or on a GPU that is not there; the native modules in the folder that `.ci/sanitize` names."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sdrpn.runtime import Session
    from tests.runtime.gpu import FakeGpu

BUILD = os.environ.get("SDRPN_SANITIZED_BUILD")


def load(name: str, folder: Path) -> None:
    (path,) = folder.glob(f"{name}.*so")
    spec = importlib.util.spec_from_file_location(f"sdrpn.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SANITIZED, f"{path} was built without sanitizers"
    sys.modules[f"sdrpn.{name}"] = module


if BUILD is not None:
    for native_name in ("_native", "_native_jpeg", "_native_steps"):
        load(native_name, Path(BUILD))


@pytest.fixture
def gpu(tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    """With engines of TensorRT."""
    from tests.runtime.gpu import fake_gpu

    return fake_gpu(tiny_bundle, tmp_path)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def any_gpu(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    """With engines of either library."""
    from tests.runtime.gpu import fake_gpu

    return fake_gpu(tiny_bundle, tmp_path, flavour=request.param)


@pytest.fixture
def session(gpu: FakeGpu) -> Iterator[Session]:
    """On `gpu`."""
    with gpu.session() as opened:
        yield opened


@pytest.fixture(scope="module", params=["fused-fp32", "primitive-fp32", "openvino"])
def opened_on_cpu(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Session]:
    """Once for each way that a CPU has."""
    from sdrpn.runtime import Session

    variant, backend = request.param, "onnxruntime"
    if variant == "openvino":
        pytest.importorskip("openvino")
        variant, backend = "fused-fp32", "openvino"
    with Session.open(tiny_bundle, backend=backend, variant=variant, threads=1) as opened:
        yield opened


@pytest.fixture
def cpu_session(opened_on_cpu: Session) -> Session:
    """In each way that a CPU has; it knows no picture."""
    opened_on_cpu.forget_image()
    return opened_on_cpu
