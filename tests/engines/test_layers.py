"""The list of kernels is read from the log as TensorRT writes it, and the gate finds what is wrong with one."""

from __future__ import annotations

from sdrpn.engines.layers import Kernel, activation_bytes, attention_layers, gate, kernels_from_log
from sdrpn.spec import ModelSpec

CONTEXT = 256


def tensor(name: str, dims: str, dtype: str = "Half") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1,1], StrideOrder: [1,0], "
        f"Datatype: {dtype}, Format: (Linear) Row major linear format }}"
    )


def line(name: str, outputs: str = "", kind: str = "kgen") -> str:
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensor('x', '-1,1,64')}], Constants: [ {tensor('w', '64,64')}], "
        f"Outputs: [ {outputs}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a/MatMul][ONNX Layer: b/Cast]"
    )


def listing(*, copies: bool = False, decode_attentions: int = 2) -> tuple[Kernel, ...]:
    """The trunk of `tiny_spec`: two layers, two profiles."""
    decode = [line(f"_gemv_mha_v1_myl0_{i}", tensor("y", "-1,1,64")) for i in range(decode_attentions)]
    update = line("__myl_Scat_myl0_7", tensor("key_cache.0_out", "-1,4,256,16"))
    copy = [line("__myl_Move_myl0_8", tensor("copy", "-1,4,256,16"))] if copies else []
    # Copies are right in a prefill, whose attention works on them.
    prefill = [line(f"_gemm_mha_v2_myl1_{i}", tensor("copy [profile 1]", "1,4,256,16")) for i in range(2)]
    return kernels_from_log(["Layers:\n" + "\n".join([*decode, update, *copy, *prefill]), "Engine Metadata:"])


def found(spec: ModelSpec, kernels: tuple[Kernel, ...]) -> tuple[str, ...]:
    return gate(kernels, spec, "trunk", profiles=("decode", "prefill"), max_context=CONTEXT)


def test_a_line_of_the_listing() -> None:
    (kernel,) = kernels_from_log([line("__myl_CastAdd_myl1_19", tensor("tap [profile 1]", "1,-1,64", "Float"))])
    assert (kernel.name, kernel.kind, kernel.subgraph) == ("__myl_CastAdd_myl1_19", "kgen", 1)
    assert [(one.name, one.dims, one.dtype) for one in kernel.inputs] == [("x", (-1, 1, 64), "Half")]
    assert [(one.name, one.dims, one.dtype) for one in kernel.outputs] == [("tap [profile 1]", (1, -1, 64), "Float")]
    assert kernel.onnx_nodes == ("a/MatMul", "b/Cast")
    assert not kernel.attends


def test_the_tensors_of_the_engine_are_no_kernels() -> None:
    assert kernels_from_log([" Name: tap, IOMode: Output, DataType: Float, Dimensions: [-1,1,64]", "Name: x"]) == ()


def test_the_largest_activation_memory_counts() -> None:
    assert activation_bytes(["Total Activation Memory: 5 bytes", "Total Activation Memory: 9 bytes", "9"]) == 9
    assert activation_bytes([]) is None


def test_attentions(tiny_spec: ModelSpec) -> None:
    assert [attention_layers(tiny_spec, graph) for graph in ("vision", "trunk", "rpn", "tail")] == [2, 2, 1, 2]


class TestGate:
    def test_a_good_choice(self, tiny_spec: ModelSpec) -> None:
        assert found(tiny_spec, listing()) == ()

    def test_a_copy_of_a_cache_in_a_decode_step(self, tiny_spec: ModelSpec) -> None:
        (fault,) = found(tiny_spec, listing(copies=True))
        assert fault == "__myl_Move_myl0_8 writes copy [-1, 4, 256, 16], as large as a whole cache"

    def test_an_attention_that_is_not_fused(self, tiny_spec: ModelSpec) -> None:
        assert found(tiny_spec, listing(decode_attentions=1)) == (
            "profile decode has 1 fused attention kernels for 2 layers",
        )

    def test_a_listing_that_is_not_understood(self, tiny_spec: ModelSpec) -> None:
        assert found(tiny_spec, ()) == ("TensorRT listed no kernels",)
        kernels = tuple(kernel for kernel in listing() if kernel.subgraph == 0)
        assert found(tiny_spec, kernels) == ("the listing has 1 subgraphs for 2 profiles",)
