"""The registry has all that choosing, diagnosing and planning need to know of a backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import BadInput
from sdrpn.runtime.backends import AUTOMATIC, BACKENDS, backend_info, graph_backends, open_backend
from sdrpn.runtime.backends.info import MemoryRequest
from sdrpn.runtime.select import graph_variant
from tests.workflows.machines import GPU_PC, ORIN, PC


def test_names_are_those_of_the_rows() -> None:
    assert [(name, info.name) for name, info in BACKENDS.items()] == [
        ("onnxruntime", "onnxruntime"),
        ("openvino", "openvino"),
        ("onnxruntime-cuda", "onnxruntime-cuda"),
        ("tensorrt", "tensorrt"),
    ]
    assert [info.name for info in graph_backends()] == ["onnxruntime", "openvino", "onnxruntime-cuda"]
    assert len({info.purpose for info in BACKENDS.values()}) == len(BACKENDS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onnxruntim", r"is unknown; expected one of auto, onnxruntime, .*; did you mean onnxruntime\?"),
        ("onnxruntime-tensorrt", "was removed: it compiled again"),
        (AUTOMATIC, "backend 'auto' is unknown"),
    ],
)
def test_what_is_not_a_backend(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        backend_info(name)


def test_engines_are_not_opened_as_graphs() -> None:
    with pytest.raises(
        BadInput, match="runs engines, not ONNX graphs; expected one of onnxruntime, openvino, onnxruntime-"
    ):
        open_backend("tensorrt")


def test_importing_it_imports_no_library() -> None:
    code = (
        "import sys, sdrpn.runtime.backends\n"
        "libraries = ('onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'cuda')\n"
        "print([name for name in libraries if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


class TestProbe:
    def test_a_gpu_is_needed_for_engines(self) -> None:
        found = backend_info("tensorrt").probe(PC, {"tensorrt": "10.16", "cuda-python": "13.0"}.get)
        assert (found.ready, found.detail) == (False, "no NVIDIA GPU, or its driver is not installed")

    @pytest.mark.parametrize(
        ("versions", "detail", "extra"),
        [
            ({}, "neither TensorRT nor TensorRT-RTX is installed", "[tensorrt]"),
            ({"tensorrt-rtx-cu13-bindings": "1.7"}, "cuda-python is not installed", "[device]"),
        ],
    )
    def test_what_is_missing_has_a_command(self, versions: dict[str, str], detail: str, extra: str) -> None:
        found = backend_info("tensorrt").probe(GPU_PC, versions.get)
        assert (found.ready, found.detail) == (False, detail)
        assert found.command is not None
        assert extra in found.command

    def test_either_library_will_do(self) -> None:
        versions = {"tensorrt-rtx-cu13-bindings": "1.7", "cuda-python": "13.0"}
        assert backend_info("tensorrt").probe(GPU_PC, versions.get).detail == "TensorRT-RTX 1.7"
        both = {**versions, "tensorrt": "10.16"}
        assert backend_info("tensorrt").probe(GPU_PC, both.get).detail == "TensorRT 10.16, TensorRT-RTX 1.7"

    def test_jetpack_brings_it(self) -> None:
        found = backend_info("tensorrt").probe(ORIN, lambda name: None)
        assert (found.ready, found.command) == (False, None)


def test_each_says_what_it_needs(tiny_bundle: Path) -> None:
    """More context and more sequences take more, of caches in proportion."""
    bundle = open_bundle(tiny_bundle)
    variant = bundle.variant("fused-fp32")
    for info in BACKENDS.values():
        one, two = (info.needs(bundle, variant, MemoryRequest(64, batch)).caches_bytes for batch in (1, 2))
        assert two == 2 * one > 0
        assert (
            info.needs(bundle, variant, MemoryRequest(128)).total_bytes
            > info.needs(bundle, variant, MemoryRequest(64)).total_bytes
        )


def test_each_chooses_by_its_own_preference(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    for info in graph_backends():
        assert graph_variant(bundle, info=info).name == "fused-fp32"
    assert backend_info("onnxruntime").refuses(bundle, bundle.variant("primitive-fp32")) is None
    refusal = backend_info("onnxruntime-cuda").refuses(bundle, bundle.variant("primitive-fp32"))
    assert "would copy all keys and values to the host" in str(refusal)
