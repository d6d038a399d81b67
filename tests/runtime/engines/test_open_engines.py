"""Session.open where engines are: which are chosen, and what cannot be asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime")


from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import BadInput, EngineMismatch
from sdrpn.runtime import Session
from tests.damage import copied
from tests.runtime.asking import ask
from tests.runtime.gpu import FakeGpu, opening


class TestOpen:
    @pytest.fixture
    def opened(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
        """Session.open on a machine that the engines fit."""
        return opening(gpu, monkeypatch)

    def test_engines_are_chosen_where_they_fit(self, opened: Callable[..., Session]) -> None:
        for options in ({}, {"backend": "tensorrt"}, {"target": "rtx-4090"}, {"variant": "fused-fp32"}):
            with opened(**options) as session:
                assert (session.backend, session.variant.name) == ("tensorrt", "fused-fp32")
                ask(session)

    def test_and_not_where_something_else_is_asked_for(self, opened: Callable[..., Session]) -> None:
        for options in ({"backend": "onnxruntime"}, {"variant": "primitive-fp32"}):
            with opened(**options) as session:
                assert session.backend == "onnxruntime"

    def test_engines_need_no_onnx_files(self, gpu: FakeGpu, opened: Callable[..., Session]) -> None:
        for path in (*gpu.bundle.path.glob("*.onnx"), *(gpu.bundle.path / "weights").glob("t*.bin")):
            path.unlink()
        with opened() as session:
            assert session.backend == "tensorrt"

    def test_engines_that_do_not_fit_are_named_and_not_used(
        self, gpu: FakeGpu, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu.engine("trunk").write_bytes(b"changed")
        with opened() as session:
            assert session.backend == "onnxruntime"
            assert session.backend_note is not None
            assert re.match(r"the engines of rtx-4090 are not used: trunk: MALFORMED_ENGINE: ", session.backend_note)
        for options in ({"backend": "tensorrt"}, {"target": "rtx-4090"}):
            with pytest.raises(EngineMismatch, match=r"engines of rtx-4090: trunk: MALFORMED_ENGINE: engine.size"):
                opened(**options)

    def test_what_cannot_be_asked(self, opened: Callable[..., Session], tiny_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="backend 'tpu' is unknown; expected one of auto, onnxruntime, "):
            opened(backend="tpu")
        with pytest.raises(BadInput, match="target l4 selects engines, which onnxruntime does not run; use the"):
            opened(backend="onnxruntime", target="l4")
        with pytest.raises(
            EngineMismatch, match="are of variant fused-fp32, not primitive-fp32; leave the variant out"
        ):
            opened(target="rtx-4090", variant="primitive-fp32")
        with pytest.raises(EngineMismatch, match="has no engines of variant primitive-fp32; leave the variant out"):
            opened(backend="tensorrt", variant="primitive-fp32")
        with pytest.raises(BadInput, match="has no engines; build them: sdrpn build"):
            Session.open(tiny_bundle, backend="tensorrt")

    def test_without_a_gpu_onnxruntime_answers(self, gpu: FakeGpu) -> None:
        """Nothing is faked here: this machine, or one where the engines' library is not installed."""
        bundle = open_bundle(copied(gpu.bundle.path, gpu.bundle.path.parent / "again"))
        with Session.open(bundle.path) as session:
            assert session.backend == "onnxruntime"
