"""Gates of either kind on a random LLaVA: every stage takes them, and sessions equal the reference in PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.checkpoint import open_checkpoint, tensor_shapes, write_random_checkpoint, write_rpn
from sdrpn.checkpoint.random import random_tensor
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.gate import MAP_STATISTICS, gate_score, map_statistics
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import RpnSpec
from sdrpn.model import model_from_checkpoint
from sdrpn.model.base import SdRpnModel
from sdrpn.model.reference import reference_answer
from sdrpn.runtime import Session
from sdrpn.runtime.backends.registry import open_backend
from sdrpn.runtime.engines.trial_run import smoke_test_graphs
from sdrpn.workflows.verify import verify_bundle
from tests.runtime.asking import BEFORE, NEW_TOKENS, OTHER, QUESTION, picture
from tests.tiny_models import tiny_spec
from tests.tolerances import PARITY_ABS

KINDS = {"layers": RpnSpec(2, gate_layers=2), "probe": RpnSpec(2, gate_probe=True)}
LOOK = RoiPolicy(0.05, upscale="bbox", max_share=1.0)
SEED = 3


def write_gated(folder: Path, kind: str, policy: ModelPolicy | None = None) -> Path:
    """A base without an RPN, and an RPN with a gate beside it; returns the RPN's folder."""
    spec = dataclasses.replace(tiny_spec(rpn=KINDS[kind]), tap_layer=2)
    if not (folder / "base").exists():
        write_random_checkpoint(folder / "base", tiny_spec(rpn=None), layout="llava", seed=SEED)
    shapes = tensor_shapes(spec)
    write_rpn(folder / kind, spec, lambda name: random_tensor(name, shapes[name], SEED), policy=policy)
    return folder / kind


@pytest.fixture(scope="module", params=KINDS)
def gated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SdRpnModel]:
    """A bundle of both dialects, and the model in PyTorch."""
    folder = tmp_path_factory.mktemp(request.param)
    rpn = write_gated(folder, request.param, ModelPolicy(LOOK, "labels"))
    for dialect in ("fused", "primitive"):
        export_bundle(folder / "base", folder / "bundle", ExportOptions("fp32", dialect), rpn=rpn)
    with open_checkpoint(folder / "base", rpn=rpn) as checkpoint:
        return folder / "bundle", model_from_checkpoint(checkpoint)


def asked(session: Session, ids: tuple[int, ...] = QUESTION, **changes: Any) -> Any:
    policy = dataclasses.replace(LOOK, **changes)
    return session.answer_ids(picture(), BEFORE, ids, roi=policy, max_new_tokens=NEW_TOKENS, trace=True)


def expected_of(model: SdRpnModel, ids: tuple[int, ...], **changes: Any) -> Any:
    policy = dataclasses.replace(LOOK, **changes)
    return reference_answer(model, picture_image(), BEFORE, ids, roi=policy, max_new_tokens=NEW_TOKENS, stop_ids=(2,))


def picture_image() -> Any:
    from PIL import Image

    return Image.fromarray(picture())


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
def test_a_session_decides_as_the_reference(gated: tuple[Path, SdRpnModel], dialect: str) -> None:
    bundle, model = gated
    with Session.open(bundle, variant=f"{dialect}-fp32", threads=1) as session:
        for ids in (QUESTION, OTHER):
            again, expected = asked(session, ids, gate_threshold=0.0), expected_of(model, ids, gate_threshold=0.0)
            assert again.gate_score == pytest.approx(gate_score(expected.gate_logit), abs=PARITY_ABS)
            assert again.roi_token_count == expected.roi_token_count > 0
            assert again.token_ids == expected.token_ids
            above = float(np.nextafter(again.gate_score, 1))
            once, plain = asked(session, ids, gate_threshold=above), expected_of(model, ids, gate_threshold=1.0)
            assert once.token_ids == plain.token_ids
            assert (once.roi_token_count, once.boxes_xyxy_px) == (0, ())
            assert once.note.startswith("nothing inserted: the gate's score is")
            assert once.gate_score == pytest.approx(again.gate_score, abs=PARITY_ABS)


def test_a_probe_runs_for_one_row_and_layers_for_the_prompt(gated: tuple[Path, SdRpnModel]) -> None:
    bundle, model = gated
    with Session.open(bundle, variant="fused-fp32", threads=1) as session:
        rows = asked(session, gate_threshold=0.5).tokens
        assert model.gate is not None
        assert rows.gate_rows == (1 if model.gate.is_probe else rows.prompt)
        assert asked(session, OTHER, gate_threshold=1.5).tokens.roi == 0
        never = session.answer_ids(
            picture(), BEFORE, (31,), roi=dataclasses.replace(LOOK, gate_threshold=1.5), max_new_tokens=1
        )
        assert (never.tokens.gate_rows, never.tokens.rpn_rows) == (0, 0)


def test_a_look_has_map_and_score(gated: tuple[Path, SdRpnModel]) -> None:
    bundle, model = gated
    with Session.open(bundle, variant="fused-fp32", threads=1) as session:
        look = session.look_ids(picture(), BEFORE, QUESTION, roi=dataclasses.replace(LOOK, gate_threshold=1.0))
        expected = expected_of(model, QUESTION, gate_threshold=0.0)
        assert look.gate_score == pytest.approx(gate_score(expected.gate_logit), abs=PARITY_ABS)
        assert look.roi_map is not None
        assert look.boxes == ()


def test_every_graph_is_compared(gated: tuple[Path, SdRpnModel]) -> None:
    bundle, _ = gated
    found = verify_bundle(bundle, bundle.parent / "base", rpn=next(bundle.parent.glob("*/rpn.json")).parent)
    assert found.ok
    graphs = {gate.graph for own in found.gates.values() for gate in own}
    assert "gate" in graphs


def test_graphs_pass_the_smoke_test(gated: tuple[Path, SdRpnModel]) -> None:
    from sdrpn.bundle.bundle import open_bundle

    opened = open_bundle(gated[0])
    variant = opened.manifest.variants["primitive-fp32"]
    gates = list(smoke_test_graphs(opened, variant, variant, open_backend("onnxruntime", 1)))
    assert "gate" in {gate.graph for gate in gates}
    assert all(gate.ok for gate in gates)


def test_a_gate_without_a_threshold_of_its_own_has_the_usual_one(tmp_path: Path) -> None:
    rpn = write_gated(tmp_path, "layers")
    with open_checkpoint(tmp_path / "base", rpn=rpn) as checkpoint:
        assert checkpoint.policy.roi.gate_threshold == 0.5
    with open_checkpoint(tmp_path / "base") as checkpoint:
        assert checkpoint.policy.roi.gate_threshold is None


def test_a_file_of_an_earlier_release_has_the_gate_beside_the_rpn(tmp_path: Path) -> None:
    from sdrpn.checkpoint.safetensors_file import SafetensorsReader, SafetensorsWriter

    rpn = write_gated(tmp_path, "layers")
    with open_checkpoint(tmp_path / "base", rpn=rpn) as checkpoint:
        expected = {name: np.array(checkpoint.read(name)) for name in tensor_shapes(checkpoint.spec)}
    both: dict[str, np.ndarray] = {}
    for name in ("rpn.safetensors", "gate.safetensors"):
        reader = SafetensorsReader(rpn / name)
        both |= {key: np.array(reader.read(key)) for key in reader.tensors}
    shapes = {key: array.shape for key, array in both.items()}
    with SafetensorsWriter(rpn / "rpn.safetensors", shapes, np.dtype("float32")) as writer:
        for key, array in both.items():
            writer.write(key, array)
    (rpn / "gate.safetensors").unlink()
    with open_checkpoint(tmp_path / "base", rpn=rpn) as checkpoint:
        for name, array in expected.items():
            assert np.array_equal(checkpoint.read(name), array), name


def test_a_gate_whose_file_is_gone_is_refused(tmp_path: Path) -> None:
    rpn = write_gated(tmp_path, "probe")
    (rpn / "gate.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"gate\.head"):
        open_checkpoint(tmp_path / "base", rpn=rpn)


def test_an_rpn_that_replaces_one_with_a_gate_takes_it_away(tmp_path: Path) -> None:
    rpn = write_gated(tmp_path, "layers")
    plain = tiny_spec()
    shapes = tensor_shapes(plain)
    write_rpn(rpn, plain, lambda name: random_tensor(name, shapes[name], SEED))
    assert not (rpn / "gate.safetensors").exists()


def test_a_gate_has_one_kind() -> None:
    with pytest.raises(BadInput, match="gate_layers is 1 and gate_probe true; expected one of the two"):
        RpnSpec(2, gate_layers=1, gate_probe=True)


@pytest.mark.parametrize(
    ("strong", "expected"),
    [
        ((slice(1, 2), slice(2, 3)), (1, 1)),
        ((slice(0, 3), slice(1, 5)), (3, 4)),
    ],
)
def test_statistics_of_a_map(strong: tuple[slice, slice], expected: tuple[int, int]) -> None:
    logits = np.full((4, 6), -8, np.float32)
    logits[strong] = 2
    found = dict(zip(MAP_STATISTICS, map_statistics(logits), strict=True))
    probability = 1 / (1 + np.exp(-2.0))
    assert found["peak"] == pytest.approx(probability, abs=1e-6)
    assert found["height"] * 4 == pytest.approx(expected[0])
    assert found["width"] * 6 == pytest.approx(expected[1])
    assert found["share of cells above 0.5"] * 24 == pytest.approx(expected[0] * expected[1])
    assert 0.98 < found["sharpness"] <= 1


def test_graphs_without_attention_are_saved_as_they_are(gated: tuple[Path, SdRpnModel], tmp_path: Path) -> None:
    import shutil

    from sdrpn.workflows.graph_optimization import optimize_bundle

    shutil.copytree(gated[0], tmp_path / "bundle")
    with Session.open(tmp_path / "bundle", variant="fused-fp32", threads=1, optimized=False) as session:
        before = asked(session, gate_threshold=0.0)
    saved = optimize_bundle(tmp_path / "bundle", variant="fused-fp32")
    assert "gate" in saved.manifest.graphs
    with Session.open(tmp_path / "bundle", variant="fused-fp32", threads=1) as session:
        after = asked(session, gate_threshold=0.0)
    assert after.gate_score == pytest.approx(before.gate_score, abs=PARITY_ABS)
    assert after.token_ids == before.token_ids
