"""Graphs compile with TensorRT-RTX, into fused attention and products of small numbers, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.engines.layers import Kernel, kernels_from_log
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec
from tests.export.calibration import Largest

pytest.importorskip("tensorrt_rtx_bindings")

DIALECTS = ("fused", "primitive")
GRAPHS = ("vision", "trunk", "rpn", "tail")


def exported(checkpoint: Path, out: Path) -> Bundle:
    for dialect in DIALECTS:
        export_bundle(checkpoint, out, ExportOptions("fp16", dialect))  # type: ignore[arg-type]
    return open_bundle(out)


@pytest.fixture(scope="module")
def golden_bundle(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(golden / "tiny_K3T3", tmp_path_factory.mktemp("golden") / "bundle")


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Heads of 128 channels, as LLaVA-1.5 has them, two layers on either side of the tap.

    Four of them: for fewer, TensorRT-RTX 1.7 has no kernel for one row of queries after its Attention operator.
    """
    folder = tmp_path_factory.mktemp("wide")
    vision = VisionSpec(image_size_px=56, patch_size_px=14, width=128, layers=3, heads=2, mlp_width=256)
    llm = LlmSpec(
        vocabulary=128, width=256, layers=4, heads=4, kv_heads=4, head_dim=128, mlp_width=512, max_context=256
    )
    write_random_checkpoint(folder / "checkpoint", ModelSpec(vision, llm, tap_layer=2, rpn=RpnSpec(2)))
    return exported(folder / "checkpoint", folder / "bundle")


@pytest.fixture
def bundle_named(request: pytest.FixtureRequest) -> Callable[[str], Bundle]:
    return lambda name: request.getfixturevalue(f"{name}_bundle")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ["golden", "wide"])
def test_it_compiles(bundle_named: Callable[[str], Bundle], name: str, graph: str, dialect: str) -> None:
    from tests.export.trt_rtx import build

    bundle = bundle_named(name)
    path = bundle.file(bundle.variant(f"{dialect}-fp16").graphs[graph].file)
    built = build(path, cache_length=128, rows=(1, 8, 32))
    assert built.plan_bytes > 0, built.errors


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_decode_step_reads_the_cache_where_it_lies(wide_bundle: Bundle, dialect: str) -> None:
    """With one row exactly the builder takes the kernel without a copy of the cache, in every layer."""
    from tests.export.trt_rtx import build

    path = wide_bundle.file(wide_bundle.variant(f"{dialect}-fp16").graphs["trunk"].file)
    built = build(path, cache_length=128, rows=(1, 1, 1))
    assert built.plan_bytes > 0, built.errors
    assert built.kernels.keys() == {"_gemv_mha_v1"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_sliding_window_costs_no_kernel(tmp_path: Path, dialect: Any) -> None:
    """It is one more condition of the mask that attention reads anyway."""
    from tests.export.trt_rtx import build

    vision = VisionSpec(image_size_px=56, patch_size_px=14, width=128, layers=3, heads=2, mlp_width=256)
    llm = LlmSpec(
        vocabulary=128,
        width=256,
        layers=4,
        heads=4,
        kv_heads=4,
        head_dim=128,
        mlp_width=512,
        max_context=256,
        sliding_window=64,
    )
    write_random_checkpoint(tmp_path / "c", ModelSpec(vision, llm, tap_layer=2), layout="llava")
    export_bundle(tmp_path / "c", tmp_path / "b", ExportOptions("fp16", dialect))
    bundle = open_bundle(tmp_path / "b")
    for graph in ("trunk", "tail"):
        path = bundle.file(bundle.variant(f"{dialect}-fp16").graphs[graph].file)
        built = build(path, cache_length=128, rows=(1, 1, 1))
        assert built.plan_bytes > 0, built.errors
        assert built.kernels.keys() == {"_gemv_mha_v1"}


# precision, dialect, calibrated -> capability, and the type of the weights that products read
SMALL = {
    ("fp8", "fused", False): ("SM89", "FP8"),
    ("fp8", "fused", True): ("SM89", "FP8"),
    ("fp8", "primitive", True): ("SM120", "FP8"),
    ("nvfp4", "fused", True): ("SM121", "FP4E2M1"),
    ("bf16", "fused", False): ("SM80", "BFloat16"),
    ("bf16", "primitive", False): ("SM86", "BFloat16"),
}


@pytest.mark.parametrize(("precision", "dialect", "calibrated"), SMALL)
def test_products_take_the_numbers_as_they_are(
    tiny_checkpoint: Path, tmp_path: Path, precision: Any, dialect: Any, calibrated: bool
) -> None:
    """In a decode step and in a prefill: all four products of both layers of the trunk; inputs too where calibrated."""
    from tests.export.trt_rtx import build

    capability, dtype = SMALL[precision, dialect, calibrated]
    options = ExportOptions(precision, dialect, calibration="abc" if calibrated else None)
    export_bundle(tiny_checkpoint, tmp_path / "bundle", options, calibration=Largest() if calibrated else None)
    bundle = open_bundle(tmp_path / "bundle")
    for rows in ((1, 1, 1), (1, 8, 32)):
        path = bundle.file(bundle.variant().graphs["trunk"].file)
        built = build(path, cache_length=128, rows=rows, capability=capability)
        assert built.plan_bytes > 0, built.errors
        kernels = [kernel for kernel in kernels_from_log(built.messages) if kernel.multiplies]
        products = [kernel for kernel in kernels if weights_in(kernel, dtype)]
        assert sum(weights_in(kernel, dtype) for kernel in products) == 2 * 4, products
        if calibrated:
            assert all(dtype in {tensor.dtype for tensor in kernel.inputs} for kernel in products), products


def weights_in(kernel: Kernel, dtype: str) -> int:
    """Matrices of that type; scales that are laid out for a kernel have more axes, factors fewer."""
    return sum(
        tensor.dtype == dtype and len(tensor.dims) in (2, 3) and tensor.dims[-2] > 1 for tensor in kernel.constants
    )
