"""Where engines answer, the product never imports ONNX Runtime: a device may go without it."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.errors import MissingDependency
from sdrpn.runtime import Session
from sdrpn.runtime import select as choice
from sdrpn.runtime.backends import onnxruntime_info, tensorrt_info
from sdrpn.runtime.engines import preflight
from tests.runtime.engine_files import platform
from tests.runtime.gpu import FakeGpu, fake_gpu


class Silent:
    """A TensorRT that has nothing against an engine."""

    def validity(self, path: Path) -> None:
        return None


@pytest.fixture
def gpu(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine that the engines fit."""
    gpu = fake_gpu(tiny_bundle, tmp_path)
    monkeypatch.setattr(choice, "read_platform", lambda device: platform("tensorrt"))
    monkeypatch.setattr(preflight, "open_library", lambda flavour: Silent())
    monkeypatch.setattr(tensorrt_info, "open_tensorrt", lambda flavour, options, **more: gpu.backend(options))
    return gpu


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules of the product that imported ONNX Runtime, which failed; the fake GPU may go on with its own."""
    importers: list[str] = []
    real = builtins.__import__

    def refuse(name: str, globals: Any = None, *rest: Any, **more: Any) -> Any:
        importer = str((globals or {}).get("__name__"))
        if name.partition(".")[0] == "onnxruntime" and importer.startswith("sdrpn."):
            importers.append(importer)
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, globals, *rest, **more)

    def absent(backend: str) -> Any:
        importers.append("sdrpn.runtime.backends.onnxruntime_info")
        raise MissingDependency(f"backend {backend} needs ONNX Runtime")

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(onnxruntime_info, "_require_library", absent)
    monkeypatch.delitem(sys.modules, "sdrpn.runtime.backends.onnxruntime")
    return importers


def answer(session: Session) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    assert session.answer_ids(picture, (1, 5, 6, 7), (8, 9, 10), max_new_tokens=3).token_ids


def test_engines_answer(gpu: FakeGpu, refused: list[str]) -> None:
    with Session.open(gpu.bundle.path) as session:
        assert session.backend == "tensorrt"
        answer(session)
    assert refused == []


def test_graphs_do_not(gpu: FakeGpu, refused: list[str]) -> None:
    with pytest.raises(MissingDependency, match="backend onnxruntime needs ONNX Runtime"):
        Session.open(gpu.bundle.path, backend="onnxruntime")
    assert refused != []
