"""Shards of labels: what was written is read, or the change is noticed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdrpn.errors import BadInput
from sdrpn.labels.shards import ATTENTION_COLUMNS, LABEL_COLUMNS, read_shard, write_shard

FLIPS = 150


def rows(count: int = 16) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {
            "id": str(number),
            "image": "a.png",
            "question": "wo?\u2028",
            "ids_before": [1],
            "ids_after": list(range(20)),
            "grid_hw": [4, 9],
            "cells": [draw.choice([1, 0, -100]) for _ in range(36)],
        }
        for number in range(count)
    ]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, LABEL_COLUMNS, rows(), {"rule": 1})
    assert read_shard(path, LABEL_COLUMNS) == rows()
    assert pq.ParquetFile(path).schema_arrow.metadata[b"sdrpn"] == b'{"rule": 1}'
    watched = dict.fromkeys(ATTENTION_COLUMNS) | {"id": "1", "grounding": [0.1, 1e-30]}
    write_shard(path, ATTENTION_COLUMNS, [watched], {})
    assert read_shard(path, ATTENTION_COLUMNS)[0]["grounding"] == pytest.approx([0.1, 1e-30])


def test_a_flipped_bit_never_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, LABEL_COLUMNS, rows(), {})
    good, draw = path.read_bytes(), random.Random(1)
    for _ in range(FLIPS):
        content = bytearray(good)
        content[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            assert read_shard(path, LABEL_COLUMNS) == rows()
        except BadInput as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("kept", [0, 1, 4, 100, 0.5, 0.99])
def test_a_cut_shard(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, LABEL_COLUMNS, rows(), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(BadInput, match="remove it and resume the run"):
        read_shard(path)


@pytest.mark.parametrize(
    ("column", "values"),
    [("cells", None), ("cells", ["x"]), ("ids_after", [[0.5]]), ("image", [3]), ("id", [[1]])],
    ids=["missing", "text", "floats", "number", "list"],
)
def test_other_columns(tmp_path: Path, column: str, values: list[Any] | None) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, LABEL_COLUMNS, rows(1), {})
    table = pq.ParquetFile(path).read().drop_columns([column])
    if values is not None:
        table = table.append_column(column, pa.array(values))
    pq.write_table(table, path)
    with pytest.raises(BadInput, match=f"has the column {column} as .*; expected "):
        read_shard(path, LABEL_COLUMNS)


def test_changed_rows_under_the_old_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, LABEL_COLUMNS, rows(2), {})
    table = pq.ParquetFile(path).read()
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(BadInput, match="was changed after it was written"):
        read_shard(path)
    pq.write_table(table.slice(0, 1).replace_schema_metadata({}), path)  # as older releases wrote it
    assert read_shard(path) == rows(1)
