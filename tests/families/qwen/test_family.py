"""The two families as the rest of the program sees them: checkpoints, positions, decisions, modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.checkpoint import Checkpoint, open_checkpoint, write_random_checkpoint, write_rpn
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.family import CropTokens, Layout
from sdrpn.families.qwen.tower_inputs import most_windows, window_layout
from sdrpn.families.qwen.vision_spec import Qwen25Vision
from sdrpn.families.registry import family_named, family_of, prompt_of, spec_from_json
from sdrpn.method.grids import cell_count
from sdrpn.method.spec import ModelSpec, RpnSpec
from sdrpn.model.vision import vision_module
from tests.families.qwen.models import GATED, KINDS, RPN, SDRPN, spec_3, spec_25
from tests.families.qwen.official import vision_3, vision_25
from tests.families.qwen.second_pass import second_pass

EVERY = pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)


@EVERY
@pytest.mark.parametrize("layout", [None, "transformers-5"])
def test_a_random_checkpoint_is_read_back(spec: ModelSpec, layout: str | None, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", spec, layout=layout, with_tokenizer=True)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        # Without an RPN no config says where the model is cut.
        assert checkpoint.spec == (spec if spec.rpn is not None else dataclasses.replace(spec, tap_layer=3))
        assert checkpoint.rpn_trained is False
        assert checkpoint.names == frozenset(tensor_shapes(spec))
        assert checkpoint.tokenizer_dir == tmp_path / "model"
        tokenizer = tokenizer_of(checkpoint)
        assert tokenizer.encode("<|vision_start|>a", add_special_tokens=False).ids[0] > 256


def test_the_seed_decides_whatever_the_layout(tmp_path: Path) -> None:
    spec = spec_25()
    for layout in ("transformers-4", "transformers-5"):
        write_random_checkpoint(tmp_path / layout, spec, layout=layout, seed=3)
    with open_checkpoint(tmp_path / "transformers-4") as old, open_checkpoint(tmp_path / "transformers-5") as new:
        assert old.layout != new.layout
        for name in ("vision.layers.0.mlp.gate.bias", "gate.head.weight", "rpn.layers.1.attention.k.bias"):
            assert np.array_equal(old.read(name), new.read(name))


@EVERY
def test_a_spec_survives_a_manifest(spec: ModelSpec) -> None:
    assert spec_from_json(spec.to_json()) == spec


def test_the_default_prompt_of_a_folder_without_a_template(tmp_path: Path) -> None:
    spec = dataclasses.replace(spec_3(), prompt=dataclasses.replace(spec_3().prompt, template=""))
    write_random_checkpoint(tmp_path / "model", spec, with_tokenizer=True)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        tokenizer = tokenizer_of(checkpoint)
        prompt = prompt_of(checkpoint.spec, tokenizer, "Which colour?")
        assert tokenizer.id_to_token(prompt.ids_before[-1]) == "<|vision_start|>"
        assert tokenizer.id_to_token(prompt.ids_after[0]) == "<|vision_end|>"


# An RPN of its own beside a bare model ----------------------------------------------------------------------------


def beside(folder: Path, bare: ModelSpec, whole: ModelSpec) -> Checkpoint:
    """A bare model, and the RPN of another one in a folder of its own."""
    write_random_checkpoint(folder / "bare", bare)
    write_random_checkpoint(folder / "whole", whole, seed=1)
    with open_checkpoint(folder / "whole") as checkpoint:
        write_rpn(_made(folder / "rpn"), checkpoint.spec, checkpoint.read, note="of the whole one")
    return open_checkpoint(folder / "bare", rpn=folder / "rpn")


@pytest.mark.parametrize("kind", ["sd-rpn", "q-zoom", "q-zoom-gate", "q-zoom-3"])
def test_an_rpn_and_its_gate_beside_a_bare_model(kind: str, tmp_path: Path) -> None:
    whole = KINDS[kind]
    with (
        beside(tmp_path, dataclasses.replace(whole, rpn=None), whole) as checkpoint,
        open_checkpoint(tmp_path / "whole") as other,
    ):
        assert checkpoint.spec == whole
        assert checkpoint.rpn_trained
        gate = ["gate.head.bias", "gate.layers.1.mlp.down.weight"] if whole.rpn and whole.rpn.gate_layers else []
        for name in ("rpn.layers.1.attention.q.weight", *gate):
            assert np.array_equal(checkpoint.read(name), other.read(name))
        assert not np.array_equal(checkpoint.read("llm.norm.weight"), other.read("llm.norm.weight"))


def test_an_rpn_of_another_family(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"is an RPN for a model of another family; expected one for qwen3-vl"):
        beside(tmp_path, spec_3(None), spec_25())


def test_an_rpn_of_another_depth(tmp_path: Path) -> None:
    deep = dataclasses.replace(spec_25(RPN), tap_layer=4)
    shallow = dataclasses.replace(deep, llm=dataclasses.replace(deep.llm, layers=5), rpn=None, tap_layer=2)
    with pytest.raises(BadCheckpoint, match="an RPN of 2 layers after layer 4 needs 6 LLM layers"):
        beside(tmp_path, shallow, deep)
    one = dataclasses.replace(vision_3(), deepstack_layers=(1,))
    low = dataclasses.replace(spec_3(), tap_layer=1, vision=one)
    with pytest.raises(BadCheckpoint, match=r"rpn\.json: the tap lies after layer 1, and the vision tower has"):
        beside(tmp_path / "low", spec_3(None), low)


def test_an_rpn_of_another_scheme(tmp_path: Path) -> None:
    beside(tmp_path, spec_25(None), spec_25()).close()
    with pytest.raises(BadInput, match="is an RPN of the scheme q-zoom; got sd-rpn"):
        open_checkpoint(tmp_path / "bare", rpn=tmp_path / "rpn", scheme="sd-rpn")


def test_the_scheme_is_overridden(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", spec_25())
    with open_checkpoint(tmp_path / "model", scheme="sd-rpn") as checkpoint:
        assert checkpoint.spec.rpn == SDRPN
        assert not any(name.startswith("gate.") for name in checkpoint.names)


def test_what_has_no_place_beside_these_checkpoints(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", spec_25(None))
    with pytest.raises(BadInput, match="has no place for base"):
        open_checkpoint(tmp_path / "model", base=tmp_path)
    with pytest.raises(BadInput, match="there is no fit to choose"):
        open_checkpoint(tmp_path / "model", fit="crop")


# Positions and the second pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("rpn", [RPN, SDRPN], ids=["q-zoom", "sd-rpn"])
def test_positions_are_those_of_the_insertion(rpn: RpnSpec, kept: bool, reuse: bool) -> None:
    spec = spec_25(dataclasses.replace(rpn, reuse_positions=reuse and rpn is RPN))
    family, hw, crop_hw, box = family_of(spec), (5, 4), (3, 6), (1, 2, 3, 5)
    rng = np.random.default_rng(0)
    cells, source = (rng.random((3, 6)) > 0.5, rng.random(20) > 0.5) if kept else (None, None)
    before, after = [7, 8, 302], [303, 9]
    assert spec.rpn is not None
    expected = second_pass(
        spec.rpn.scheme,
        before,
        hw,
        after,
        crop_hw,
        image_id=304,
        source_box_cells=box if spec.rpn.reuse_positions else None,
        keep_cells=cells,
        keep_source=source,
    )
    found = family.positions(spec, Layout(3, hw, (CropTokens(crop_hw, cells, box),), 2, source))
    assert found is not None
    assert np.array_equal(found.rows, expected.kept_rows)
    assert found.following == expected.positions.following
    around = family.around_crop(spec, before, after)
    first = 3 + 20
    ids = expected.token_ids.tolist()
    assert ids[first : first + len(around.leading)] == list(around.leading)
    end = first + len(around.leading) + 18
    assert ids[end : end + len(around.trailing)] == list(around.trailing)


def test_positions_of_the_first_pass() -> None:
    spec = spec_3()
    found = family_of(spec).positions(spec, Layout(2, (2, 3), (), 2))
    assert found is not None
    assert found.rows.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert found.following == 7


def test_sinks_come_from_the_model_or_from_the_border() -> None:
    spec = spec_3()
    family = family_of(spec)
    decide = family.decide(family.policy(spec), spec)
    logits = np.full((4, 4), -9.0, np.float32)
    logits[0, 0] = 9
    assert decide(logits, (128, 128)).boxes_cells.tolist() == [[0, 0, 1, 1]]
    sinks = np.full((4, 4), -9.0, np.float32)
    sinks[0, 0] = 9
    assert decide(logits, (128, 128), sinks).crops == ()
    wide = spec_25(tokens=(4, 400))
    large = np.full((18, 18), -9.0, np.float32)
    large[0, 0] = 9
    border = family_of(wide).decide(family_of(wide).policy(wide), wide)
    assert border(large, (18 * 28, 18 * 28)).crops == ()
    assert family.policy(spec).gate_threshold == 0.1
    assert family_of(wide).policy(spec_25(SDRPN)).gate_threshold is None


# Towers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec_25(), spec_3()], ids=["2.5", "3"])
def test_a_look_is_what_the_graph_and_the_module_take(spec: ModelSpec) -> None:
    family = family_of(spec)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 330, 3), np.uint8))
    look = family.first_look(picture, spec.vision)
    declared = family.vision_inputs(spec)
    assert [tensor.name for tensor in declared] == list(look)
    assert [tensor.dtype for tensor in declared] == [array.dtype.name for array in look.values()]
    with torch.inference_mode():
        found = vision_module(spec)(*map(torch.from_numpy, look.values()))
    assert found.shape == (1, cell_count(spec.vision.grid(picture.size).hw), spec.llm.width)


def test_extents_cover_every_picture() -> None:
    spec = spec_25(tokens=(4, 60))
    extents = family_of(spec).look_extents(spec)
    vision = spec.vision
    assert isinstance(vision, Qwen25Vision)
    for size in ((28, 28), (28, 5000), (3000, 40), (700, 700), (4000, 3000)):
        rows = window_layout(vision.grid(size).hw, vision).rows
        assert extents["windows"][0] <= len(rows) <= extents["windows"][2]
        assert len(family_of(spec).first_look(Image.new("RGB", size), vision)["pixel_values"]) <= extents["patches"][2]
    assert most_windows(vision_25(4, 16384)) == 4096
    assert GATED.gate_layers == 2


def test_the_budget_is_what_is_asked_for() -> None:
    family = family_named("qwen2.5-vl")
    assert family.with_image_tokens(spec_25().vision, 16, 120).image_tokens >= 120
    with pytest.raises(BadInput, match="expected 4 <= least <= most"):
        family.with_image_tokens(spec_25().vision, 3, 120)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
