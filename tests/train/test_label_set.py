"""Reading labels, and holding images out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.labels.shards import LABEL_COLUMNS, read_shard, shard_path, write_shard
from sdrpn.train.label_set import LabelledPrompt, read_labels, split_by_image
from tests.train.data import write_labels

PROMPTS = [LabelledPrompt(f"{n // 2}.png", (1,), (2,), np.zeros(4, np.int8)) for n in range(40)]


def test_labels_are_read_in_order(tmp_path: Path) -> None:
    labels = read_labels(write_labels(tmp_path))
    assert [prompt.image for prompt in labels.prompts][:3] == ["0.png", "0.png", "1.png"]
    assert labels.images == tmp_path / "images"
    prompt = labels.prompts[0]
    assert (prompt.ids_before, prompt.ids_after[0], prompt.cells.shape) == ((1, 5, 6), 20, (4, 4))
    assert prompt.length() == 3 + 16 + len(prompt.ids_after)
    assert labels.digest() == read_labels(tmp_path / "labels").digest()


class TestSplit:
    def test_no_image_is_on_both_sides(self) -> None:
        split = split_by_image(PROMPTS, 0.2, seed=0)
        assert len(split.held_out) == 8
        assert sorted((*split.train, *split.held_out)) == list(range(40))
        sides = [{PROMPTS[place].image for place in places} for places in (split.train, split.held_out)]
        assert not sides[0] & sides[1]
        assert split_by_image(PROMPTS, 0.2, seed=1).held_out != split.held_out

    def test_a_smaller_limit_is_a_part_of_a_larger_one(self) -> None:
        large, small = (split_by_image(PROMPTS, 0.2, 0, limit) for limit in (20, 10))
        assert (len(large.train), len(small.train)) == (20, 10)
        assert large.train[:10] == small.train
        assert set(small.held_out) <= set(large.held_out)

    def test_one_image_at_least_is_held_out_or_none(self) -> None:
        assert len(split_by_image(PROMPTS, 0.001, 0).held_out) == 2
        assert split_by_image(PROMPTS, 0, 0).held_out == ()
        with pytest.raises(BadInput, match="nothing can be held out: train without validation"):
            split_by_image(PROMPTS[:2], 0.1, 0)


def test_refusals(tmp_path: Path) -> None:
    labels = write_labels(tmp_path)
    about = json.loads((labels / "labels.json").read_text())
    empty = tmp_path / "empty"
    write_shard(shard_path(empty / "labels", 0), LABEL_COLUMNS, [], {})
    (empty / "labels.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match="has no usable label"):
        read_labels(empty)
    with pytest.raises(BadInput, match=r"has no labels\.json"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"", b'{"grid_side": "4"}', b'{"grid_side": 0}', b'{"images": 3}', b'{"image_tokens": [4]}'],
)
def test_a_cut_description(tmp_path: Path, content: bytes) -> None:
    labels = write_labels(tmp_path)
    (labels / "labels.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"labels\.json .*label again"):
        read_labels(labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "../secret.png"}, "expected a path inside the folder of images"),
        ({"image": "/etc/secret.png"}, "expected a path inside the folder of images"),
        ({"image": None}, "expected a path inside the folder of images"),
        ({"ids_after": None}, "has no tokens or no labels"),
        ({"ids_before": [1, None]}, "has no tokens or no labels"),
        ({"ids_before": [-1]}, "has the token -1"),
        ({"cells": [7] * 16}, "has other labels than 1, 0, -100"),
        ({"grid_hw": [5, 5]}, "has labels for 16 cells, and its grid has 25; label again"),
        ({"grid_hw": [16]}, "expected its rows and columns: label again"),
        ({"grid_hw": [0, 16]}, "expected its rows and columns: label again"),
        ({"grid_hw": None}, "expected its rows and columns: label again"),
    ],
)
def test_rows_that_no_labelling_writes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    labels = write_labels(tmp_path)
    path = shard_path(labels / "labels", 0)
    write_shard(path, LABEL_COLUMNS, [*read_shard(path)[:1], {**read_shard(path)[1], **change}], {})
    with pytest.raises(BadInput, match=message):
        read_labels(labels)


def test_labels_of_an_older_release_have_one_square_grid(tmp_path: Path) -> None:
    labels = write_labels(tmp_path)
    expected = read_labels(labels)
    for path in sorted((labels / "labels").iterdir()):
        columns = {name: kind for name, kind in LABEL_COLUMNS.items() if name != "grid_hw"}
        rows = [{name: row[name] for name in columns} for row in read_shard(path)]
        write_shard(path, columns, rows, {})
    with pytest.raises(BadInput, match="expected its rows and columns: label again"):
        read_labels(labels)
    about = json.loads((labels / "labels.json").read_text())
    (labels / "labels.json").write_text(json.dumps(about | {"grid_side": 4}))
    found = read_labels(labels)
    assert found.digest() == expected.digest()
    assert all(prompt.cells.shape == (4, 4) for prompt in found.prompts)
