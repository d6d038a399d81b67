"""On a GPU that TensorRT-RTX does not know, e.g. an H100, its tests are skipped with the reason, and do not fail."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.runtime import test_engines_gpu as subject
from tests.runtime.gpu_targets import require_capability

RTX = SimpleNamespace(__version__="1.7", ComputeCapability=SimpleNamespace(SM80=1, SM89=2))


def test_an_unknown_gpu_skips_with_the_reason() -> None:
    with pytest.raises(
        pytest.skip.Exception, match=r"tensorrt-rtx 1\.7 does not build for SM90; it supports SM80, SM89"
    ):
        require_capability("tensorrt-rtx", "SM90", RTX)


@pytest.mark.parametrize(("flavour", "capability"), [("tensorrt-rtx", "SM89"), ("tensorrt", "SM90")])
def test_others_do_not(flavour: str, capability: str) -> None:
    require_capability(flavour, capability, RTX)


def test_the_tests_of_engines_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setattr(subject, "read_gpus", lambda: (SimpleNamespace(compute_capability="9.0"),))
    with pytest.raises(pytest.skip.Exception, match=r"does not build for SM90; it supports"):
        subject.target_here("tensorrt-rtx", "fused")
