"""Taps in files are those that the trunk gives; files are shared, resumed, and refuse a value that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import RunFailed
from sdrpn.images.image import open_image
from sdrpn.model import BaseModel, base_from_checkpoint
from sdrpn.model.looks import picture_tokens
from sdrpn.train import taps as taps_module
from sdrpn.train.base import FrozenBase
from sdrpn.train.label_set import LabelledPrompt, read_labels
from sdrpn.train.options import TapStore
from sdrpn.train.taps import ComputedTaps, StoredTaps, store_taps
from tests.tolerances import SAME_MATH_ABS
from tests.train.data import write_labels

# Taps have values to about 4; rounding to 11 and to 8 bits.
ROUNDED_ABS: dict[TapStore, float] = {"fp32": 0, "fp16": 2e-3, "bf16": 1.6e-2}


@pytest.fixture
def model(plain_checkpoint: Path) -> BaseModel:
    with open_checkpoint(plain_checkpoint) as checkpoint:
        return base_from_checkpoint(checkpoint, 2)


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[LabelledPrompt]:
    """24 prompts about 12 images, in three files."""
    monkeypatch.setattr(taps_module, "FILE_PROMPTS", 10)
    return read_labels(write_labels(tmp_path)).prompts


@pytest.fixture
def make_base(model: BaseModel, tmp_path: Path) -> Callable[[], FrozenBase]:
    return lambda: FrozenBase(model, tmp_path / "images", "fp32")


def test_computed_in_parts_they_are_those_of_the_whole_prompt(
    model: BaseModel, prompts: Sequence[LabelledPrompt], make_base: Callable[[], FrozenBase], tmp_path: Path
) -> None:
    taps = ComputedTaps(make_base(), prompts)
    for place in (5, 4, 23):
        prompt = prompts[place]
        image = picture_tokens(model, open_image(tmp_path / "images" / prompt.image))
        ids_before, ids_after = (model.embed(torch.tensor(ids)) for ids in (prompt.ids_before, prompt.ids_after))
        embeds = torch.cat((ids_before, image, ids_after))[None]
        with torch.no_grad():
            whole = model.trunk(embeds, torch.arange(embeds.shape[1])[None])
        torch.testing.assert_close(taps.tap(place), whole[0], rtol=0, atol=SAME_MATH_ABS)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_stored_they_are_the_computed_ones(
    prompts: Sequence[LabelledPrompt], make_base: Callable[[], FrozenBase], tmp_path: Path, kind: TapStore
) -> None:
    store_taps(tmp_path / "taps", prompts, "key", kind, make_base)
    stored, computed = StoredTaps(tmp_path / "taps", prompts, "key", kind), ComputedTaps(make_base(), prompts)
    for place in range(len(prompts)):
        expected = computed.tap(place)
        torch.testing.assert_close(stored.tap(place).float(), expected, rtol=0, atol=ROUNDED_ABS[kind])
    # A prefix that two questions share is there once.
    rows = sum(np.load(path).shape[0] for path in (tmp_path / "taps").iterdir())
    assert rows == 12 * (3 + 16) + sum(len(prompt.ids_after) for prompt in prompts)


def test_only_what_is_missing_is_computed(
    prompts: Sequence[LabelledPrompt], make_base: Callable[[], FrozenBase], tmp_path: Path
) -> None:
    folder = tmp_path / "taps"
    seen: list[tuple[int, int]] = []

    def cut_off(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_taps(folder, prompts, "key", "fp16", make_base, progress=cut_off)
    assert len(list(folder.iterdir())) == 1
    store_taps(folder, prompts, "key", "fp16", make_base, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 24) for done in range(1, 15)] + [(done, 14) for done in range(1, 15)]

    def refuse() -> FrozenBase:
        raise AssertionError("nothing is missing")

    store_taps(folder, prompts, "key", "fp16", refuse)
    with pytest.raises(AssertionError, match="nothing is missing"):
        store_taps(folder, prompts, "another model", "fp16", refuse)


def test_processes_divide_the_files(
    prompts: Sequence[LabelledPrompt], make_base: Callable[[], FrozenBase], tmp_path: Path
) -> None:
    folder = tmp_path / "taps"
    store_taps(folder, prompts, "key", "fp16", make_base, share=(1, 2))
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(RunFailed, match="must lie in a folder that all machines share"):
        StoredTaps(folder, prompts, "key", "fp16")
    store_taps(folder, prompts, "key", "fp16", make_base, share=(0, 2))
    assert len(list(folder.iterdir())) == 3
    StoredTaps(folder, prompts, "key", "fp16")


def test_a_value_that_fp16_cannot_hold(
    model: BaseModel, prompts: Sequence[LabelledPrompt], make_base: Callable[[], FrozenBase], tmp_path: Path
) -> None:
    model.embed.weight.data[5] = 1e5
    with pytest.raises(
        RunFailed, match=r"a tap has the value 1e\+05, above the largest fp16, 6\.55e\+04; store taps as bf16"
    ):
        store_taps(tmp_path / "taps", prompts, "key", "fp16", make_base)
    assert not (tmp_path / "taps").exists()
    store_taps(tmp_path / "taps", prompts, "key", "bf16", make_base)
