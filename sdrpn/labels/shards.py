"""Rows in Parquet files of a few hundred each, with their provenance in the metadata of every file.

A shard is written atomically, so an interrupted run continues with the first missing shard. Later changes are
detected: every page has a checksum, and the rows have a digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput
from sdrpn.host.atomic import replacing_file

__all__ = ["grid_hw", "read_shard", "read_shards", "shard_path", "write_shard"]

# The columns of a row: its prompt's tokens and the results. Lists are flat, of h*w cells.
ATTENTION_COLUMNS = {
    "id": "string",
    "image": "string",
    "question": "string",
    "ids_before": "ids",  # the prompt's tokens before and after the image
    "ids_after": "ids",
    "grid_hw": "ids",  # h and w of the image's grid; folders of older releases have one grid_side in labels.json
    "image_wh": "ids",  # size of the picture's file, in pixels; folders of older releases lack it
    "answer": "string",  # the model's own answer; null where an answer was given, which is not stored
    "answer_tokens": "int32",
    "grounding": "cells",  # mean attention of the grounding heads; null where the question could not be asked
    "sinks": "cells",  # mean attention of the sink heads; null without such heads
    "problem": "string",  # why the question could not be asked; null if it was
}
LABEL_COLUMNS = {
    "id": "string",
    "image": "string",
    "question": "string",
    "ids_before": "ids",
    "ids_after": "ids",
    "grid_hw": "ids",
    "cells": "labels",  # 1 foreground, 0 background, -100 ignored
}
ADDED = frozenset({"grid_hw", "image_wh"})  # columns that files of older releases lack
DIGEST_KEY = "sdrpn_rows_sha256"  # in the file's metadata; files of older releases lack it
ADVICE = "remove it and resume the run"


def grid_hw(row: dict[str, Any], about: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of a row's cells. `about`: the content of labels.json, for folders of older releases.

    Raises BadInput where neither says it, or it is no grid.
    """
    side = about.get("grid_side")
    sizes = row.get("grid_hw") or ([side, side] if side is not None else [])
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise BadInput(f"the row {row['id']!r} has the grid {sizes!r}; expected its rows and columns: label again")
    return sizes[0], sizes[1]


def shard_path(folder: Path, index: int) -> Path:
    """The file of a shard."""
    return folder / f"part-{index:05}.parquet"


def write_shard(
    path: Path, columns: dict[str, str], rows: Sequence[dict[str, Any]], provenance: dict[str, Any]
) -> None:
    """Write rows with the keys `columns`; `provenance` goes into the file's metadata under "sdrpn", as JSON.

    Every page has a checksum, and the metadata has the digest of all rows. Raises what `replacing_file` raises.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, _arrow_types()[kind]) for name, kind in columns.items()])
    table = pa.Table.from_pylist(list(rows), schema=schema)
    metadata = {"sdrpn": json.dumps(provenance), DIGEST_KEY: _digest(table.to_pylist())}
    with replacing_file(path) as temporary, _errors_as_raised_by_files(temporary):
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd", write_page_checksum=True)


def read_shard(path: Path, columns: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """All rows of one file, with at least these `columns`, except those that older releases did not write.

    Raises BadInput where it is not a Parquet file, is damaged, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not `read_table`: it reads names of parent folders as partition columns.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _require_columns(path, file.schema_arrow, columns or {})
            rows: list[dict[str, Any]] = file.read().to_pylist()
            digest = (file.schema_arrow.metadata or {}).get(DIGEST_KEY.encode())
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, BadInput):
            raise
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} cannot be read ({reason}); {ADVICE}", options=("resume",)) from error
    if digest is not None and digest.decode("ascii", "replace") != _digest(rows):
        raise BadInput(
            f"{path} was changed after it was written: its rows have another digest; {ADVICE}", options=("resume",)
        )
    return rows


def read_shards(folder: Path, columns: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all shards in a folder, in order."""
    for path in sorted(folder.glob("part-*.parquet")):
        yield from read_shard(path, columns)


def _arrow_types() -> dict[str, Any]:
    import pyarrow as pa

    return {
        "string": pa.string(),
        "int32": pa.int32(),
        "ids": pa.list_(pa.int32()),
        "cells": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int8()),
        "texts": pa.list_(pa.string()),
        "flags": pa.list_(pa.bool_()),
    }


def _require_columns(path: Path, schema: Any, columns: dict[str, str]) -> None:
    for name, kind in columns.items():
        if name in ADDED and name not in schema.names:
            continue
        expected = _arrow_types()[kind]
        found = schema.field(name).type if schema.names.count(name) == 1 else None
        if found is None or not found.equals(expected):
            raise BadInput(
                f"{path} has the column {name} as {found or 'nothing'}; expected {expected}: {ADVICE}",
                options=("resume",),
            )


def _digest(rows: Sequence[dict[str, Any]]) -> str:
    """SHA-256 as hex over the rows as JSON."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode("ascii")).hexdigest()


@contextmanager
def _errors_as_raised_by_files(path: Path) -> Iterator[None]:
    """Add `path` to the OSErrors of Arrow, which name no file, so that they are reported like any other."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
