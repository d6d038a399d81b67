"""The list of kernels is read from the log in both forms, and the gate finds what is wrong with one."""

from __future__ import annotations

import pytest

from sdrpn.bundle.graphs import GRAPHS
from sdrpn.engines.layers import Kernel, Verdict, activation_bytes, gate, is_told, kernels_from_log
from sdrpn.method.spec import ModelSpec
from tests.engines.listing import as_listed

CONTEXT = 256
COPY = ": 32.8 kB for each sequence at every step"


def tensor(name: str, dims: str, dtype: str = "Half") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{dims}], Strides: [1,1], StrideOrder: [1,0], "
        f"Datatype: {dtype}, Format: (Linear) Row major linear format }}"
    )


def line(
    name: str,
    outputs: str = "",
    *,
    inputs: str | None = None,
    weights: str = "Half",
    nodes: str = "[ONNX Layer: a/MatMul_node_3]",
) -> str:
    constants = f"{tensor('w', '64,64', weights)}, {tensor('scale', '2,64')}"
    reads = tensor("x", "-1,1,64") if inputs is None else inputs
    return (
        f"Name: {name}, LayerType: kgen, Inputs: [ {reads}], Constants: [ {constants}], "
        f"Outputs: [ {outputs}], TacticName: t, StreamId: 0, Metadata: {nodes}[ONNX Layer: b/Cast]"
    )


def listing(*, copies: bool = False, decode_attentions: int = 2, more: tuple[str, ...] = ()) -> tuple[Kernel, ...]:
    """The trunk of `tiny_spec`: two layers, two profiles."""
    decode = [line(f"_gemv_mha_v1_myl0_{i}", tensor("y", "-1,1,64")) for i in range(decode_attentions)]
    cache = tensor("key_cache.0_out", "-1,4,256,16")
    update = line("__myl_Scat_myl0_7", cache, inputs=cache)
    copy = [line("__myl_Move_myl0_8", tensor("copy", "-1,4,256,16"))] if copies else []
    # Copies are right in a prefill, whose attention works on them.
    prefill = [line(f"_gemm_mha_v2_myl1_{i}", tensor("copy [profile 1]", "1,4,256,16")) for i in range(2)]
    return kernels_from_log(["Layers:\n" + "\n".join([*decode, update, *copy, *prefill, *more]), "Engine Metadata:"])


def judged(
    spec: ModelSpec, kernels: tuple[Kernel, ...], weights: dict[str, int] | None = None, *, coded: bool = False
) -> Verdict:
    return gate(
        kernels,
        spec,
        "trunk",
        profiles=("decode", "prefill"),
        max_context=CONTEXT,
        small_weights=weights or {},
        coded_caches=coded,
        updated_caches={"key_cache.0_out"},
    )


def test_a_line_of_the_listing() -> None:
    text = line("__myl_CastAdd_myl1_19", tensor("tap [profile 1]", "1,-1,64", "Float"), weights="Int4")
    (kernel,) = kernels_from_log([text])
    assert (kernel.name, kernel.kind, kernel.subgraph) == ("__myl_CastAdd_myl1_19", "kgen", 1)
    assert [(entry.name, entry.dims, entry.dtype) for entry in kernel.inputs] == [("x", (-1, 1, 64), "Half")]
    assert [(entry.name, entry.dtype) for entry in kernel.constants] == [("w", "Int4"), ("scale", "Half")]
    assert [(entry.name, entry.dims, entry.dtype) for entry in kernel.outputs] == [
        ("tap [profile 1]", (1, -1, 64), "Float")
    ]
    assert kernel.onnx_nodes == ("a/MatMul_node_3", "b/Cast")
    assert (kernel.attends, kernel.multiplies) == (False, True)
    assert [kernel.reads_as_it_is(dtype) for dtype in ("INT4", "FP8", "FP4")] == [1, 0, 0]


# Kernels as plain TensorRT lists them, in the form that NVIDIA/TensorRT issue 4397 (10.10) and Torch-TensorRT's
# documentation (before 10.12, and of it) have. Constants are inputs there, and there are no strides.
PLAIN = {
    "generated": (
        "Name: __myl_MulSum_myl0_3, LayerType: kgen, Inputs: [ { Name: __mye7_dconst, Dimensions: [64,64], "
        "Format/Datatype: Float }, { Name: x, Dimensions: [-1,64], Format/Datatype: Half }], Outputs: [ { Name: "
        "__myln_k_arg__bb1_2, Dimensions: [-1,64], Format/Datatype: Half }], TacticName: __myl_MulSum_0xfa6c, "
        "StreamId: 0, Metadata: [ONNX Layer: /layers.0/MatMul][ONNX Layer: /layers.0/Add]"
    ),
    "product": (
        "Name: /layers_1/MatMul [profile 1]_myl1_77, LayerType: gemm, Inputs: [ { Name: /layers_0/Add_output_0'.1_81, "
        "Dimensions: [1,40,1024], Format/Datatype: Half }], Outputs: [ { Name: y, Dimensions: [1,40,256], "
        "Format/Datatype: Half }], TacticName: sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64, StreamId: 0, "
        "Metadata: [ONNX Layer: /layers.1/MatMul]"
    ),
    "convolution": (
        "Name: /features/Conv + /features/Relu, LayerType: CaskConvolution, Inputs: [ { Name: image, Location: Device, "
        "Dimensions: [1,3,224,224], Format/Datatype: Row major linear FP16 format }], Outputs: [ { Name: features, "
        "Location: Device, Dimensions: [1,64,55,55], Format/Datatype: Channel major FP16 format where channel % 8 == 0 "
        '}], ParameterType: Convolution, Kernel: [11,11], Weights: {"Type": "Half", "Count": 23232}, Activation: RELU, '
        "TacticName: sm80_xmma_fprop, TacticValue: 0x280b, StreamId: 0, Metadata: [ONNX Layer: /features/Conv]"
    ),
    "attention": (
        "Name: /attention/Softmax_myl0_9, LayerType: fusion, Inputs: [ { Name: q, Dimensions: [1,4,40,64], "
        "Format/Datatype: Half }], Outputs: [ { Name: z, Dimensions: [1,4,40,64], Format/Datatype: Half }], "
        "TacticName: _gemm_mha_v2_0x54bb, StreamId: 0, Metadata: [ONNX Layer: /attention/MatMul_1]"
    ),
}


class TestPlainListing:
    """The form of plain TensorRT, of which only the names of kernels were read once."""

    def test_a_generated_kernel(self) -> None:
        (kernel,) = kernels_from_log([PLAIN["generated"]])
        assert (kernel.kind, kernel.subgraph, kernel.tactic) == ("kgen", 0, "__myl_MulSum_0xfa6c")
        assert [(tensor.name, tensor.dims, tensor.dtype) for tensor in kernel.inputs] == [
            ("__mye7_dconst", (64, 64), "Float"),
            ("x", (-1, 64), "Half"),
        ]
        assert (kernel.constants, kernel.lists_constants) == ((), False)
        assert [(tensor.name, tensor.dims) for tensor in kernel.outputs] == [("__myln_k_arg__bb1_2", (-1, 64))]
        assert kernel.onnx_nodes == ("/layers.0/MatMul", "/layers.0/Add")

    def test_a_product(self) -> None:
        (kernel,) = kernels_from_log([PLAIN["product"]])
        assert (kernel.kind, kernel.subgraph, kernel.multiplies) == ("gemm", 1, True)
        assert [tensor.dims for tensor in kernel.outputs] == [(1, 40, 256)]

    def test_a_kernel_that_describes_its_formats(self) -> None:
        (kernel,) = kernels_from_log([PLAIN["convolution"]])
        assert [(tensor.name, tensor.dtype) for tensor in (*kernel.inputs, *kernel.outputs)] == [
            ("image", "Half"),
            ("features", "Half"),
        ]

    def test_an_attention_that_only_its_tactic_names(self) -> None:
        (kernel,) = kernels_from_log([PLAIN["attention"]])
        assert kernel.attends

    @pytest.mark.parametrize("weights", [{}, {"INT4": 12}])
    def test_it_cannot_be_judged(self, tiny_spec: ModelSpec, weights: dict[str, int]) -> None:
        """A good choice of kernels in this form, with weights and without: not a fault, and not passed."""
        plain = tuple(
            kernel for line in RTX_LINES for kernel in kernels_from_log([as_listed(line)]) if not kernel.lists_constants
        )
        assert len(plain) == len(RTX_LINES)
        verdict = judged(tiny_spec, plain, weights)
        assert verdict.faults == ()
        assert verdict.unjudged == (
            "the listing has no constants, so it does not show which weights a kernel multiplies with"
        )

    def test_what_it_does_say_is_kept(self, tiny_spec: ModelSpec) -> None:
        plain = kernels_from_log(map(as_listed, RTX_LINES[1:]))
        verdict = judged(tiny_spec, plain)
        assert verdict.faults == ("profile decode has 1 fused attention kernels for 2 layers",)
        assert verdict.without_faults.lines == (
            f"not judged: {verdict.unjudged}",
            "remark: profile decode has 1 fused attention kernels for 2 layers",
        )


# As `listing()` below, a line each.
RTX_LINES = [
    *(line(f"_gemv_mha_v1_myl0_{i}", tensor("y", "-1,1,64")) for i in range(2)),
    *(line(f"_gemm_mha_v2_myl1_{i}", tensor("copy [profile 1]", "1,4,256,16")) for i in range(2)),
]


def test_only_lines_that_are_read_are_kept_of_a_log() -> None:
    """A verbose log of TensorRT has hundreds of MB: one of every tactic that was timed."""
    log = [line("k_myl0_1"), "Total Activation Memory: 9 bytes", "Tactic: 0x17 Time: 0.59", "Autotuning format: x"]
    assert [is_told(text) for text in log] == [True, True, False, False]
    kept = [text for text in log if is_told(text)]
    assert kernels_from_log(kept) == kernels_from_log(log)
    assert activation_bytes(kept) == activation_bytes(log)


def test_the_tensors_of_the_engine_are_no_kernels() -> None:
    assert kernels_from_log([" Name: tap, IOMode: Output, DataType: Float, Dimensions: [-1,1,64]", "Name: x"]) == ()


def test_the_largest_activation_memory_counts() -> None:
    assert activation_bytes(["Total Activation Memory: 5 bytes", "Total Activation Memory: 9 bytes", "9"]) == 9
    assert activation_bytes([]) is None


def test_attentions(tiny_spec: ModelSpec) -> None:
    found = {graph.name: graph.attentions(tiny_spec) for graph in GRAPHS}
    assert found == {"vision": 2, "trunk": 2, "gate": 0, "rpn": 1, "tail": 2}


class TestGate:
    def test_a_good_choice(self, tiny_spec: ModelSpec) -> None:
        verdict = judged(tiny_spec, listing())
        assert (verdict, verdict.lines) == (Verdict(), ())

    @pytest.mark.parametrize("dims", ["-1,16,257", "-1,257,16", "-1,256,16"])
    def test_a_copy_whose_axes_were_merged(self, tiny_spec: ModelSpec, dims: str) -> None:
        """Caches of all heads and requests together, keys transposed, with or without the new row at the end."""
        (fault,) = judged(tiny_spec, listing(more=(line("__myl_Conc_myl0_9", tensor("copy", dims)),))).faults
        size = "32.9 kB" if "257" in dims else "32.8 kB"
        what = f"__myl_Conc_myl0_9 writes copy [{dims.replace(',', ', ')}], as large as a whole cache"
        assert fault == f"{what}: {size} for each sequence at every step"

    def test_caches_in_8_bits_are_written_out_a_layer_at_a_time(self, tiny_spec: ModelSpec) -> None:
        verdict = judged(tiny_spec, listing(copies=True), coded=True)
        told = "profile decode unpacks the rows of 1 caches in 8 bits before attention"
        assert (verdict.faults, verdict.remarks) == ((), (told,))

    def test_a_copy_of_a_cache_in_a_decode_step(self, tiny_spec: ModelSpec) -> None:
        (fault,) = judged(tiny_spec, listing(copies=True)).faults
        assert fault == "__myl_Move_myl0_8 writes copy [-1, 4, 256, 16], as large as a whole cache" + COPY

    @pytest.mark.parametrize("name", ["key_cache.0", "key_cache.0_out", "copy"])
    def test_attention_that_reads_something_else_than_a_cache(self, tiny_spec: ModelSpec, name: str) -> None:
        """Its kernel has the name of the one that reads caches where they lie, and no kernel of the listing copies."""
        reads = line("_gemv_mha_v1_myl0_1", tensor("y", "-1,1,64"), inputs=tensor(name, "-1,4,256,16"))
        kernels = listing(decode_attentions=1, more=(reads,))
        profiles = ("decode", "prefill")
        found = gate(kernels, tiny_spec, "trunk", profiles=profiles, max_context=CONTEXT, caches={"key_cache.0"})
        own = [fault for fault in found.faults if "__myl_Scat" not in fault]
        what = "_gemv_mha_v1_myl0_1 reads copy [-1, 4, 256, 16], which is none of the graph's caches"
        assert own == ([what] if name == "copy" else [])

    @pytest.mark.parametrize("source", ["key_cache.0", "x"])
    def test_an_update_that_copies_the_cache(self, tiny_spec: ModelSpec, source: str) -> None:
        """The name of its output is right; but it makes a cache instead of writing into the one that is there."""
        cache = tensor("key_cache.0_out", "-1,4,256,16")
        copy = line("__myl_Move_myl0_9", cache, inputs=tensor(source, "-1,4,256,16"))
        (fault,) = judged(tiny_spec, listing(more=(copy,))).faults
        assert fault == "__myl_Move_myl0_9 writes key_cache.0_out [-1, 4, 256, 16], as large as a whole cache" + COPY

    @pytest.mark.parametrize(
        ("name", "nodes"),
        [("scatter_myl0_9", "[ONNX Layer: a/TensorScatter_node_3]"), ("KVCacheUpdate_myl0_9", "[ONNX Layer: a/b]")],
    )
    def test_an_update_by_its_node(self, tiny_spec: ModelSpec, name: str, nodes: str) -> None:
        """As TensorRT may list it: with a name of its own on either side."""
        cache = tensor("key_cache.0_out", "-1,4,256,16")
        update = line(name, cache, inputs=tensor("key_cache.0", "-1,4,256,16"), nodes=nodes)
        assert judged(tiny_spec, listing(more=(update,))) == Verdict()

    def test_int8_weights_that_are_unpacked(self, tiny_spec: ModelSpec) -> None:
        """In a prefill that is nothing to speak of."""
        nodes = "[ONNX Layer: a/DequantizeLinear_node_2]"
        large = tensor("unpacked", "4096,4096")  # no copy of a cache
        unpack = {"outputs": large, "inputs": "", "weights": "Int8", "nodes": nodes}
        more = tuple(line(f"__myl_Cast_myl{p}_{n}", **unpack) for p in (0, 1) for n in (9, 10))
        verdict = judged(tiny_spec, listing(more=more))
        assert verdict.lines == (
            "remark: profile decode unpacks 2 INT8 weights at every step, which moves more bytes than fp16 would",
        )
        direct = line("__myl_Fc_myl0_9", weights="Int8")
        assert judged(tiny_spec, listing(more=(direct,))) == Verdict()

    def test_an_attention_that_is_not_fused(self, tiny_spec: ModelSpec) -> None:
        (fault,) = judged(tiny_spec, listing(decode_attentions=1)).faults
        assert fault == "profile decode has 1 fused attention kernels for 2 layers"

    def test_int4_weights_that_feed_the_product(self, tiny_spec: ModelSpec) -> None:
        more = tuple(line(f"__myl_Fc_myl{profile}_9", weights="Int4") for profile in (0, 1))
        assert judged(tiny_spec, listing(more=more), {"INT4": 1}) == Verdict()

    def test_int4_weights_that_are_unpacked_first(self, tiny_spec: ModelSpec) -> None:
        """In a decode step that is a fault, in a prefill a remark."""
        nodes = "[ONNX Layer: a/DequantizeLinear_node_2]"
        for unpacks, multiplies in ((0, 1), (1, 0)):
            unpacked = line(f"__myl_Cast_myl{unpacks}_9", weights="Int4", nodes=nodes)
            more = (unpacked, line(f"__myl_Fc_myl{multiplies}_9", weights="Int4"))
            verdict = judged(tiny_spec, listing(more=more), {"INT4": 1})
            told = "multiplies directly with 0 of 1 INT4 weights and unpacks the others"
            expected = (f"profile decode {told}",) if unpacks == 0 else (f"remark: profile prefill {told}",)
            assert verdict.lines == expected
            assert bool(verdict.faults) is (unpacks == 0)

    def test_fp4_weights_and_their_scales(self, tiny_spec: ModelSpec) -> None:
        """The scales of FP4 are FP8, too, laid out for the kernel."""
        lines = [
            line(f"gemm_myl{profile}_9", weights="FP4E2M1").replace(tensor("scale", "2,64"), tensor("s", dims, "FP8"))
            for profile, dims in ((0, "16,4,16,4,32"), (1, "1,16,4,16,4,32"))
        ]
        kernels = listing(more=tuple(lines))
        assert judged(tiny_spec, kernels, {"FP4": 1}) == Verdict()
        (fault,) = judged(tiny_spec, kernels, {"FP8": 1}).faults
        assert fault == "profile decode multiplies directly with 0 of 1 FP8 weights and unpacks the others"

    def test_weights_that_are_unpacked_for_a_product(self, tiny_spec: ModelSpec) -> None:
        """The library lists the product among what such a kernel is of, too; it reads nothing but constants."""
        text = line("__myl_CastMulCast_myl0_9", weights="FP8").replace(
            f"Inputs: [ {tensor('x', '-1,1,64')}]", "Inputs: []"
        )
        (kernel,) = kernels_from_log([text])
        assert (kernel.inputs, kernel.multiplies, kernel.reads_as_it_is("FP8")) == ((), False, 1)
        more = (text, line("__myl_Fc_myl1_9", weights="FP8"))
        (fault,) = judged(tiny_spec, listing(more=more), {"FP8": 1}).faults
        assert fault == "profile decode multiplies directly with 0 of 1 FP8 weights and unpacks the others"

    def test_each_context_has_profiles_of_its_own(self, tiny_spec: ModelSpec) -> None:
        """A copy is one of the caches of its own profile, which are shorter than the longest."""
        kernels = kernels_from_log(
            [
                line(f"_ge{m}_mha_{profile}_{i}_myl{profile}_{i}", tensor("y", "-1,1,64"))
                for profile, m in enumerate("vmvm")
                for i in range(2)
            ]
            + [line("__myl_Move_myl0_8", tensor("copy", "-1,4,64,16"))]
        )
        names = ("decode-64", "prefill-64", "decode-256", "prefill-256")
        lengths = {name: int(name.partition("-")[2]) for name in names}
        found = gate(kernels, tiny_spec, "trunk", profiles=names, max_context=CONTEXT, cache_lengths=lengths)
        copy = "__myl_Move_myl0_8 writes copy [-1, 4, 64, 16], as large as a whole cache"
        assert found.faults == (f"{copy}: 8.2 kB for each sequence at every step",)

    def test_int4_weights_that_became_fp16(self, tiny_spec: ModelSpec) -> None:
        verdict = judged(tiny_spec, listing(), {"INT4": 2})
        assert verdict.faults == ("profile decode multiplies directly with 0 of 2 INT4 weights and unpacks the others",)

    def test_a_listing_that_is_not_understood(self, tiny_spec: ModelSpec) -> None:
        assert judged(tiny_spec, ()).lines == ("not judged: the library listed no kernels",)
        kernels = tuple(kernel for kernel in listing() if kernel.subgraph == 0)
        assert judged(tiny_spec, kernels) == Verdict(unjudged="the listing has 1 subgraphs for 2 profiles")
