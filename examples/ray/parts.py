"""A job in parts: fixed numbers of rows of a folder of pictures or of Parquet files, and a file of results for each.

A part whose file is there is done. Files are written atomically, so a job that is killed at any moment and started
again has every row once. Knows neither Ray nor models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sdrpn import BadInput
from sdrpn.frames.source import PICTURE_SUFFIXES
from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_files import differing_keys, read_json_object

__all__ = ["Part", "begin", "parts_of", "rows_of", "write_part"]

# Readers of Parquet take every file of a folder but those with such names.
JOB = "_job.json"


@dataclass(frozen=True)
class Part:
    """Rows of a Parquet file, from `first` on, or pictures by their names in a folder."""

    number: int
    source: str
    first: int
    count: int
    names: tuple[str, ...] = ()

    def path(self, out: Path) -> Path:
        """The file of its results."""
        return out / f"part-{self.number:06d}.parquet"


def parts_of(source: Path, rows_each: int) -> list[Part]:
    """All parts of a job. Raises BadInput for what is neither a folder of pictures nor Parquet."""
    if not source.exists():
        raise BadInput(f"{source} does not exist; expected a folder of pictures, or Parquet")
    source = source.resolve()
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    found: list[Part] = []
    for file in files:
        try:
            about = pyarrow.parquet.ParquetFile(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise BadInput(f"{file} cannot be read as Parquet ({error})") from error
        missing = {"id", "image"} - set(about.schema_arrow.names)
        if missing:
            raise BadInput(f"{file} has no column {', '.join(sorted(missing))}; expected id, image and question")
        rows = about.metadata.num_rows
        for first in range(0, rows, rows_each):
            found.append(Part(len(found), str(file), first, min(rows_each, rows - first)))
    if files:
        return found
    pictures = sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise BadInput(f"{source} has neither pictures nor Parquet files; expected a folder of either")
    names = [path.relative_to(source).as_posix() for path in pictures]
    for first in range(0, len(names), rows_each):
        own = tuple(names[first : first + rows_each])
        found.append(Part(len(found), str(source), first, len(own), own))
    return found


def begin(out: Path, parts: list[Part], settings: dict[str, Any]) -> list[Part]:
    """The parts that are left in a new folder, or in that of the same job. Raises BadInput for another job's."""
    rows = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
    job = json.loads(json.dumps({**settings, "rows_sha256": rows}))
    if (out / JOB).is_file():
        differing = differing_keys(job, read_json_object(out / JOB, "name a new folder"))
        if differing:
            raise BadInput(f"{out} was started with other settings ({', '.join(differing)}); name a new folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists and has no job to go on with; name a new folder")
    else:
        with replacing_file(out / JOB) as temporary:
            temporary.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
    return [part for part in parts if not part.path(out).exists()]


def rows_of(part: Part) -> list[dict[str, Any]]:
    """Its rows, with `id`, `image` and, of Parquet, `question` and what else there is."""
    if part.names:
        return [{"id": name, "image": str(Path(part.source, name))} for name in part.names]
    return list(_read(part))


def write_part(part: Part, out: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema) -> None:
    """Write its results, atomically."""
    with replacing_file(part.path(out)) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary)


def _read(part: Part) -> Iterator[dict[str, Any]]:
    """Only the groups of rows that it is in."""
    file, start = pyarrow.parquet.ParquetFile(part.source), 0
    columns = [name for name in ("id", "image", "question") if name in file.schema_arrow.names]
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        first, last = max(part.first, start), min(part.first + part.count, start + count)
        if first < last:
            yield from file.read_row_group(group, columns).slice(first - start, last - first).to_pylist()
        start += count
