"""The list of kernels is read from the log as TensorRT writes it, and the gate finds what is wrong with one."""

from __future__ import annotations

from sdrpn.engines.layers import Kernel, Verdict, activation_bytes, attention_layers, gate, kernels_from_log
from sdrpn.spec import ModelSpec

CONTEXT = 256


def tensor(name: str, dims: str, dtype: str = "Half") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1,1], StrideOrder: [1,0], "
        f"Datatype: {dtype}, Format: (Linear) Row major linear format }}"
    )


def line(name: str, outputs: str = "", *, weights: str = "Half", nodes: str = "[ONNX Layer: a/MatMul_node_3]") -> str:
    constants = f"{tensor('w', '64,64', weights)}, {tensor('scale', '2,64')}"
    return (
        f"Name: {name}, LayerType: kgen, Inputs: [ {tensor('x', '-1,1,64')}], Constants: [ {constants}], "
        f"Outputs: [ {outputs}], TacticName: t, StreamId: 0, Metadata: {nodes}[ONNX Layer: b/Cast]"
    )


def listing(*, copies: bool = False, decode_attentions: int = 2, more: tuple[str, ...] = ()) -> tuple[Kernel, ...]:
    """The trunk of `tiny_spec`: two layers, two profiles."""
    decode = [line(f"_gemv_mha_v1_myl0_{i}", tensor("y", "-1,1,64")) for i in range(decode_attentions)]
    update = line("__myl_Scat_myl0_7", tensor("key_cache.0_out", "-1,4,256,16"))
    copy = [line("__myl_Move_myl0_8", tensor("copy", "-1,4,256,16"))] if copies else []
    # Copies are right in a prefill, whose attention works on them.
    prefill = [line(f"_gemm_mha_v2_myl1_{i}", tensor("copy [profile 1]", "1,4,256,16")) for i in range(2)]
    return kernels_from_log(["Layers:\n" + "\n".join([*decode, update, *copy, *prefill, *more]), "Engine Metadata:"])


def judged(spec: ModelSpec, kernels: tuple[Kernel, ...], int4_weights: int = 0) -> Verdict:
    profiles = ("decode", "prefill")
    return gate(kernels, spec, "trunk", profiles=profiles, max_context=CONTEXT, int4_weights=int4_weights)


def test_a_line_of_the_listing() -> None:
    text = line("__myl_CastAdd_myl1_19", tensor("tap [profile 1]", "1,-1,64", "Float"), weights="Int4")
    (kernel,) = kernels_from_log([text])
    assert (kernel.name, kernel.kind, kernel.subgraph) == ("__myl_CastAdd_myl1_19", "kgen", 1)
    assert [(one.name, one.dims, one.dtype) for one in kernel.inputs] == [("x", (-1, 1, 64), "Half")]
    assert [(one.name, one.dtype) for one in kernel.constants] == [("w", "Int4"), ("scale", "Half")]
    assert [(one.name, one.dims, one.dtype) for one in kernel.outputs] == [("tap [profile 1]", (1, -1, 64), "Float")]
    assert kernel.onnx_nodes == ("a/MatMul_node_3", "b/Cast")
    assert (kernel.attends, kernel.multiplies, kernel.int4_constants) == (False, True, 1)


def test_the_tensors_of_the_engine_are_no_kernels() -> None:
    assert kernels_from_log([" Name: tap, IOMode: Output, DataType: Float, Dimensions: [-1,1,64]", "Name: x"]) == ()


def test_the_largest_activation_memory_counts() -> None:
    assert activation_bytes(["Total Activation Memory: 5 bytes", "Total Activation Memory: 9 bytes", "9"]) == 9
    assert activation_bytes([]) is None


def test_attentions(tiny_spec: ModelSpec) -> None:
    assert [attention_layers(tiny_spec, graph) for graph in ("vision", "trunk", "rpn", "tail")] == [2, 2, 1, 2]


class TestGate:
    def test_a_good_choice(self, tiny_spec: ModelSpec) -> None:
        verdict = judged(tiny_spec, listing())
        assert (verdict, verdict.lines) == (Verdict(), ())

    def test_a_copy_with_the_new_row_behind_is_worth_a_remark(self, tiny_spec: ModelSpec) -> None:
        """Of all heads and requests together, keys turned round."""
        keys = line("__myl_ConcTran_myl0_8", tensor("k", "-1,16,257"))
        values = line("__myl_Conc_myl0_9", tensor("v", "-1,257,16"))
        verdict = judged(tiny_spec, listing(more=(keys, values)))
        told = "profile decode copies 2 caches, one layer at a time, before it attends to them"
        assert (verdict.faults, verdict.remarks) == ((), (told,))

    def test_a_copy_of_a_cache_in_a_decode_step(self, tiny_spec: ModelSpec) -> None:
        (fault,) = judged(tiny_spec, listing(copies=True)).faults
        assert fault == "__myl_Move_myl0_8 writes copy [-1, 4, 256, 16], as large as a whole cache"

    def test_an_attention_that_is_not_fused(self, tiny_spec: ModelSpec) -> None:
        (fault,) = judged(tiny_spec, listing(decode_attentions=1)).faults
        assert fault == "profile decode has 1 fused attention kernels for 2 layers"

    def test_int4_weights_that_feed_the_product(self, tiny_spec: ModelSpec) -> None:
        more = tuple(line(f"__myl_Fc_myl{profile}_9", weights="Int4") for profile in (0, 1))
        assert judged(tiny_spec, listing(more=more), int4_weights=1) == Verdict()

    def test_int4_weights_that_are_unpacked_first(self, tiny_spec: ModelSpec) -> None:
        """In a decode step that is a fault, in a prefill a remark."""
        nodes = "[ONNX Layer: a/DequantizeLinear_node_2]"
        for unpacks, multiplies in ((0, 1), (1, 0)):
            unpacked = line(f"__myl_Cast_myl{unpacks}_9", weights="Int4", nodes=nodes)
            more = (unpacked, line(f"__myl_Fc_myl{multiplies}_9", weights="Int4"))
            verdict = judged(tiny_spec, listing(more=more), int4_weights=1)
            told = "multiplies with 0 of 1 INT4 weights as they are and unpacks the others"
            expected = (f"profile decode {told}",) if unpacks == 0 else (f"remark: profile prefill {told}",)
            assert verdict.lines == expected
            assert bool(verdict.faults) is (unpacks == 0)

    def test_int4_weights_that_became_fp16(self, tiny_spec: ModelSpec) -> None:
        verdict = judged(tiny_spec, listing(), int4_weights=2)
        assert verdict.faults == (
            "profile decode multiplies with 0 of 2 INT4 weights as they are and unpacks the others",
        )

    def test_a_listing_that_is_not_understood(self, tiny_spec: ModelSpec) -> None:
        assert judged(tiny_spec, ()).lines == ("not judged: the library listed no kernels",)
        kernels = tuple(kernel for kernel in listing() if kernel.subgraph == 0)
        assert judged(tiny_spec, kernels) == Verdict(unjudged="the listing has 1 subgraphs for 2 profiles")
