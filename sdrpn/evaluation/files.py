"""Read the file formats of data sets: TSV, Parquet, and pictures in folders or columns.

Pictures are read on demand, except those in TSV files. Errors are one line: what is missing from the expected layout.
JSON is read by `sdrpn.host.json_files`. Knows no data set.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sdrpn.errors import BadImage, BadInput
from sdrpn.evaluation.base64_text import bytes_from_base64
from sdrpn.host.json_files import read_json, read_numbered_objects, text_encoding
from sdrpn.images.image import open_image
from sdrpn.images.names import leads_out

__all__ = ["Layout", "Row", "read_json", "read_json_lines", "read_parquet", "read_tsv"]

Row = dict[str, Any]
OpenPicture = Callable[[], Image.Image]

IMAGE = "image"
LONGEST_INDEX = 64  # characters; no picture is this short as base64 text
LONGEST_FIELD = 2**31 - 1  # in a TSV file: a picture of a hundred million pixels as text


@dataclass(frozen=True)
class Layout:
    """A data folder and its expected files, for messages."""

    task: str
    folder: Path
    expected: str  # such as "TextVQA_0.5.1_val.json and train_images/"

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise BadInput(f"{self.folder} is not a folder; the task {self.task} expects one with {self.expected}")

    def first(self, *patterns: str) -> Path:
        """The first file or folder in the order of the patterns (several matches: by name). Raises BadInput."""
        found = self.maybe(*patterns)
        if found is None:
            missing = patterns[0].removeprefix("**/")
            raise BadInput(f"{self.folder} has no {missing}; the task {self.task} expects {self.expected} there")
        return found

    def maybe(self, *patterns: str) -> Path | None:
        """Like `first`, but None where nothing matches."""
        return next((path for pattern in patterns for path in sorted(self.folder.glob(pattern))), None)

    def every(self, pattern: str) -> list[Path]:
        """All matches, by name."""
        return sorted(self.folder.glob(pattern))

    def shards(self, stem: str, *folders: str) -> list[Path]:
        """The Parquet files of a split in Hugging Face's layouts: `STEM-*.parquet` in the folder, in `data/`, or in one
        of `folders`; empty where there are none."""
        places = (self.every(f"{folder}/{stem}-*.parquet") for folder in (".", "data", *folders))
        return next((paths for paths in places if paths), [])

    def rows(self, split: str, *folders: str, table: str) -> tuple[Path, list[Row]] | None:
        """The rows of a split stored as a table, and the file they are from, for messages; None without a table.

        A table is Parquet files in a layout of Hugging Face (see `shards`), or VLMEvalKit's `TABLE.tsv`.
        """
        shards = self.shards(split, *folders)
        if shards:
            return self.folder, read_parquet(shards)
        path = self.maybe(f"**/{table}.tsv")
        return None if path is None else (path, read_tsv(path))

    def picture(self, name: str, *folders: str) -> OpenPicture:
        """A function that opens a picture from the first of the folders that has it. Raises BadInput for a name that
        points outside the folder."""
        if leads_out(name):
            raise BadInput(
                f"the picture {name!r} lies outside {self.folder}; the task {self.task} expects {self.expected}"
            )
        return partial(_open_in, [self.folder / folder / name for folder in folders or (".",)])


def read_json_lines(path: Path) -> list[Row]:
    """The objects of a JSON Lines file, or of one list. Raises BadInput, which names the line."""
    return [row for _, row in read_numbered_objects(path)]


def read_tsv(path: Path) -> list[Row]:
    """Rows by the column names in the first line; "image", base64 text kept in memory, becomes `open_picture`.

    A short text is the "index" of the row that has the picture: VLMEvalKit stores each once. Raises BadInput.
    """
    csv.field_size_limit(min(LONGEST_FIELD, sys.maxsize))
    rows: list[Row]
    with path.open(encoding=text_encoding(path), newline="") as file:
        try:
            rows = [dict(row) for row in csv.DictReader(file, delimiter="\t")]
        except (csv.Error, UnicodeError) as error:
            raise BadInput(f"{path} is not a table of tab-separated values ({error})") from error
    pictures = {row.get("index"): row.get(IMAGE) for row in rows}
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise BadInput(f"{path} row {number} has more values than the first line has names; download it again")
        if IMAGE in row:
            value = row.pop(IMAGE)
            if value is not None and len(value) <= LONGEST_INDEX:
                value = pictures.get(value, value)
            row["open_picture"] = partial(_picture, value, path.parent, f"{path} row {number}")
    return rows


def read_parquet(paths: Sequence[Path]) -> list[Row]:
    """All rows of some Parquet files in order; "image" becomes `open_picture`, which reads it on demand.

    A picture is a struct with `bytes` or a `path` beside the file, as Hugging Face stores them, raw bytes, or base64
    text. Raises BadInput.
    """
    return [row for path in paths for row in _parquet_rows(path)]


def _parquet_rows(path: Path) -> Iterator[Row]:
    from sdrpn.host.libraries import importing_extra

    with importing_extra("train", "a data set in Parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name != IMAGE]
        rows: list[Row] = file.read(columns=names).to_pylist() if names else []
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise BadInput(f"{path} cannot be read as Parquet ({' '.join(str(error).split())})") from error
    has_image = IMAGE in file.schema_arrow.names
    for number, row in enumerate(rows):
        yield {**row, "open_picture": partial(_from_parquet, path, number)} if has_image else row


def _from_parquet(path: Path, number: int) -> Image.Image:
    """The picture of one row. Reads only its row group of the file."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if number < first + count:
            value = file.read_row_group(group, columns=[IMAGE]).column(IMAGE)[number - first].as_py()
            return _picture(value, path.parent, f"{path} row {number + 1}")
        first += count
    raise BadImage(f"{path} has no row {number + 1} any more; it was changed during the run")


def _picture(value: object, folder: Path, where: str) -> Image.Image:
    """The picture of a cell: bytes, base64 text, one of these in a list, or a struct with `bytes` or `path`."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return _picture_beside(str(value["path"]), folder, where)
        value = value.get("bytes")
    if isinstance(value, str):
        return open_image(bytes_from_base64(value, where))
    if not isinstance(value, bytes):
        raise BadImage(f"{where} has no picture; expected bytes, or base64 text")
    return open_image(value)


def _picture_beside(name: str, folder: Path, where: str) -> Image.Image:
    if leads_out(name):
        raise BadImage(f"{where} names the picture {name!r}, which lies outside {folder}; expected one beside the file")
    return open_image(folder / name)


def _open_in(places: Sequence[Path]) -> Image.Image:
    return open_image(next((place for place in places if place.is_file()), places[0]))
