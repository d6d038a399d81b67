"""The seam to CUDA against the real cuda-python: without a driver every call takes what it is given, and fails."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime

from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.cuda import Cuda, load_cuda

# Arguments of the right kinds; nothing is there to be touched.
HERE, THERE, STREAM = 4096, 8192, 0
CALLS: dict[str, tuple[Any, ...]] = {
    "device_count": (),
    "describe_device": (),
    "device_of": (HERE,),
    "synchronize_all": (),
    "allocate": (16,),
    "free": (HERE,),
    "allocate_host": (16,),
    "free_host": (HERE,),
    "device_pointer": (HERE,),
    "create_stream": (),
    "synchronize": (STREAM,),
    "destroy_stream": (STREAM,),
    "copy": (HERE, THERE, 1, STREAM),
    "copy_blocks": (HERE, 4, THERE, 4, 2, 2, STREAM),
    "clear": (HERE, 4, STREAM),
    "begin_capture": (STREAM,),
    "end_capture": (STREAM,),
    "launch": (0, STREAM),
    "destroy_graph": (0,),
}


@pytest.fixture
def cuda() -> Cuda:
    found = load_cuda("this test")
    if found.versions()[0]:
        pytest.skip("there is a driver: these calls would do something")
    return found


@pytest.mark.parametrize("call", list(CALLS))
def test_a_call_takes_its_arguments_and_names_what_failed(cuda: Cuda, call: str) -> None:
    with pytest.raises(RunFailed, match=r"cuda\w+ failed with cudaErrorInsufficientDriver \(CUDA driver version"):
        getattr(cuda, call)(*CALLS[call])


def test_a_graph_is_instantiated_with_these_arguments(cuda: Cuda) -> None:
    for error, *_ in (runtime.cudaGraphInstantiate(0, 0), runtime.cudaGraphDestroy(0)):
        assert error != runtime.cudaError_t.cudaSuccess
    cuda.abandon_capture(STREAM)  # never fails: it is called when something else did


def test_no_call_is_left_out() -> None:
    public = {name for name in vars(Cuda) if not name.startswith("_")}
    assert public == {*CALLS, "versions", "abandon_capture", "free_memory", "current", "compile", "launch_kernel"}


def test_calls_of_the_driver(cuda: Cuda) -> None:
    assert cuda.free_memory() is None
    with pytest.raises(RunFailed, match=r'cuInit failed: "cuda" is an NVIDIA driver library'):
        cuda.compile(b"\0", b"kernel")
    with pytest.raises(RunFailed, match="cuInit failed"):
        cuda.launch_kernel(0, (1, 1), 1, (HERE, THERE), STREAM)
