"""Rows in Parquet files of a few hundred each, with where they come from in every file's metadata.

A shard appears whole or not at all, so a run that was cut off continues with the first one that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdrpn.atomic import replacing_file
from sdrpn.errors import BadInput

__all__ = ["read_shard", "read_shards", "shard_path", "write_shard"]

# A row: where its prompt's tokens are, and what was found. Lists are flat, of G*G cells.
ATTENTION_COLUMNS = {
    "id": "string",
    "image": "string",
    "question": "string",
    "ids_before": "ids",  # the prompt's tokens on either side of the image
    "ids_after": "ids",
    "answer": "string",  # the model's own; null where an answer was given, which is not kept
    "answer_tokens": "int32",
    "grounding": "cells",  # mean attention of the grounding heads; null where the question could not be asked
    "sinks": "cells",  # mean attention of the sink heads; null without such heads
    "problem": "string",  # why the question could not be asked; null: it was
}
LABEL_COLUMNS = {
    "id": "string",
    "image": "string",
    "question": "string",
    "ids_before": "ids",
    "ids_after": "ids",
    "cells": "labels",  # 1 foreground, 0 background, -100 ignored
}


def shard_path(folder: Path, index: int) -> Path:
    """The file of a shard."""
    return folder / f"part-{index:05}.parquet"


def write_shard(
    path: Path, columns: dict[str, str], rows: Sequence[dict[str, Any]], provenance: dict[str, Any]
) -> None:
    """Write rows, whose keys are `columns`; `provenance` goes to the file's metadata under "sdrpn", as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "string": pa.string(),
        "int32": pa.int32(),
        "ids": pa.list_(pa.int32()),
        "cells": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int8()),
    }
    fields = [pa.field(name, types[kind]) for name, kind in columns.items()]
    schema = pa.schema(fields, metadata={"sdrpn": json.dumps(provenance)})
    with replacing_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary, compression="zstd")


def read_shard(path: Path) -> list[dict[str, Any]]:
    """All rows of one file. Raises BadInput where it is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not `read_table`: it takes the names of folders above the file for columns.
        rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} cannot be read ({reason}); remove it and run again with --resume") from error
    return rows


def read_shards(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all shards in a folder, in order."""
    for path in sorted(folder.glob("part-*.parquet")):
        yield from read_shard(path)
