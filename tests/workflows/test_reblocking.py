"""4-bit matrices in other blocks: made again from the checkpoint, they are those of an export in these blocks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.block_error import block_errors
from sdrpn.export.quantization import Blocks, dequantized, quantize
from sdrpn.runtime import Session
from sdrpn.workflows import reblocking
from sdrpn.workflows.graph_optimization import optimize_bundle
from tests.pictures import photo

VARIANT = "fused-int4-cpu"
QUESTION = (1, 5, 9), (7, 11, 12, 30)


@pytest.fixture(scope="module")
def exported(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Bundles in blocks of 16 and of 32."""
    folder = tmp_path_factory.mktemp("blocks")
    for block in (16, 32):
        export_bundle(text_checkpoint, folder / str(block), ExportOptions("int4", block=block, int8=("lm_head",)))
    return folder / "16", folder / "32"


@pytest.fixture
def bundles(exported: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same to write to."""
    first, second = (Path(shutil.copytree(path, tmp_path / path.name)) for path in exported)
    return first, second


def step_logits(bundle: Path, backend: str) -> Any:
    with Session.open(bundle, backend=backend, variant=VARIANT, threads=1) as session:
        assert session.backend_note is None
        answer = session.answer_ids(photo(), *QUESTION, max_new_tokens=2, trace=True)
    assert answer.trace is not None
    return answer.trace.step_logits


@pytest.mark.parametrize("library", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_they_are_those_of_an_export(bundles: tuple[Path, Path], text_checkpoint: Path, library: str) -> None:
    if library == "openvino":
        pytest.importorskip("openvino")
    small, large = bundles
    how: dict[str, Any] = {"variant": VARIANT, "threads": 1, "library": library}
    own = step_logits(small, library)
    made = optimize_bundle(small, block=32, checkpoint=text_checkpoint, **how)
    optimize_bundle(large, **how)
    assert np.array_equal(step_logits(small, library), step_logits(large, library))
    assert not np.array_equal(step_logits(small, library), own)
    assert made.manifest.block == 32
    assert made.blocks is not None
    assert made.blocks.own_error < made.blocks.error < 1.4 * made.blocks.own_error
    assert "4-bit matrices in blocks of 32, made again from the checkpoint: " in made.lines[-1]
    assert [path.name for path in small.iterdir() if path.name.startswith(".")] == []


def test_they_stay_where_the_error_would_grow(
    bundles: tuple[Path, Path], text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _ = bundles
    monkeypatch.setattr(reblocking, "_MOST_ADDED", 1.01)
    made = optimize_bundle(small, variant=VARIANT, threads=1, block=32, checkpoint=text_checkpoint)
    assert made.manifest.block is None
    assert "4-bit matrices stay as exported: in blocks of 32 they would be " in made.lines[-1]
    changed = step_logits(small, "onnxruntime")
    optimize_bundle(small, variant=VARIANT, threads=1)
    assert np.array_equal(step_logits(small, "onnxruntime"), changed)


def test_the_error_by_hand(text_checkpoint: Path) -> None:
    """The first layer alone is in 4 bits: the rest is in 8 bits or in floats."""
    options = ExportOptions(
        "int4", block=32, int8=("lm_head",), keep=("rpn", "vision", "layers.1", "layers.2", "layers.3")
    )
    names = [f"attention.{name}" for name in "qkvo"] + [f"mlp.{name}" for name in ("gate", "up", "down")]
    with open_checkpoint(text_checkpoint) as source:
        (found,) = block_errors(source.spec, [options], source)
        matrices = [np.asarray(source.read(f"llm.layers.0.{name}.weight"), np.float32) for name in names]
    wrong = sum(np.square(dequantized(*quantize(each, Blocks(4, 32))) - each).sum() for each in matrices)
    assert found == pytest.approx(np.sqrt(wrong / sum(np.square(each).sum() for each in matrices)), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"block": 32}, "blocks are made again from the checkpoint: name both or none"),
        ({"block": 64, "checkpoint": "text"}, "has 96 inputs, which blocks of 64 do not divide; choose blocks of 32"),
        ({"block": 48, "checkpoint": "text"}, "block size is 48; expected one of 16, 32, 64, 128"),
        ({"block": 32, "checkpoint": "tiny"}, "is not what .* was exported from; name that checkpoint"),
        (
            {"block": 32, "checkpoint": "text", "variant": "fused-fp32"},
            "fused-fp32 has no matrices in blocks of 4 bits",
        ),
    ],
)
def test_what_is_refused(
    exported: tuple[Path, Path],
    text_bundle: Path,
    text_checkpoint: Path,
    tiny_checkpoint: Path,
    options: dict[str, Any],
    expected: str,
) -> None:
    checkpoints = {"text": text_checkpoint, "tiny": tiny_checkpoint}
    given: dict[str, Any] = {"variant": VARIANT, "threads": 1, **options}
    if "checkpoint" in options:
        given["checkpoint"] = checkpoints[options["checkpoint"]]
    bundle = text_bundle if "variant" in options else exported[0]
    with pytest.raises(BadInput, match=expected):
        optimize_bundle(bundle, **given)
    assert not (bundle / "optimized").exists()
