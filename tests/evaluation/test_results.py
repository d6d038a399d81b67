"""Figures from records, and their intervals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.evaluation.bootstrap import interval, resampled_means
from sdrpn.evaluation.records import RECORDS_NAME, Record, RecordFile, read_records
from sdrpn.evaluation.results import summarise
from sdrpn.evaluation.table import COLUMNS, difference_rows, markdown, rows
from tests.evaluation.tiny import tiny_task

PAIR = ("plain", "sdrpn")


def record(index: int, method: str, score: float | None, **entries: Any) -> Record:
    values = {"seconds": 0.1, "category": "even" if index % 2 == 0 else "odd"} | entries
    return Record(index, f"q{index}", method, "What?", ("a",), details={}, answer="a", score=score, **values)


class TestBootstrap:
    def test_means_of_constants_do_not_vary(self) -> None:
        drawn = resampled_means(np.full((20, 2), (0.25, 1.0)), resamples=300)
        assert drawn.shape == (300, 2)
        assert np.allclose(drawn, (0.25, 1.0))

    def test_the_interval_of_a_mean_is_the_usual_one(self) -> None:
        """The interval of 400 fair coins: 1.96 * sqrt(.25/400) = 4.9 points on either side."""
        low, high = interval(resampled_means(np.tile((0.0, 1.0), 200)[:, None])[:, 0])
        assert (low, high) == pytest.approx((0.451, 0.549), abs=0.004)

    def test_differences_are_paired(self) -> None:
        """Two methods that differ by the same in every question differ for certain, however much questions vary."""
        scores = np.random.default_rng(0).random((50, 1)) * [1, 1] + [0, 0.125]
        drawn = resampled_means(scores)
        assert interval(drawn[:, 1] - drawn[:, 0]) == pytest.approx((0.125, 0.125))
        assert interval(drawn[:, 0])[1] - interval(drawn[:, 0])[0] > 0.1

    def test_nothing_to_draw_from(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(0, 2\); expected \(questions, methods\)"):
            resampled_means(np.zeros((0, 2)))


class TestSummary:
    def test_means_by_hand(self) -> None:
        region = {"iou": 0.5, "recall": 1.0, "contains": True, "point_in_box": False, "zoom": 3.0}
        records = [
            *(record(index, "plain", float(index == 0), seconds=0.1) for index in range(4)),
            *(record(index, "sdrpn", 1.0, seconds=0.2, roi_tokens=16, **region) for index in range(3)),
            record(3, "sdrpn", 0.0, seconds=None, problem="too long"),
        ]
        found = summarise(tiny_task(4), PAIR, records, {"seed": 1})
        plain, sdrpn = found.methods["plain"], found.methods["sdrpn"]
        assert (found.samples, plain.accuracy, sdrpn.accuracy) == (4, 0.25, 0.75)
        assert (plain.mean_iou, plain.contains, plain.mean_zoom) == (None, None, None)
        assert (sdrpn.mean_iou, sdrpn.contains, sdrpn.point_in_box) == (0.375, 0.75, 0.0)
        assert (sdrpn.mean_zoom, sdrpn.crop_share, sdrpn.roi_tokens) == (3.0, 0.75, 12.0)
        assert (sdrpn.seconds_per_question, sdrpn.relative_speed, sdrpn.problems) == pytest.approx((0.2, 0.5, 1))
        assert sdrpn.categories == {"even": 1.0, "odd": 0.5}
        (difference,) = found.differences
        assert (difference.method, difference.baseline, difference.difference) == ("sdrpn", "plain", 0.5)
        assert difference.interval[0] <= 0.5 <= difference.interval[1]

    def test_samples_that_some_method_was_not_asked_are_left_out(self) -> None:
        records = [record(0, "plain", 1.0), record(0, "sdrpn", 1.0), record(1, "plain", 0.0)]
        assert summarise(tiny_task(), PAIR, records, {}).methods["plain"].accuracy == 1.0

    def test_without_answers_regions_are_left(self) -> None:
        records = [record(0, method, None, iou=0.5, recall=0.5, contains=False, point_in_box=True) for method in PAIR]
        results = summarise(tiny_task(1), PAIR, records, {})
        found = results.methods["sdrpn"]
        assert (found.accuracy, found.accuracy_interval, found.mean_iou, found.categories) == (None, None, 0.5, {})
        assert results.differences == ()
        assert rows(results)[1][:3] == ("sdrpn", "-", "-")

    def test_several_rpns_together(self) -> None:
        methods = ("plain", "sdrpn", "sdrpn:b")
        scores = [(0.0, 1.0, 0.0), (0.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0)]
        records = [
            record(index, method, score)
            for index, entry in enumerate(scores)
            for method, score in zip(methods, entry, strict=True)
        ]
        results = summarise(tiny_task(4), methods, records, {})
        mean = results.rpn_mean
        assert mean is not None
        assert (mean.methods, mean.accuracy) == (("sdrpn", "sdrpn:b"), 0.75)
        assert [(difference.baseline, difference.difference) for difference in mean.differences] == [("plain", 0.5)]
        assert "Mean of `sdrpn`, `sdrpn:b`: 75.0 % (" in markdown(results)
        assert difference_rows(results)[-1][:3] == ("mean of 2 RPNs", "plain", "+50.0")
        assert summarise(tiny_task(4), PAIR, records, {}).rpn_mean is None

    def test_the_page(self) -> None:
        records = [record(index, method, 1.0) for index in range(3) for method in PAIR]
        results = summarise(tiny_task(), PAIR, records, {"seed": 1})
        page = markdown(results)
        assert f"| {' | '.join(COLUMNS)} |" in page.splitlines()
        assert "| sdrpn | plain | +0.0 | +0.0 to +0.0 |" in page
        assert "- seed: 1" in page
        assert all(len(row) == len(COLUMNS) for row in rows(results))
        assert difference_rows(results) == [("sdrpn", "plain", "+0.0", "+0.0 to +0.0")]


class TestRecordFile:
    SETTINGS = {"task": "tiny", "methods": ["plain"]}  # noqa: RUF012

    def write(self, folder: Path, *records: Record, resume: bool = False) -> list[Record]:
        file = RecordFile(folder, self.SETTINGS, resume=resume)
        with file:
            for record in records:
                file.append(record)
        return file.done

    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        full = record(
            1,
            "sdrpn",
            0.5,
            crops_xyxy_px=((1, 2, 3, 4),),
            kept_cells=(None,),
            peak_xy_px=(1.5, 2.0),
            zoom=2.0,
            note="left out: 1 region",
            map_percent=(0, 100, 7, 50, 0, 9),
            map_hw=(2, 3),
        )
        assert self.write(tmp_path / "run", record(0, "plain", 1.0), full) == []
        assert read_records(tmp_path / "run") == [record(0, "plain", 1.0), full]

    def test_a_line_that_was_broken_off_is_asked_again(self, tmp_path: Path) -> None:
        self.write(tmp_path / "run", record(0, "plain", 1.0), record(1, "plain", 1.0))
        path = tmp_path / "run" / RECORDS_NAME
        path.write_text(path.read_text()[:-20])
        assert self.write(tmp_path / "run", record(1, "plain", 0.0), resume=True) == [record(0, "plain", 1.0)]
        assert [entry.score for entry in read_records(tmp_path / "run")] == [1.0, 0.0]
        assert all(json.loads(line) for line in path.read_text().splitlines())

    def test_refusals(self, tmp_path: Path) -> None:
        self.write(tmp_path / "run", record(0, "plain", 1.0))
        with pytest.raises(ValueError, match="already holds a run; resume it"):
            self.write(tmp_path / "run")
        with pytest.raises(ValueError, match=r"started with other settings \(methods\)"):
            RecordFile(tmp_path / "run", {**self.SETTINGS, "methods": ["blind"]}, resume=True)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("x")
        with pytest.raises(ValueError, match="exists and is not the folder of a run; name a new folder"):
            self.write(tmp_path / "other")
        with pytest.raises(ValueError, match=r"holds no records\.jsonl"):
            read_records(tmp_path / "other")
        (tmp_path / "run" / RECORDS_NAME).write_text('{"index": 0}\n')
        with pytest.raises(ValueError, match=r"records\.jsonl line 1 is not a record"):
            read_records(tmp_path / "run")

    def test_a_question_that_is_there_twice(self, tmp_path: Path) -> None:
        self.write(tmp_path / "run", record(0, "plain", 1.0), record(0, "sdrpn", 1.0), record(0, "plain", 1.0))
        with pytest.raises(BadInput, match=r"line 3 is a second record of question 0 with 'plain'"):
            read_records(tmp_path / "run")
        with pytest.raises(BadInput, match="would count twice"):
            self.write(tmp_path / "run", resume=True)

    @pytest.mark.parametrize(
        ("entry", "value"),
        [
            ("index", "0"),
            ("index", -1),
            ("score", "high"),
            ("score", float("nan")),
            ("seconds", [1]),
            ("truths", [1]),
            ("truths", 3),
            ("details", []),
            ("crops_xyxy_px", [[1, 2, 3]]),
            ("answer", None),
            ("peak_xy_px", 3),
            ("note", 3),
            ("map_percent", 3),
            ("map_percent", []),
            ("map_percent", [0, 1, 2]),
            ("map_percent", [101]),
            ("map_percent", [0.5]),
            ("map_hw", 3),
            ("map_hw", [1, 2, 3]),
        ],
    )
    def test_an_entry_of_another_type(self, tmp_path: Path, entry: str, value: object) -> None:
        self.write(tmp_path / "run", record(0, "plain", 1.0))
        path = tmp_path / "run" / RECORDS_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}) + "\n")
        with pytest.raises(BadInput, match=r"records\.jsonl line 1 is not a record"):
            read_records(tmp_path / "run")

    def test_records_from_before_maps_and_notes(self, tmp_path: Path) -> None:
        self.write(tmp_path / "run", record(0, "plain", 1.0))
        path = tmp_path / "run" / RECORDS_NAME
        entries = json.loads(path.read_text())
        del entries["note"], entries["map_percent"]
        path.write_text(json.dumps(entries) + "\n")
        assert read_records(tmp_path / "run") == [record(0, "plain", 1.0)]

    @pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\0" * 40, b"\xff\xfe\xff"])
    def test_a_cut_description_of_the_run(self, tmp_path: Path, content: bytes) -> None:
        self.write(tmp_path / "run", record(0, "plain", 1.0))
        (tmp_path / "run" / "run.json").write_bytes(content)
        with pytest.raises(BadInput, match=r"run\.json .*name a new folder|is not UTF-8"):
            self.write(tmp_path / "run", resume=True)

    def test_a_disk_that_fills_up_keeps_whole_lines(self, tmp_path: Path) -> None:
        script = """
import resource, signal, sys
from pathlib import Path
from sdrpn.errors import RunFailed
from sdrpn.evaluation.records import RecordFile
from tests.evaluation.test_results import record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with RecordFile(Path(sys.argv[1]), {}, resume=False) as file:
    try:
        for number in range(100):
            file.append(record(number, "plain", 1.0))
    except RunFailed as error:
        print(error)
"""
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", script, str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "cannot be written (File too large); free some space and resume" in done.stdout
        text = (tmp_path / "run" / RECORDS_NAME).read_text()
        assert text.endswith("\n")
        assert len(read_records(tmp_path / "run")) == text.count("\n") > 0
