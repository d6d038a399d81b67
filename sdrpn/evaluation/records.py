"""The result of every question with every method, one JSON object per line, so that a run can be resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sdrpn.errors import BadInput
from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_files import read_text
from sdrpn.host.line_file import LineFile
from sdrpn.host.part import WHOLE, Part
from sdrpn.host.shared_run import RUN_NAME, start_run

__all__ = ["RECORDS_NAME", "RUN_NAME", "Record", "RecordFile", "combine_parts", "read_records"]

RECORDS_NAME, PART_NAME = "records.jsonl", "records.{}-of-{}.jsonl"


@dataclass(frozen=True)
class Record:
    """One answer. Boxes in pixels of the picture that was shown.

    score: 0..1; None where no answer was requested. seconds: None where the question could not be asked.
    crops_xyxy_px: the inserted crops. iou, recall, contains, point_in_box: None where the task has no boxes, or the
    method has no second pass. zoom: None without a crop. problem: why the question could not be asked; it scores 0.
    note: why there is no crop, or only a part of it. map_percent: the map that the crops were chosen from, row-major
    in whole per cent; None without a map. map_hw: its rows and columns; None: a square map of an older release.
    image_tokens: of the first look; 0 in records of older releases. other_score: the answer's score as one to the
    question whose picture the crops showed instead. confidence, map_s, gate_score, gate_s: see
    `sdrpn.evaluation.looks.Judged`; None where the model was not asked whether or where to look again.
    """

    index: int  # of the sample
    id: str
    method: str
    question: str
    truths: tuple[str, ...]
    category: str
    details: dict[str, str]
    answer: str
    score: float | None
    seconds: float | None = None
    roi_tokens: int = 0
    crops_xyxy_px: tuple[tuple[int, ...], ...] = ()
    kept_cells: tuple[int | None, ...] = ()  # for each crop; None: all cells
    peak_xy_px: tuple[float, float] | None = None
    zoom: float | None = None
    iou: float | None = None
    recall: float | None = None
    contains: bool | None = None
    point_in_box: bool | None = None
    problem: str | None = None
    note: str | None = None
    map_percent: tuple[int, ...] | None = None
    map_hw: tuple[int, int] | None = None
    image_tokens: int = 0
    other_score: float | None = None
    confidence: float | None = None
    map_s: float | None = None
    gate_score: float | None = None
    gate_s: float | None = None

    def map_shape(self) -> tuple[int, int]:
        """Rows and columns of the map. Raises ValueError where it has another number of cells."""
        cells = self.map_percent or ()
        rows, columns = self.map_hw or (math.isqrt(len(cells)),) * 2
        if not cells or rows * columns != len(cells):
            raise ValueError(f"the map has {len(cells)} cells; expected {rows} x {columns}")
        return rows, columns


class RecordFile:
    """The records of a run in a folder, appended one by one; a context manager."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool, part: Part = WHOLE) -> None:
        """`folder`: new or empty, or with `resume` that of a run with the same settings.

        Args: part: what this process asks; of several, each has a file of its own, and joins the run of the others
        Raises: BadInput
        """
        start_run(folder, settings, resume=resume, shared=not part.is_whole)
        self._path = folder / RECORDS_NAME
        self.done = _all_records(folder)
        if part.is_whole:
            _combine(folder, self.done)
        else:
            self._path = folder / PART_NAME.format(part.number, part.count)
        self._lines = LineFile(self._path, then="resume", busy="wait for it, or name another part", options=("resume",))

    def __enter__(self) -> RecordFile:
        self._lines.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)

    def append(self, record: Record) -> None:
        """Write one line: an interruption loses at most this one.

        Raises RunFailed where the disk is full; earlier lines stay intact.
        """
        self._lines.append(dataclasses.asdict(record))


def read_records(folder: Path) -> list[Record]:
    """All records of a run. Raises BadInput where there are none."""
    path = folder / RECORDS_NAME
    if not path.is_file():
        raise BadInput(f"{folder} holds no {RECORDS_NAME}; expected a folder that `sdrpn eval --out` wrote")
    return _whole_records(path)


def combine_parts(folder: Path, methods: Sequence[str], samples: int) -> list[Record]:
    """The records of all parts, in the order of one process; one file takes their place when none is missing.

    The caller holds the folder's lock. Raises BadInput for a file that is no file of records.
    """
    records = sorted(_all_records(folder), key=lambda record: _turn(record, methods))
    if len(records) == samples * len(methods):
        _combine(folder, records)
    return records


def _turn(record: Record, methods: Sequence[str]) -> tuple[int, int]:
    """When one process asks it: the first method changes from question to question."""
    return record.index, (methods.index(record.method) - record.index) % len(methods)


def _all_records(folder: Path) -> list[Record]:
    """The records of all files, each question and method once."""
    records: dict[tuple[int, str], Record] = {}
    for path in _record_files(folder):
        for record in _whole_records(path):
            records.setdefault((record.index, record.method), record)
    return list(records.values())


def _record_files(folder: Path) -> list[Path]:
    parts = sorted(folder.glob(PART_NAME.format("*", "*")))
    return [path for path in (folder / RECORDS_NAME, *parts) if path.is_file()]


def _combine(folder: Path, records: list[Record]) -> None:
    """Write all records to one file, and remove those of parts."""
    _rewrite(folder / RECORDS_NAME, records)
    for path in _record_files(folder)[1:]:
        path.unlink(missing_ok=True)


def _line(record: Record) -> str:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=True, allow_nan=False) + "\n"


def _rewrite(path: Path, records: list[Record]) -> None:
    """Rewrite the file without a partial last line that an interruption left."""
    with replacing_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(_line(record) for record in records)


def _whole_records(path: Path) -> list[Record]:
    """The records up to the first partial line. Raises BadInput for two records of the same question and method."""
    records: dict[tuple[int, str], Record] = {}
    *lines, _ = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        record = _record(line, f"{path} line {number}")
        key = record.index, record.method
        if key in records:
            raise BadInput(
                f"{path} line {number} is a second record of question {record.index} with {record.method!r}, which "
                "would count twice; two runs wrote to one folder: remove it and run again"
            )
        records[key] = record
    return list(records.values())


def _record(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
        for name in ("truths", "kept_cells"):
            value[name] = tuple(value[name])
        value["crops_xyxy_px"] = tuple(tuple(box) for box in value["crops_xyxy_px"])
        if value["peak_xy_px"] is not None:
            value["peak_xy_px"] = tuple(value["peak_xy_px"])
        if value.get("map_percent") is not None:
            value["map_percent"] = tuple(value["map_percent"])
        if value.get("map_hw") is not None:
            rows, columns = value["map_hw"]
            value["map_hw"] = int(rows), int(columns)
        record = Record(**value)
        _check(record)
        return record
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{where} is not a record ({error}); remove the folder and run again") from error


def _check(record: Record) -> None:
    """Raise ValueError for entries that no run writes and that figures cannot be computed from."""
    if type(record.index) is not int or record.index < 0:
        raise ValueError(f"index is {record.index!r}")
    texts = (record.id, record.method, record.question, record.category, record.answer, *record.truths)
    if not all(isinstance(text, str) for text in texts) or not isinstance(record.details, dict):
        raise ValueError("an entry is not text")
    if not all(text is None or isinstance(text, str) for text in (record.problem, record.note)):
        raise ValueError("a reason is not text")
    measured = (record.score, record.seconds, record.zoom, record.iou, record.recall, record.other_score)
    judged = (record.confidence, record.map_s, record.gate_score, record.gate_s)
    counts = (record.roi_tokens, record.image_tokens)
    if not all(value is None or (_is_number(value) and value >= 0) for value in (*measured, *judged, *counts)):
        raise ValueError("an entry is not a number of at least 0")
    for box in record.crops_xyxy_px:
        if len(box) != 4 or not all(_is_number(edge) for edge in box):
            raise ValueError(f"a crop is {box!r}")
    cells = record.map_percent
    if cells is not None and not all(type(cell) is int and 0 <= cell <= 100 for cell in cells):
        raise ValueError("a cell of the map is not a whole number from 0 to 100")
    if cells is not None:
        record.map_shape()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
