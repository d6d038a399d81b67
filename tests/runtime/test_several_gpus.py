"""More than one GPU: a session works on its own, whichever one the application made current."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.errors import BadInput
from sdrpn.runtime import EngineOptions, Session
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.engines import platform as platform_module
from sdrpn.runtime.engines.platform import read_platform
from tests.runtime.asking import conversation
from tests.runtime.fake_cuda import FakeCudart
from tests.runtime.fake_driver import FakeDriver
from tests.runtime.gpu import FakeGpu, fake_gpu
from tests.runtime.pictures.test_foreign_tensors import Foreign


@pytest.fixture(params=["fused-fp32", "primitive-fp32"])
def gpus(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    return fake_gpu(tiny_bundle, tmp_path, variant=request.param, devices=2)


def test_the_application_may_use_another_one(gpus: FakeGpu) -> None:
    with gpus.session() as session:
        gpus.cuda.cudaSetDevice(1)
        conversation(session)
        assert gpus.cuda.current == 1  # which one is current is the application's own business
        assert {block.device for block in gpus.cuda.live.values()} == {0}
    assert gpus.cuda.violations == []


def test_a_session_on_the_second(gpus: FakeGpu) -> None:
    with gpus.session(EngineOptions(device=1)) as session:
        conversation(session)
        assert {block.device for block in gpus.cuda.live.values()} == {1}
    assert gpus.cuda.current == 0
    assert gpus.cuda.initialised == {1}  # nothing was taken of the first
    assert gpus.cuda.violations == []


def test_one_on_each(gpus: FakeGpu) -> None:
    with gpus.session() as first, gpus.session(EngineOptions(device=1)) as second:
        expected = [answer.token_ids for answer in conversation(first)]
        assert [answer.token_ids for answer in conversation(second)] == expected
    assert gpus.cuda.violations == []


def test_a_tensor_of_the_other_one_is_refused(gpus: FakeGpu) -> None:
    theirs = gpus.backend(EngineOptions(device=1)).allocate((2, 3), "float32")
    with pytest.raises(BadInput, match="the tensor is on device 1; expected one on device 0, where this session runs"):
        gpus.backend().wrap(Foreign(theirs))


def test_one_that_is_not_there(gpus: FakeGpu, tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match="device 2 was requested; CUDA shows 2 devices: expected a number from 0 to 1"):
        gpus.session(EngineOptions(device=2))
    with pytest.raises(BadInput, match="device is -1; expected the number of a GPU"):
        EngineOptions(device=-1)
    with pytest.raises(BadInput, match="device 1 was asked for, and 2 in the engine options; leave one out"):
        Session.open(tiny_bundle, device=1, engine_options=EngineOptions(device=2))


def test_what_is_said_of_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCudart(devices=2)
    monkeypatch.setattr(platform_module, "load_cuda", lambda purpose, device: Cuda(fake, device, FakeDriver(fake)))
    gpu = read_platform(1).gpu
    assert gpu is not None
    assert gpu.name == "Fake GPU 1"
    assert fake.initialised == {1}
    with pytest.raises(BadInput, match="device 2 was requested"):
        read_platform(2)
