"""What every backend that runs graphs on a CPU refuses, in the same words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.errors import BadBundle, BadInput, RunFailed
from sdrpn.runtime.backends import open_backend
from sdrpn.runtime.backends.arrays import run_on_arrays
from sdrpn.runtime.backends.registry import backend_info
from sdrpn.runtime.backends.runner import Backend
from tests.damage import copied, cut


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> Backend:
    pytest.importorskip(request.param)
    return open_backend(request.param, 1)


@pytest.fixture
def bundle(text_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(copied(text_bundle, tmp_path))


@pytest.mark.parametrize("threads", [0, -1, 9_999_999])
def test_threads_that_no_machine_has(backend: Backend, threads: int) -> None:
    with pytest.raises(BadInput, match=f"threads is {threads}; expected 1 to 256, or none for one per free core"):
        open_backend(backend.name, threads)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("trunk.fused-fp32.onnx", lambda path: path.write_bytes(b"no graph")),
        ("trunk.fused-fp32.onnx", cut),
        ("weights/trunk.fp32.bin", lambda path: path.unlink()),
        ("weights/trunk.fp32.bin", cut),
    ],
    ids=["no graph", "cut graph", "missing weights", "cut weights"],
)
def test_a_graph_that_cannot_be_loaded_is_named(
    backend: Backend, bundle: Bundle, file: str, damage: Callable[[Path], object]
) -> None:
    damage(bundle.path / file)
    path = bundle.path / "trunk.fused-fp32.onnx"
    library = backend_info(backend.name).library
    with pytest.raises(BadBundle, match=rf"{library} \d.* cannot load {re.escape(str(path))}: ") as caught:
        backend.load(bundle.variant("fused-fp32").graphs["trunk"], path)
    assert "\n" not in str(caught.value)


def test_a_closed_graph_says_so(backend: Backend, bundle: Bundle) -> None:
    info = bundle.variant("fused-fp32").graphs["vision"]
    runner = backend.load(info, bundle.file(info.file))
    feeds = {"pixel_values": np.zeros((1, 3, 56, 56), np.float32)}
    assert np.isfinite(run_on_arrays(backend, runner, feeds)["image_embeds"]).all()
    runner.close()
    with pytest.raises(RunFailed, match="the vision graph was closed; open the session again"):
        run_on_arrays(backend, runner, feeds)
