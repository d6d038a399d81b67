"""A second family, from a random checkpoint to an answer with a crop: nothing outside this folder knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.engines.profiles import profiles_of, shapes_of
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.export.bundle_writer import export_bundle
from sdrpn.export.options import ExportOptions
from sdrpn.families.family import CropTokens, Layout
from sdrpn.families.registry import family_of, registered, square_of
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.roi import Crop, RoiPolicy, decide_crops
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec
from sdrpn.runtime import Answer, Session
from tests.damage import edit_json
from tests.families.wide.checkpoint import write_wide
from tests.families.wide.numpy_model import NumpyModel
from tests.families.wide.vision_spec import WideSpec
from tests.tolerances import PARITY_ABS

LLM = LlmSpec(vocabulary=90, width=32, layers=4, heads=4, kv_heads=2, head_dim=12, mlp_width=48, max_context=128)
SPEC = ModelSpec(WideSpec(), LLM, tap_layer=2, rpn=RpnSpec(2), prompt=PromptSpec(image_token="<image>"))
BEFORE, TOKENS = (1, 7), 6
SIZES = [(160, 70), (70, 160), (500, 40)]  # grids of 4 x 8, 5 x 4 and 2 x 8 cells
QUESTIONS = [(20, 21, 22), (40, 41, 42, 43, 44)]


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with registered("wide", "tests.families.wide.family:FAMILY"):
        yield


@pytest.fixture(scope="module")
def model(known: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[NumpyModel, Path]:
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    return NumpyModel(SPEC, write_wide(folder, SPEC)), folder


@pytest.fixture(scope="module", params=["fused", "primitive"])
def session(request: pytest.FixtureRequest, model: tuple[NumpyModel, Path]) -> Iterator[Session]:
    bundle = model[1].parent / request.param
    export_bundle(model[1], bundle, ExportOptions(dialect=request.param))
    with Session.open(bundle, backend="onnxruntime", threads=1) as opened:
        yield opened


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def looked_at(model: NumpyModel, image: Image.Image, after: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """RoI logits (h,w) of pass 1."""
    family, grid = family_of(SPEC), SPEC.vision.grid(image.size)
    x = np.concatenate((model.embedded(BEFORE), _tokens(model, image), model.embedded(after)))
    found = family.positions(SPEC, Layout(len(BEFORE), grid.hw, (), len(after)))
    assert found is not None
    cells = slice(len(BEFORE), len(BEFORE) + grid.hw[0] * grid.hw[1])
    return model.roi_logits(model.tap(x, found.rows), found.rows, cells).reshape(grid.hw).astype(np.float32)


def answered(
    model: NumpyModel, image: Image.Image, after: tuple[int, ...], crops: tuple[Crop, ...]
) -> tuple[list[int], list[npt.NDArray[np.float64]]]:
    """Token ids and the logits of each, everything computed again for every token."""
    family, grid = family_of(SPEC), SPEC.vision.grid(image.size)
    inserted, tokens = [], []
    for crop in crops:
        encoded = _tokens(model, image, crop)
        tokens.append(encoded if crop.keep_cells is None else encoded[crop.keep_cells.ravel()])
        inserted.append(CropTokens(grid.crop_hw(crop.box_xyxy_px), crop.keep_cells))
    found = family.positions(SPEC, Layout(len(BEFORE), grid.hw, tuple(inserted), len(after)))
    assert found is not None
    x = np.concatenate((model.embedded(BEFORE), _tokens(model, image), *tokens, model.embedded(after)))
    positions, ids, logits = found.rows, list[int](), list[npt.NDArray[np.float64]]()
    while len(ids) < TOKENS:
        logits.append(model.logits(model.tap(x, positions), positions))
        ids.append(int(logits[-1].argmax()))
        x = np.concatenate((x, model.embedded((ids[-1],))))
        positions = np.concatenate((positions, np.full((3, 1), found.following + len(ids) - 1)), axis=1)
    return ids, logits


def _tokens(model: NumpyModel, image: Image.Image, crop: Crop | None = None) -> npt.NDArray[np.float64]:
    family = family_of(SPEC)
    look = family.first_look(image, SPEC.vision)
    if crop is not None:
        look = family.crop_look(image, crop.box_xyxy_px, SPEC.vision)
    return model.tokens_of(look["patches"], look["places"])


def policy_for(logits: npt.NDArray[np.float32], image: Image.Image, upscale: str) -> RoiPolicy:
    """One that finds a part of this map, whatever a random model makes of it."""
    grid = SPEC.vision.grid(image.size)
    for threshold in np.arange(0.05, 1, 0.01):
        policy = RoiPolicy(round(float(threshold), 2), upscale, min_cells=1)  # type: ignore[arg-type]
        crops = decide_crops(logits, grid, policy).crops
        if crops and crops[0].box_xyxy_px != (0, 0, *image.size):
            return policy
    raise AssertionError("no threshold finds a part of the picture")


def assert_equal(answer: Answer, ids: list[int], logits: list[npt.NDArray[np.float64]]) -> None:
    assert list(answer.token_ids) == ids
    assert answer.trace is not None
    np.testing.assert_allclose(answer.trace.step_logits, logits, atol=PARITY_ABS)


@pytest.mark.parametrize("upscale", ["bbox", "mask"])
@pytest.mark.parametrize("size", SIZES)
def test_answers_with_a_crop_are_those_of_numpy(
    session: Session, model: tuple[NumpyModel, Path], size: tuple[int, int], upscale: str
) -> None:
    image = picture(size)
    for after in QUESTIONS:  # the second one on the prefix of the first
        expected = looked_at(model[0], image, after)
        policy = policy_for(expected, image, upscale)
        crops = decide_crops(expected, SPEC.vision.grid(size), policy).crops
        ids, logits = answered(model[0], image, after, crops)
        answer = session.answer_ids(image, BEFORE, after, roi=policy, max_new_tokens=TOKENS, trace=True)
        assert answer.trace is not None
        assert answer.trace.roi_logits is not None
        np.testing.assert_allclose(answer.trace.roi_logits, expected, atol=PARITY_ABS)
        assert answer.boxes_xyxy_px == tuple(crop.box_xyxy_px for crop in crops)
        assert answer.roi_map is not None
        assert answer.roi_map.shape == SPEC.vision.grid(size).hw
        assert_equal(answer, ids, logits)


@pytest.mark.parametrize("size", SIZES)
def test_answers_without_a_crop_are_those_of_numpy(
    session: Session, model: tuple[NumpyModel, Path], size: tuple[int, int]
) -> None:
    image = picture(size)
    ids, logits = answered(model[0], image, QUESTIONS[0], ())
    answer = session.answer_ids(image, BEFORE, QUESTIONS[0], roi=None, max_new_tokens=TOKENS, trace=True)
    assert answer.tokens.image == SPEC.vision.grid(size).hw[0] * SPEC.vision.grid(size).hw[1]
    assert_equal(answer, ids, logits)


def test_positions_do_matter(session: Session, model: tuple[NumpyModel, Path]) -> None:
    """With the rows' own numbers in their place the answer is another: the comparison above can fail."""
    image = picture(SIZES[0])
    x = np.concatenate((model[0].embedded(BEFORE), _tokens(model[0], image), model[0].embedded(QUESTIONS[0])))
    rows = np.tile(np.arange(len(x)), (3, 1))
    plain = model[0].logits(model[0].tap(x, rows), rows)
    answer = session.answer_ids(image, BEFORE, QUESTIONS[0], roi=None, max_new_tokens=1, trace=True)
    assert answer.trace is not None
    assert np.abs(answer.trace.step_logits[0] - plain).max() > 100 * PARITY_ABS


def test_the_manifest_names_it(session: Session) -> None:
    spec = open_bundle(session.bundle.path).spec
    assert spec == SPEC
    assert spec.to_json()["family"] == "wide"


def test_its_checkpoints_are_opened_by_its_own_code(model: tuple[NumpyModel, Path], tmp_path: Path) -> None:
    with open_checkpoint(model[1]) as checkpoint:
        assert (checkpoint.spec, checkpoint.layout) == (SPEC, "wide")
        assert checkpoint.policy == ModelPolicy(RoiPolicy(0.4, min_cells=1), "official")
    with pytest.raises(BadInput, match=r"a whole model of its own family, which has no place for vision_tower"):
        open_checkpoint(model[1], vision_tower=tmp_path)
    other = tmp_path / "other"
    write_random_checkpoint(other, SPEC, seed=1)
    edit_json(other / "config.json", lambda config: config["spec"]["vision"].update(patch_px=5))
    with pytest.raises(
        BadCheckpoint, match=r"vision\.patch\.weight of .*other has the shape \[32, 48\]; expected \[32, 75\]"
    ):
        open_checkpoint(other)


@pytest.mark.parametrize("batch", [1, 8])
def test_engines_are_made_for_every_grid(session: Session, batch: int) -> None:
    (profile,) = profiles_of(SPEC, "vision", 128, batch)
    shapes = shapes_of(profile, session.variant.graphs["vision"].inputs)
    most = max(2, batch)
    assert shapes == {
        "patches": ((1, 4, 48), (1, 20, 48), (most, 40, 48)),
        "places": ((1, 4, 2), (1, 20, 2), (most, 40, 2)),
    }


def test_what_needs_squares_says_so() -> None:
    with pytest.raises(BadInput, match="models of the family 'wide' do not see pictures as squares"):
        square_of(SPEC)
