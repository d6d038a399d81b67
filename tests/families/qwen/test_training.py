"""The training of an RPN on models of these families: loss and gradients of the official code, grids of any shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.errors import BadInput
from sdrpn.families.registry import family_named, family_of, published_recipes
from sdrpn.gate.gate_set import GateSample
from sdrpn.gate.loop import GateLoop
from sdrpn.gate.options import GateOptions
from sdrpn.images.image import open_image
from sdrpn.method.spec import ModelSpec
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.base import base_at
from sdrpn.model.looks import picture_look
from sdrpn.model.positions import positions_on
from sdrpn.model.prompt_rows import prompt_rows
from sdrpn.train.base import FrozenBase
from sdrpn.train.batches import TapBatches
from sdrpn.train.label_set import LabelledPrompt
from sdrpn.train.loop import TrainLoop
from sdrpn.train.options import TrainOptions, preset_named
from sdrpn.train.start import rpn_from_layers
from sdrpn.train.taps import ComputedTaps
from tests.families.qwen.models import spec_3, spec_25
from tests.families.qwen.official import IMAGE, SET, write_checkpoint
from tests.tolerances import GOLDEN_LOSS_RELATIVE, SAME_MATH_ABS

CPU = torch.device("cpu")
OFFICIAL = "q25_K3T3"
BUDGETS = {"land_1": (16, 100), "sq_0": (100, 100)}
GATE_BUDGETS = {**BUDGETS, "port_2": (16, 100)}  # the last one needs another look
# Names in Qwen2.5-VL's checkpoints.
PARTS = {
    "attention": "self_attn",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}


@dataclass(frozen=True, eq=False)
class OfficialLoss:
    """What the official code has for one sample."""

    prompt: LabelledPrompt
    loss: float
    norms: dict[str, float]  # of gradients; -1 where there is none
    gradients: dict[str, NDArray[np.float32]]


def official_loss(name: str) -> OfficialLoss:
    with np.load(SET / OFFICIAL / "train_loss.npz") as file:
        found: dict[str, Any] = {key.removeprefix(f"roi_{name}_"): file[key] for key in file.files}
    ids = found["input_ids"][0].tolist()
    first, length = ids.index(IMAGE), int((found["labels"][0] == -100).sum())
    after = tuple(token for token in ids[first:length] if token != IMAGE)
    cells = found["target"][0].astype(np.int8)
    norms = dict(zip(found["roi_param_names"].tolist(), found["gradnorms"].tolist(), strict=True))
    gradients = {key.removeprefix("grad_"): value for key, value in found.items() if key.startswith("grad_")}
    return OfficialLoss(
        LabelledPrompt(f"{name}.png", tuple(ids[:first]), after, cells), float(found["loss"]), norms, gradients
    )


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdRpnModel]:
    folder = tmp_path_factory.mktemp("official") / OFFICIAL
    write_checkpoint(OFFICIAL, folder)
    with open_checkpoint(folder) as checkpoint:
        yield model_from_checkpoint(checkpoint)


def with_tokens(spec: ModelSpec, least: int, most: int) -> ModelSpec:
    vision = family_named(spec.vision.family).with_image_tokens(spec.vision, least, most)
    return dataclasses.replace(spec, vision=vision)


def loop_on(model: SdRpnModel, spec: ModelSpec, images: Path, prompts: list[LabelledPrompt]) -> TrainLoop:
    assert model.rpn is not None
    base = base_at(model, model.spec.tap_layer)
    base.spec = dataclasses.replace(base.spec, vision=spec.vision)
    batches = TapBatches(prompts, ComputedTaps(FrozenBase(base, images, "fp32"), prompts), spec, CPU)
    options = TrainOptions(tap_layer=3, rpn_layers=3, precision="fp32")
    return TrainLoop(model.rpn.requires_grad_(True), spec, options, batches, Accelerator(cpu=True))


@pytest.mark.parametrize("name", [name for name in BUDGETS if (SET / "images" / f"{name}.png").is_file()])
def test_loss_and_gradients_are_those_of_the_official_code(official: SdRpnModel, name: str) -> None:
    expected, spec = official_loss(name), with_tokens(official.spec, *BUDGETS[name])
    loop = loop_on(official, spec, SET / "images", [expected.prompt])
    official.zero_grad()
    loss = loop._share_of_loss(loop._batches.make([0]), loop._batches.labelled_cells([0]), 1)
    assert loss.item() == pytest.approx(expected.loss, rel=GOLDEN_LOSS_RELATIVE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert official.rpn is not None
    norms = dict(expected.norms)
    for name, parameter in official.rpn.named_parameters():
        assert parameter.grad is not None
        theirs = f"twig_{'.'.join(PARTS.get(part, part) for part in name.split('.'))}"
        assert float(parameter.grad.norm()) == pytest.approx(norms.pop(theirs), rel=GOLDEN_LOSS_RELATIVE), name
        if theirs in expected.gradients:
            gradient = expected.gradients[theirs]
            difference = np.abs(parameter.grad.numpy() - gradient).max() / np.abs(gradient).max()
            assert difference < GOLDEN_LOSS_RELATIVE, name
    assert set(norms.values()) == {-1.0}, "the parts of the last layer that are never used"


def official_gate_loss(name: str) -> tuple[OfficialLoss, bool]:
    """What the official code has for a sample of the gate, and its label."""
    with np.load(SET / OFFICIAL / "train_loss.npz") as file:
        found: dict[str, Any] = {key.removeprefix(f"gate_{name}_"): file[key] for key in file.files}
    ids, hw = found["input_ids"][0].tolist(), found["grid"][0, 1:] // 2
    first, length = ids.index(IMAGE), int((found["labels"][0] == -100).sum())
    after = tuple(token for token in ids[first:length] if token != IMAGE)
    norms = dict(zip(found["gate_param_names"].tolist(), found["gradnorms"].tolist(), strict=True))
    gradients = {key.removeprefix("grad_"): value for key, value in found.items() if key.startswith("grad_")}
    prompt = LabelledPrompt(f"{name}.png", tuple(ids[:first]), after, np.full(hw.tolist(), -100, np.int8))
    return OfficialLoss(prompt, float(found["loss"]), norms, gradients), bool(found["signal"][0, 0])


@pytest.mark.parametrize("name", [name for name in GATE_BUDGETS if (SET / "images" / f"{name}.png").is_file()])
def test_the_gates_loss_and_gradients_are_those_of_the_official_code(official: SdRpnModel, name: str) -> None:
    expected, label = official_gate_loss(name)
    spec, gate = with_tokens(official.spec, *GATE_BUDGETS[name]), official.gate
    assert gate is not None
    base = base_at(official, official.spec.tap_layer)
    base.spec = dataclasses.replace(base.spec, vision=spec.vision)
    prompts = [expected.prompt]
    batches = TapBatches(prompts, ComputedTaps(FrozenBase(base, SET / "images", "fp32"), prompts), spec, CPU)
    loop = GateLoop(gate.requires_grad_(True), GateOptions(precision="fp32"), Accelerator(cpu=True))
    gate.zero_grad()
    loss = loop._share_of_loss(batches, [GateSample(0, 0, label)], [0], 1)
    assert loss.item() == pytest.approx(expected.loss, rel=GOLDEN_LOSS_RELATIVE)
    loss.backward()  # type: ignore[no-untyped-call]
    norms = dict(expected.norms)
    for parameter_name, parameter in gate.named_parameters():
        assert parameter.grad is not None
        theirs = "high_res_" + ".".join(PARTS.get(part, part) for part in parameter_name.split("."))
        assert float(parameter.grad.norm()) == pytest.approx(norms.pop(theirs), rel=GOLDEN_LOSS_RELATIVE), theirs
        if theirs in expected.gradients:
            gradient = expected.gradients[theirs]
            difference = np.abs(parameter.grad.numpy() - gradient).max() / np.abs(gradient).max()
            assert difference < GOLDEN_LOSS_RELATIVE, theirs
    assert norms == {}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, (width, height) in {"wide": (260, 90), "tall": (80, 200), "small": (70, 70)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module", params=[spec_25, spec_3], ids=["2.5", "3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdRpnModel]:
    folder = tmp_path_factory.mktemp("random") / "model"
    write_random_checkpoint(folder, request.param())
    with open_checkpoint(folder) as checkpoint:
        yield model_from_checkpoint(checkpoint)


class TestGridsOfSeveralShapes:
    """One batch of pictures of several shapes, for either family."""

    def prompts(self, model: SdRpnModel, images: Path) -> list[LabelledPrompt]:
        rng = np.random.default_rng(1)
        found = list[LabelledPrompt]()
        for name in ("wide", "tall", "small"):
            grid = model.spec.vision.grid(open_image(images / f"{name}.png").size)
            cells = rng.choice(np.array([1, 0, -100], np.int8), grid.hw)
            after = tuple(rng.integers(5, 200, 4 + len(found)).tolist())
            found.append(LabelledPrompt(f"{name}.png", (300, 9, 302), (303, *after), cells))
        assert len({prompt.cells.shape for prompt in found}) == 3
        return found

    def test_taps_are_those_of_the_first_pass(self, model: SdRpnModel, images: Path) -> None:
        for prompt in self.prompts(model, images):
            picture = open_image(images / prompt.image)
            rows = prompt_rows(model, picture, picture_look(model, picture), prompt.ids_before, prompt.ids_after)
            expected = model.trunk(rows.embeds, rows.positions, deepstack=rows.deepstack)[0]
            base = FrozenBase(base_at(model, model.spec.tap_layer), images, "fp32")
            tap = torch.cat((base.prefix(prompt), base.question(prompt)))
            torch.testing.assert_close(tap, expected, rtol=0, atol=SAME_MATH_ABS)

    def test_padding_plays_no_part(self, model: SdRpnModel, images: Path) -> None:
        prompts = self.prompts(model, images)
        loop = loop_on(model, model.spec, images, prompts)
        with torch.no_grad():
            batch = loop._batches.make([0, 1, 2])
            together = loop._logits(batch)
            for place, prompt in enumerate(prompts):
                alone = loop._logits(loop._batches.make([place]))[0]
                torch.testing.assert_close(together[place, : prompt.cells.size], alone, rtol=0, atol=SAME_MATH_ABS)
                assert (batch.labels[place, prompt.cells.size :] == -100).all()

    def test_sinks_are_left_out_as_an_answer_does(
        self, model: SdRpnModel, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts, kept = self.prompts(model, images), list[NDArray[np.bool_]]()
        assert model.rpn is not None
        monkeypatch.setattr("sdrpn.train.loop.measure_quality", lambda maps, cells, own: kept.extend(own))
        loop_on(model, model.spec, images, prompts).validate([0, 1, 2])
        base = FrozenBase(base_at(model, model.spec.tap_layer), images, "fp32")
        for prompt, found in zip(prompts, kept, strict=True):
            hw, start = prompt.cells.shape, len(prompt.ids_before)
            tap = torch.cat((base.prefix(prompt), base.question(prompt)))[None]
            positions = positions_on(model.spec, start, hw, len(prompt.ids_after)).rows(0, tap.shape[1])
            with torch.no_grad():
                sinks = model.rpn.sink_logits(tap, positions)[0, start : start + prompt.cells.size].reshape(hw).numpy()
            shown = sinks if model.spec.rpn is not None and model.spec.rpn.sink_query else None
            np.testing.assert_array_equal(found, family_of(model.spec).kept_cells(model.spec, hw, shown))

    def test_pictures_can_be_padded_to_squares(self, model: SdRpnModel, images: Path) -> None:
        prompt = dataclasses.replace(self.prompts(model, images)[0], cells=np.zeros((9, 9), np.int8))
        base = FrozenBase(base_at(model, model.spec.tap_layer), images, "fp32", square=True)
        hw = model.spec.vision.grid((260, 260)).hw
        assert hw[0] == hw[1]
        assert len(base.prefix(dataclasses.replace(prompt, cells=np.zeros(hw, np.int8)))) == 3 + hw[0] * hw[1]
        with pytest.raises(BadInput, match=r"the labels of wide.png have .* cells and the checkpoint sees"):
            base.prefix(dataclasses.replace(prompt, cells=np.zeros((1, 2), np.int8), image="wide.png", ids_before=(1,)))


class TestWhereTrainingsStart:
    @pytest.mark.parametrize("kind", [spec_25, spec_3])
    def test_layers_are_copied_with_biases_and_norms_of_heads(self, kind: Any, tmp_path: Path) -> None:
        write_random_checkpoint(tmp_path / "model", kind(None))
        with open_checkpoint(tmp_path / "model") as checkpoint:
            spec = TrainOptions(tap_layer=3, rpn_layers=2).spec_for(checkpoint.spec)
            assert spec.rpn is not None
            state = rpn_from_layers(checkpoint, 3, spec.rpn).state_dict()
            part = "q_norm.weight" if spec.llm.qk_norm else "q.bias"
            assert spec.rpn.sink_query == spec.llm.qk_norm
            expected = checkpoint.read(f"llm.layers.4.attention.{part}")
            np.testing.assert_array_equal(state[f"layers.1.attention.{part}"], expected)
        assert "norm.weight" not in state, "there is no norm in front of the last layer's own"

    def test_official_trainings(self) -> None:
        options = {name: preset_named(name) for name in published_recipes()}
        assert {name: (each.tap_layer, each.scheme) for name, each in options.items()} == {
            "qwen2.5-vl-3b": (24, "q-zoom"),
            "qwen2.5-vl-7b": (18, "q-zoom"),
            "qwen2.5-vl-3b-sd-rpn": (21, "sd-rpn"),
            "qwen2.5-vl-7b-sd-rpn": (16, "sd-rpn"),
            "qwen3-vl-4b": (24, "q-zoom"),
        }
        for each in options.values():
            assert (each.rpn_layers, each.learning_rate, each.batch, each.epochs) == (3, 1e-4, 128, 1)
        with pytest.raises(BadInput, match=r"the preset 'qwen' is unknown; expected official, tiny, qwen2\.5-vl-3b"):
            preset_named("qwen")

    def test_a_scheme_that_the_family_cannot_have(self) -> None:
        sd_rpn = TrainOptions(tap_layer=3, rpn_layers=2, scheme="sd-rpn")
        found = sd_rpn.spec_for(spec_25(None)).rpn
        assert found is not None
        assert (found.scheme, found.prune_above) == ("sd-rpn", 1024)
        with pytest.raises(BadInput, match="SD-RPN has no Qwen3-VL"):
            sd_rpn.spec_for(spec_3(None))
