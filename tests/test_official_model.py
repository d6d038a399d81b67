"""The small set of official outputs that comes with the repository: its weights, and that it is part of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.families.qwen import official_model as qwen
from tests.official_model import SMALL_SET, normal_numbers, official_tensors
from tests.tolerances import DRAWN_WEIGHTS_ABS

WHOLE_SET = SMALL_SET.parents[2] / "shared" / "golden"
LEFT_OUT = "land_1box_left_out"
# Of these cases, the small set has some.
SOME_CASES = ("post_qzoom", "post_sdrpn")


def test_normal_numbers_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    np.testing.assert_allclose(normal_numbers(7, 4096), torch.randn(4096).numpy(), rtol=0, atol=DRAWN_WEIGHTS_ABS)


def test_weights_are_the_official_ones() -> None:
    """A few of either end of both streams, as the official checkpoint holds them."""
    model, tower = official_tensors()
    assert (len(model), len(tower)) == (145, 55)
    known = {
        "model.embed_tokens.weight": (0.18384549, 0.18324979, -2.3537683),
        "model.layers.5.mlp.down_proj.weight": (0.0135257, -0.02143408, -0.14800328),
        "model.mm_projector.0.bias": (0.01993196, -0.09209196, 0.12716122),
        "twig_head.weight": (0.26845157, 0.11757462, -0.12261463),
    }
    for name, values in known.items():
        np.testing.assert_allclose(model[name].ravel()[:3], values, rtol=0, atol=DRAWN_WEIGHTS_ABS)
    patches = tower["vision_model.embeddings.patch_embedding.weight"]
    np.testing.assert_allclose(
        patches.ravel()[:3], (0.09923967, -0.05056661, 0.04278807), rtol=0, atol=DRAWN_WEIGHTS_ABS
    )


def test_the_small_set_stays_small() -> None:
    assert sum(path.stat().st_size for path in SMALL_SET.rglob("*") if path.is_file()) < 1_250_000


@pytest.fixture
def whole() -> Path:
    if not WHOLE_SET.is_dir():
        pytest.skip(f"{WHOLE_SET} is not there: the small set is all there is")
    return WHOLE_SET


@pytest.mark.parametrize("part", ["", "clip"])
def test_all_weights_are_the_official_ones(whole: Path, part: str) -> None:
    expected = load_file(whole / "tiny_K3T3" / part / "model.safetensors")
    found = official_tensors()[part == "clip"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=DRAWN_WEIGHTS_ABS, err_msg=name)


@pytest.mark.parametrize("model", qwen.MODELS)
def test_all_weights_of_qwen_are_the_official_ones(whole: Path, model: str, tmp_path: Path) -> None:
    expected = load_file(whole / "qwen" / model / "model.safetensors")
    qwen.write_official_checkpoint(model, tmp_path / model)
    found = load_file(tmp_path / model / "model.safetensors")
    assert found.keys() == expected.keys()
    with np.load(SMALL_SET / "qwen" / model / "kept.npz") as kept:
        exact = set(kept.files)
    for name, tensor in expected.items():
        limit = 0 if name in exact else DRAWN_WEIGHTS_ABS
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=limit, err_msg=name)


def kept_files() -> list[str]:
    names = (path.relative_to(SMALL_SET) for path in SMALL_SET.rglob("*.npz"))
    return sorted(str(name) for name in names if name.name != "kept.npz")  # which holds weights


@pytest.mark.parametrize("name", kept_files())
def test_every_number_kept_is_an_official_output(whole: Path, name: str) -> None:
    with np.load(SMALL_SET / name) as kept, np.load(whole / name) as official:
        left_out = {f"land_1box_{key}" for key in kept[LEFT_OUT]} if LEFT_OUT in kept.files else set()
        if Path(name).stem in SOME_CASES:
            left_out = set(official.files) - set(kept.files)
            assert 30 < len(kept.files) < len(official.files)
        if Path(name).parent.name == "cases":
            left_out = set(official.files) - set(kept.files)
            assert "generated_ids" in kept.files
        if name.startswith("qwen/") and Path(name).stem == "pseudo_labels":
            assert len(kept.files) >= 30
            for key in kept.files:  # six of the official pictures, with numbers of their own
                kind, _, number = key.rpartition("_")
                if number.isdigit():
                    others = [official[other] for other in official.files if other.rpartition("_")[0] == kind]
                    assert any(np.array_equal(kept[key], other) for other in others), key
            return
        assert set(kept.files) - {LEFT_OUT} | left_out == set(official.files)
        for key in set(kept.files) - {LEFT_OUT}:
            np.testing.assert_array_equal(kept[key], official[key], err_msg=key)


def test_pictures_and_configs_are_the_official_ones(whole: Path) -> None:
    for path in SMALL_SET.rglob("*.json"):
        official = (whole / path.relative_to(SMALL_SET)).read_bytes()
        if path.stem in SOME_CASES:
            cases = json.loads(path.read_bytes())
            assert len(cases) >= 40
            assert [case for case in json.loads(official) if case in cases] == cases
        elif path.name == "cases.json":
            cases = json.loads(path.read_bytes())
            assert cases
            assert [case for case in json.loads(official) if case in cases] == cases
        else:
            assert path.read_bytes() == official
    for path in SMALL_SET.rglob("*.png"):
        with Image.open(path) as kept, Image.open(whole / path.relative_to(SMALL_SET)) as picture:
            np.testing.assert_array_equal(np.asarray(kept), np.asarray(picture))
