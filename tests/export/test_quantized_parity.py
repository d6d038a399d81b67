"""Quantised graphs equal the model with the dequantised weights, computed here in NumPy and run by PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle
from sdrpn.checkpoint import Checkpoint, open_checkpoint, write_random_checkpoint
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.quantization import Blocks, dequantized, quantize
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import SdRpnModel, model_from_checkpoint
from sdrpn.runtime import Session
from tests.export.graph_runner import Array, GraphRunner
from tests.tolerances import BLOCKS_ABS, INT8_ACTIVATIONS_SHARE, PARITY_FP16_ABS

BlocksOf = Callable[[str], Blocks | None]
OPTIONS = {
    "int4": ExportOptions("int4"),
    "int4, primitive": ExportOptions("int4", "primitive"),
    "int4, nothing kept": ExportOptions("int4", keep=()),
    "int4, a layer kept": ExportOptions("int4", keep=("lm_head", "layers.1")),
    "int4, hqq": ExportOptions("int4", method="hqq"),
    "int4, some in 8 bits": ExportOptions("int4", int8=("lm_head", "layers.1")),
    "int8": ExportOptions("int8", keep=()),
}


@pytest.fixture(scope="module")
def checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of widths that blocks of 32 divide; two query heads per key head."""
    spec = dataclasses.replace(tiny_spec, llm=dataclasses.replace(tiny_spec.llm, kv_heads=2))
    path = tmp_path_factory.mktemp("quantized") / "checkpoint"
    write_random_checkpoint(path, spec)
    return path


def part_of(name: str) -> str | None:
    """What the options call the part that a checkpoint's matrix belongs to; None for what is never quantised."""
    words = name.split(".")
    if words[0] in ("vision", "projector"):
        is_matrix = words[-1] == "weight" and "norm" not in name and "embedding" not in name
        return "vision" if is_matrix else None
    if words[-1] != "weight" or "norm" in name or name == "llm.embed.weight":
        return None
    if name == "llm.head.weight":
        return "lm_head"
    return "rpn" if words[0] == "rpn" else f"layers.{words[2]}"


def expected_model(checkpoint: Path, options: ExportOptions, monkeypatch: pytest.MonkeyPatch) -> SdRpnModel:
    """The checkpoint's model, with every weight as the bundle should hold it."""
    original = Checkpoint.read

    def read(self: Checkpoint, name: str) -> Any:
        array = original(self, name)
        part = part_of(name)
        blocks = options.form(part) if part is not None else None
        if isinstance(blocks, Blocks):
            return dequantized(*quantize(array, blocks))
        return array if "norm" in name or "class_" in name or "position_" in name else array.astype(np.float16)

    monkeypatch.setattr(Checkpoint, "read", read)
    with open_checkpoint(checkpoint) as source:
        model = model_from_checkpoint(source)
    monkeypatch.setattr(Checkpoint, "read", original)
    return model


def assert_close(what: str, found: Array, expected: Array, tolerance: float) -> None:
    difference = np.abs(found - expected).max()
    assert difference <= tolerance, f"{what} differ by {difference:.2e}, values up to {np.abs(expected).max():.1f}"


@pytest.mark.parametrize("name", OPTIONS)
def test_every_graph_computes_with_the_dequantised_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = OPTIONS[name]
    export_bundle(checkpoint, tmp_path / "bundle", options)
    model = expected_model(checkpoint, options, monkeypatch)
    for variant in options.variants:
        tolerance = BLOCKS_ABS if variant.endswith("-cpu") else PARITY_FP16_ABS
        assert_graphs_equal(GraphRunner(tmp_path / "bundle", variant), model, tolerance)


@torch.inference_mode()
def assert_graphs_equal(runner: GraphRunner, model: SdRpnModel, tolerance: float) -> None:
    rng, rows, length = np.random.default_rng(0), 21, 40
    pixels = rng.standard_normal((1, 3, 56, 56), np.float32)
    embeds = rng.standard_normal((1, rows, 64), np.float32)
    order = torch.arange(rows)[None]
    image = model.vision(torch.from_numpy(pixels)).numpy()
    assert_close("image_embeds", runner.call("vision", {"pixel_values": pixels})["image_embeds"], image, tolerance)
    tap = model.trunk(torch.from_numpy(embeds), order)
    assert_close("taps", runner.run("trunk", embeds, runner.caches("trunk", length), 0)["tap"], tap.numpy(), tolerance)
    logits = runner.run("tail", tap.numpy(), runner.caches("tail", length), 0)["logits"]
    assert_close("logits", logits, model.tail(tap, order).numpy(), tolerance)
    assert model.rpn is not None
    scores = runner.scores(runner.run("rpn", tap.numpy(), runner.caches("rpn", length), 0), 0, rows)[..., :rows]
    assert_close("scores", scores, model.rpn(tap, order).numpy(), tolerance)


def test_with_integers_on_both_sides_it_stays_near(checkpoint: Path, tmp_path: Path) -> None:
    """As the runtime answers: ONNX Runtime rounds activations to 8 bits as well."""
    export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4"))
    runner = GraphRunner(tmp_path / "bundle", "fused-int4-cpu")
    embeds = np.random.default_rng(0).standard_normal((1, 21, 64), np.float32)
    exact = runner.run("trunk", embeds, runner.caches("trunk", 40), 0)["tap"]
    with Session.open(tmp_path / "bundle", threads=1, variant="fused-int4-cpu") as session:
        (slot,) = session._decoder.slots.all
        session._decoder.slots.reset(slot, 40)
        session._decoder.run_trunk(slot, embeds[0], 0)
        found = session._decoder.slots.taps.rows(0, 21).read()
    assert 0 < np.abs(found - exact).max() <= INT8_ACTIVATIONS_SHARE * np.abs(exact).max()


class TestFiles:
    def test_both_variants_read_the_same_weights(self, checkpoint: Path, tmp_path: Path) -> None:
        manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4"))
        cpu, gpu = (
            {file for file in manifest.variants[name].files if file.endswith(".bin")}
            for name in ("fused-int4-cpu", "fused-int4")
        )
        assert cpu == gpu
        assert "weights/llm.layers.0.int4-b32-rtn.bin" in cpu & gpu

    def test_what_is_kept_lies_in_the_files_of_fp16(self, checkpoint: Path, tmp_path: Path) -> None:
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("fp16"))
        manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4"))
        shared = set(manifest.variants["fused-fp16"].files) & set(manifest.variants["fused-int4"].files)
        assert shared >= {f"weights/{name}.fp16.bin" for name in ("rpn", "vision", "head", "embed")}
        open_bundle(tmp_path / "bundle").verify(manifest.files)

    def test_another_choice_takes_the_place_of_the_first(self, checkpoint: Path, tmp_path: Path) -> None:
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4", keep=()))
        manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4", method="hqq"))
        there = {str(p.relative_to(tmp_path / "bundle")) for p in (tmp_path / "bundle").rglob("*") if p.is_file()}
        assert there == {*manifest.files, MANIFEST_NAME}
        assert manifest.variants["fused-int4"].quantization == {
            "bits": 4,
            "block": 32,
            "method": "hqq",
            "keep": ["lm_head", "rpn", "vision"],
        }

    def test_4_bits_take_less_than_a_third_of_fp16(self, checkpoint: Path, tmp_path: Path) -> None:
        manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4"))
        size_bytes = sum(
            manifest.files[file].size_bytes for file in manifest.files if ".layers.0." in file and "llm" in file
        )
        weights = 64 * (64 + 2 * 32) + 64 * 64 + 2 * 64 * 96 + 96 * 64
        assert size_bytes < weights * (0.5 + 2 / 32) + 8 * 4096  # scales; pages

    def test_8_bits_take_a_part_out_of_what_is_kept(self, checkpoint: Path, tmp_path: Path) -> None:
        manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4", int8=("lm_head",)))
        variant = manifest.variants["fused-int4"]
        assert variant.quantization is not None
        assert (variant.quantization["keep"], variant.quantization["int8"]) == (["rpn", "vision"], ["lm_head"])
        assert "weights/head.int8-b32-rtn.bin" in variant.files

    def test_the_opset_has_blocks(self, checkpoint: Path, tmp_path: Path) -> None:
        manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4", "primitive"))
        assert manifest.variants["primitive-int4"].opset == 21


class TestRefusals:
    def test_a_block_that_does_not_divide(self, checkpoint: Path, tmp_path: Path) -> None:
        message = (
            r"llm\.layers\.0\.attention\.qkv\.weight has 64 inputs, which blocks of 128 do not divide; .* 32 or 64"
        )
        with pytest.raises(BadInput, match=message):
            export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4", block=128))
        assert not list(tmp_path.iterdir())

    def test_a_layer_that_is_not_there(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"layers\.4 does not exist: the LLM has layers 0 to 3"):
            export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4", keep=("layers.4",)))

        with pytest.raises(BadInput, match=r"layers\.4 does not exist: the LLM has layers 0 to 3"):
            export_bundle(checkpoint, tmp_path / "bundle", ExportOptions("int4", int8=("layers.4",)))

    def test_8_bits_for_what_is_kept_or_not_quantised(self) -> None:
        with pytest.raises(BadInput, match="rpn is listed both to keep in fp16 and to store in 8 bits; list it once"):
            ExportOptions("int4", keep=("rpn",), int8=("rpn",))
        with pytest.raises(BadInput, match="8 bits for rpn are for precision int4; got int8"):
            ExportOptions("int8", int8=("rpn",))
        with pytest.raises(BadInput, match="'head' is not a part to give 8 bits; expected lm_head"):
            ExportOptions("int4", int8=("head",))

    def test_nothing_of_that_name(self) -> None:
        with pytest.raises(BadInput, match=r"'head' is not a part to keep in fp16; expected lm_head, rpn, vision"):
            ExportOptions("int4", keep=("head",))
