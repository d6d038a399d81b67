"""Readers of official files, on a few hand-made questions in the layout of each data set."""

from __future__ import annotations

import base64
import codecs
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.task import Task, category_means
from sdrpn.evaluation.tasks.named import ON_DISK, open_task
from sdrpn.evaluation.tasks.tags import tags_task

SHORT = "\nAnswer the question using a single word or phrase."


def coloured(value: int) -> bytes:
    """A picture that is known by its colour."""
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: bytes | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)


def write_tsv(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def as_base64(value: int) -> str:
    return base64.b64encode(coloured(value)).decode()


def colour(sample: Sample) -> int:
    return int(np.asarray(sample.open_picture())[0, 0, 0])


def read(name: str, folder: Path, split: str | None = None) -> Task:
    return open_task(name, folder, split, None, 0)


def records_of(task: Task, answers: list[str]) -> list[Record]:
    return [
        Record(
            number,
            sample.id,
            "plain",
            sample.question,
            sample.answers,
            sample.category,
            dict(sample.details),
            answer,
            task.score(answer, sample),
        )
        for number, (sample, answer) in enumerate(zip(task.samples, answers, strict=True))
    ]


class TestTextVqa:
    ROW = {  # noqa: RUF012
        "image_id": "abc",
        "question_id": 34602,
        "question": "what is the BRAND of this camera?",
        "answers": ["nous les gosses", "dakota", *["dakota digital"] * 8],
    }

    def write_official(self, folder: Path) -> None:
        write(folder / "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": [self.ROW]})
        write(folder / "train_images" / "abc.jpg", coloured(7))

    def write_parquet(self, folder: Path) -> None:
        row = {**self.ROW, "image": {"bytes": coloured(7), "path": None}}
        write_parquet(folder / "data" / "validation-00000-of-00001.parquet", [row])

    @pytest.mark.parametrize("form", ["official", "parquet"])
    def test_it_is_read(self, tmp_path: Path, form: str) -> None:
        {"official": self.write_official, "parquet": self.write_parquet}[form](tmp_path)
        task = read("textvqa", tmp_path)
        (sample,) = task.samples
        assert (sample.id, colour(sample)) == ("34602", 7)
        assert sample.question == "What is the brand of this camera?" + SHORT
        assert task.score("Dakota Digital.", sample) == 1.0
        assert task.score("dakota", sample) == pytest.approx(0.3)
        assert not task.has_boxes


class TestDocVqa:
    @pytest.mark.parametrize("name", ["val_v1.0_withQT.json", "val_v1.0.json"])
    def test_pages(self, tmp_path: Path, name: str) -> None:
        row = {
            "questionId": 337,
            "question": "what is the date?",
            "image": "documents/xnbl0037_1.png",
            "answers": ["1/8/93", "January 8"],
        }
        write(tmp_path / name, {"dataset_name": "SP-DocVQA", "data": [row]})
        write(tmp_path / "documents" / "xnbl0037_1.png", coloured(9))
        task = read("docvqa", tmp_path)
        (sample,) = task.samples
        assert (sample.id, sample.question, colour(sample)) == ("337", "what is the date?" + SHORT, 9)
        assert task.score("1/8/98", sample) == pytest.approx(5 / 6)
        assert task.threshold == 0.10

    def test_infographics(self, tmp_path: Path) -> None:
        row = {
            "questionId": 98313,
            "question": "How many?",
            "image_local_name": "30630.jpeg",
            "answers": ["10%", "ten"],
        }
        write(tmp_path / "infographicsVQA_val_v1.0_withQT.json", {"data": [row]})
        write(tmp_path / "infographicsvqa_images" / "30630.jpeg", coloured(11))
        task = read("infovqa", tmp_path)
        assert (colour(task.samples[0]), task.score("TEN", task.samples[0])) == (11, 1.0)
        assert task.threshold == 0.15

    def test_both_in_one_parquet_repository(self, tmp_path: Path) -> None:
        for number, part in enumerate(("DocVQA", "InfographicVQA"), start=1):
            row = {"questionId": str(number), "question": "?", "answers": ["a"], "image": {"bytes": coloured(number)}}
            write_parquet(tmp_path / part / "validation-00000-of-00001.parquet", [row])
        assert [read(name, tmp_path).samples[0].id for name in ("docvqa", "infovqa")] == ["1", "2"]


class TestChartQa:
    def test_official_files(self, tmp_path: Path) -> None:
        write(tmp_path / "test" / "test_human.json", [{"imgname": "a.png", "query": "How many?", "label": "14"}])
        write(
            tmp_path / "test" / "test_augmented.json", [{"imgname": "a.png", "query": "Which year?", "label": "2019"}]
        )
        write(tmp_path / "test" / "png" / "a.png", coloured(3))
        task = read("chartqa", tmp_path)
        assert [(sample.id, sample.category) for sample in task.samples] == [
            ("human-1", "human"),
            ("augmented-1", "augmented"),
        ]
        assert task.samples[0].question == "How many?\nAnswer the question with a single word."
        assert colour(task.samples[1]) == 3
        assert [task.score(answer, task.samples[0]) for answer in ("14.7", "14.8")] == [1.0, 0.0]

    def test_parquet(self, tmp_path: Path) -> None:
        rows = [
            {"type": kind, "question": "How many?", "answer": "14", "image": {"bytes": coloured(number)}}
            for number, kind in enumerate(("human_test", "augmented_test", "human_test"))
        ]
        write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
        task = read("chartqa", tmp_path)
        assert [sample.category for sample in task.samples] == ["human", "augmented", "human"]
        assert [colour(sample) for sample in task.samples] == [0, 1, 2]  # the third in a group of rows of its own

    @pytest.mark.parametrize("writer", [0, 1])
    def test_huggingfacem4s_parquet(self, tmp_path: Path, writer: int) -> None:
        row = {"query": "How many?", "label": ["14"], "human_or_machine": writer, "image": {"bytes": coloured(5)}}
        write_parquet(tmp_path / "data" / "test-00000-of-00001-e2cd0b7a0f9eb20d.parquet", [row])
        (sample,) = read("chartqa", tmp_path).samples
        assert (sample.answers, sample.category) == (("14",), ("human", "augmented")[writer])

    def test_vlmevalkits_table(self, tmp_path: Path) -> None:
        row = {"index": "0", "question": "How many?", "answer": "14", "split": "test_augmented", "image": as_base64(5)}
        write_tsv(tmp_path / "ChartQA_TEST.tsv", [row])
        (sample,) = read("chartqa", tmp_path).samples
        assert (sample.answers, sample.category, colour(sample)) == (("14",), "augmented", 5)


class TestOcrBench:
    def test_vlmevalkits_table(self, tmp_path: Path) -> None:
        kind = "Handwritten Mathematical Expression Recognition"
        row = {"index": "7", "question": "?", "answer": "['1 + X', 'x']", "category": kind, "image": as_base64(5)}
        write_tsv(tmp_path / "OCRBench.tsv", [row])
        task = read("ocrbench", tmp_path)
        (sample,) = task.samples
        assert (sample.answers, sample.category) == (("1 + X", "x"), kind)
        assert task.score("1+X", sample) == 1.0  # spaces of a formula do not count

    ROWS = [  # noqa: RUF012
        {
            "dataset_name": "IIIT5K",
            "type": "Regular Text Recognition",
            "question": "what is written in the image?",
            "answers": ["CENTRE"],
            "image_path": "IIIT5K/1009_2.png",
            "id": 0,
        },
        {
            "dataset_name": "HME100k",
            "type": "Handwritten Mathematical Expression Recognition",
            "question": "Please write out the expression.",
            "answers": "1 + X",
            "image_path": "IIIT5K/1009_2.png",
            "id": 1,
        },
    ]

    @pytest.mark.parametrize("inside", [".", "OCRBench"])
    def test_official_files(self, tmp_path: Path, inside: str) -> None:
        write(tmp_path / inside / "OCRBench.json", self.ROWS)
        write(tmp_path / inside / "OCRBench_Images" / "IIIT5K" / "1009_2.png", coloured(5))
        task = read("ocrbench", tmp_path)
        assert [colour(sample) for sample in task.samples] == [5, 5]
        records = records_of(task, ["The word is 'centre'.", "1+x"])
        assert [record.score for record in records] == [1.0, 0.0]  # formulas mind case
        assert task.summarise(records) == {"points": 1.0}
        assert list(category_means(records).values()) == [1.0, 0.0]

    def test_parquet(self, tmp_path: Path) -> None:
        row = {"dataset": "IIIT5K", "question_type": "Regular", "question": "?", "answer": ["a"]}
        write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{**row, "image": {"bytes": coloured(5)}}])
        (sample,) = read("ocrbench", tmp_path).samples
        assert (sample.category, sample.answers, colour(sample)) == ("Regular", ("a",), 5)


class TestPope:
    def test_lmms_labs_full_configuration(self, tmp_path: Path) -> None:
        for part in ("random", "popular", "adversarial"):
            row = {"question_id": "1", "question": "Is there a cup?", "answer": "no", "category": part}
            write_parquet(tmp_path / "Full" / f"{part}-00000-of-00001.parquet", [{**row, "image": coloured(8)}])
        assert [sample.id for sample in read("pope", tmp_path).samples] == ["adversarial-1", "popular-1", "random-1"]

    def test_vlmevalkit_keeps_a_question_of_several_parts_once(self, tmp_path: Path) -> None:
        rows = [("0", "popular,random", "Yes"), ("1", "random", "No")]
        write_tsv(
            tmp_path / "POPE.tsv",
            [{"index": n, "question": "A cup?", "answer": a, "category": c, "image": as_base64(4)} for n, c, a in rows],
        )
        samples = read("pope", tmp_path).samples
        assert [sample.id for sample in samples] == ["popular-0", "random-0", "random-1"]
        assert [sample.answers for sample in samples] == [("yes",), ("yes",), ("no",)]

    def test_official_files(self, tmp_path: Path) -> None:
        for part in ("random", "adversarial"):
            lines = [
                {"question_id": 1, "image": "COCO_1.jpg", "text": "Is there a cup?", "label": "yes"},
                {"question_id": 2, "image": "COCO_1.jpg", "text": "Is there a car?", "label": "no"},
            ]
            content = "".join(json.dumps(line) + "\n" for line in lines)
            write(tmp_path / "coco" / f"coco_pope_{part}.json", content.encode())
        write(tmp_path / "val2014" / "COCO_1.jpg", coloured(8))
        task = read("pope", tmp_path)
        assert [sample.id for sample in task.samples] == ["adversarial-1", "adversarial-2", "random-1", "random-2"]
        assert task.samples[0].question == "Is there a cup?" + SHORT
        assert colour(task.samples[0]) == 8
        records = records_of(task, ["Yes", "yes", "yes", "No"])
        assert category_means(records) == {"adversarial": 0.5, "random": 1.0}
        assert task.summarise(records) == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8})

    def test_parquet(self, tmp_path: Path) -> None:
        row = {"question_id": "1", "question": "Is there a cup?", "answer": "Yes", "category": "popular"}
        write_parquet(tmp_path / "data" / "test-00000-of-00003.parquet", [{**row, "image": {"bytes": coloured(8)}}])
        (sample,) = read("pope", tmp_path).samples
        assert (sample.category, sample.answers) == ("popular", ("yes",))

    def test_another_answer_is_refused(self, tmp_path: Path) -> None:
        line = {"question_id": 1, "image": "a.jpg", "text": "Is there a cup?", "label": "maybe"}
        write(tmp_path / "coco_pope_random.json", line)
        with pytest.raises(BadInput, match=r"question 1 cannot be read \(its answer is 'maybe', expected yes or no\)"):
            read("pope", tmp_path)


class TestVStar:
    def write(self, folder: Path) -> None:
        text = "What is the material of the glove?\n(A) rubber\n(B) cotton\nAnswer with the option's letter directly."
        lines = [
            {"image": f"{kind}/sa_1.jpg", "text": text, "category": kind, "label": "A", "question_id": number}
            for number, kind in enumerate(("direct_attributes", "relative_position"))
        ]
        write(folder / "test_questions.jsonl", "\n".join(map(json.dumps, lines)).encode())
        boxes = {"direct_attributes": [[4, 2, 6, 5]], "relative_position": [[4, 2, 6, 5], [0, 0, 1, 1]]}
        for kind, found in boxes.items():
            write(folder / kind / "sa_1.jpg", coloured(2))
            write(folder / kind / "sa_1.json", {"target_object": ["glove"], "bbox": found, "options": ["a", "b"]})

    def test_questions_with_boxes(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        task = read("vstar", tmp_path)
        first, second = task.samples
        assert (first.boxes_xyxy_px, len(second.boxes_xyxy_px), task.has_boxes) == (((4, 2, 10, 7),), 2, True)
        assert (first.category, colour(first)) == ("direct_attributes", 2)
        assert [task.score(answer, first) for answer in ("(A)", "B", "the answer is A")] == [1.0, 0.0, 1.0]

    def test_lmms_labs_parquet_has_no_boxes(self, tmp_path: Path) -> None:
        row = {"text": "What?\n(A) x\n(B) y", "category": "direct_attributes", "label": "b", "question_id": "0"}
        write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{**row, "image": {"bytes": coloured(7)}}])
        (sample,) = read("vstar", tmp_path).samples
        assert (sample.question, sample.answers, sample.boxes_xyxy_px, colour(sample)) == (row["text"], ("B",), (), 7)

    def test_vlmevalkits_table_is_asked_like_the_official_file(self, tmp_path: Path) -> None:
        row = {"index": "3", "question": "What is it?", "A": "rubber", "B": "cotton", "C": "", "D": "", "answer": "A"}
        write_tsv(tmp_path / "VStarBench.tsv", [{**row, "category": "relative_position", "image": as_base64(7)}])
        (sample,) = read("vstar", tmp_path).samples
        assert sample.question == (
            "What is it?\n(A) rubber\n(B) cotton\nAnswer with the option's letter from the given choices directly."
        )


class TestHrBench:
    ROW = {  # noqa: RUF012
        "question": "What colour is it?",
        "answer": "B",
        "category": "single",
        "A": "red",
        "B": "blue",
        "C": "green",
        "D": None,
    }

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                **self.ROW,
                "index": number,
                "cycle_category": f"cycle_{number % 2}",
                "image": base64.b64encode(coloured(6)),
            }
            for number in range(3)
        ]

    def write_parquet(self, folder: Path) -> None:
        rows = [{**row, "image": row["image"].decode()} for row in self.rows()]
        write_parquet(folder / "hr_bench_4k.parquet", rows)

    def write_tsv(self, folder: Path) -> None:
        columns = ["index", "cycle_category", *self.ROW, "image"]
        lines = ["\t".join(columns)]
        for row in self.rows():
            values = {**row, "image": row["image"].decode(), "D": ""}
            lines.append("\t".join(str(values[column]) for column in columns))
        write(folder / "hr_bench_4k.tsv", "\n".join(lines).encode())

    @pytest.mark.parametrize("form", ["parquet", "tsv"])
    def test_it_is_read(self, tmp_path: Path, form: str) -> None:
        {"parquet": self.write_parquet, "tsv": self.write_tsv}[form](tmp_path)
        task = read("hrbench", tmp_path)
        sample = task.samples[0]
        assert sample.question == "What colour is it?\nA. red\nB. blue\nC. green\nAnswer the option letter directly."
        assert (colour(sample), sample.details["cycle"]) == (6, "cycle_0")
        records = records_of(task, ["B", "A", "it is green"])
        assert [record.score for record in records] == [1.0, 0.0, 0.0]
        # Orders 0 and 1 have the means 1/2 and 0.
        assert task.summarise(records) == {"average": 0.25, "single": 0.25}
        assert task.settings == {"split": "4k"}

    @pytest.mark.parametrize(
        "name", ["HRBench4K.tsv", "data/hrbench_4k-00000-of-00010.parquet", "sub/hr_bench_4k-00000-of-00002.parquet"]
    )
    def test_other_names(self, tmp_path: Path, name: str) -> None:
        rows = [{**row, "image": row["image"].decode(), "D": ""} for row in self.rows()]
        path = tmp_path / name
        write_tsv(path, rows) if path.suffix == ".tsv" else write_parquet(path, rows)
        assert [colour(sample) for sample in read("hrbench", tmp_path).samples] == [6, 6, 6]

    def test_sizes(self, tmp_path: Path) -> None:
        self.write_parquet(tmp_path)
        with pytest.raises(BadInput, match=r"has no hr_bench_8k.*expects hr_bench_8k\.parquet"):
            read("hrbench", tmp_path, "8k")
        with pytest.raises(BadInput, match="the split is '16k'; the task hrbench has 4k, 8k"):
            read("hrbench", tmp_path, "16k")


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(as_base64(9)[place : place + 76] for place in range(0, len(as_base64(9)), 76)),
        f"data:image/png;base64,{as_base64(9)}",
        f"DATA:;BASE64,{as_base64(9)}",
        as_base64(9).rstrip("="),
        base64.urlsafe_b64encode(coloured(9)).decode(),
        "data:image/png;base64," + as_base64(9).replace("+", "%2B"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in coloured(9)),
    ],
    ids=["wrapped", "data URI", "upper case", "no padding", "URL alphabet", "escaped", "percent"],
)
def test_base64_as_it_is_written(tmp_path: Path, text: str) -> None:
    row = {"index": "0", "cycle_category": "c", **{key: str(value) for key, value in TestHrBench.ROW.items()}}
    write_tsv(tmp_path / "hr_bench_4k.tsv", [{**row, "image": text}])
    assert colour(read("hrbench", tmp_path).samples[0]) == 9


def test_a_picture_that_another_row_has(tmp_path: Path) -> None:
    row = {"cycle_category": "c", **{key: str(value) for key, value in TestHrBench.ROW.items()}}
    rows = [{"index": "10", **row, "image": as_base64(3)}, {"index": "11", **row, "image": "10"}]
    write_tsv(tmp_path / "hr_bench_4k.tsv", rows)
    assert [colour(sample) for sample in read("hrbench", tmp_path).samples] == [3, 3]


def test_a_picture_beside_a_parquet_file(tmp_path: Path) -> None:
    write(tmp_path / "data" / "pictures" / "a.png", coloured(11))
    row = {"type": "human_test", "question": "?", "answer": "1"}
    paths = ("pictures/a.png", "../../a.png")
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        [{**row, "image": {"bytes": None, "path": path}} for path in paths],
    )
    inside, outside = read("chartqa", tmp_path).samples
    assert colour(inside) == 11
    with pytest.raises(BadInput, match="lies outside"):
        outside.open_picture()


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_a_table_with_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    TestHrBench().write_tsv(tmp_path)
    text = (tmp_path / "hr_bench_4k.tsv").read_text("utf-8")
    (tmp_path / "hr_bench_4k.tsv").write_bytes(mark + text.encode("utf-8" if len(mark) == 3 else "utf-16-le"))
    assert read("hrbench", tmp_path).samples[0].id == "0"


def test_a_row_with_too_many_values(tmp_path: Path) -> None:
    TestHrBench().write_tsv(tmp_path)
    with (tmp_path / "hr_bench_4k.tsv").open("a", encoding="utf-8") as file:
        file.write("\n" + "\t".join("x" * 20))
    with pytest.raises(BadInput, match="row 4 has more values than the first line has names"):
        read("hrbench", tmp_path)


def test_tags_are_rendered_when_asked_for() -> None:
    task = tags_task("heldout", 1000, 0)
    assert len(task.samples) == 1000
    sample = task.samples[3]
    assert (sample.id, sample.question, sample.answers) == (
        "3",
        task.samples[3].question,
        task.samples[-997].answers,
    )
    (box,) = sample.boxes_xyxy_px
    assert sample.open_picture().size >= box[2:]
    assert [entry.id for entry in task.samples[5:7]] == ["5", "6"]
    with pytest.raises(IndexError):
        task.samples[1000]
    trained = {entry.answers[0] for entry in task.unlabelled[:3]}
    assert trained
    assert all(entry.category == "code seen in training" for entry in task.unlabelled[:3])


class TestWrongFolders:
    @pytest.mark.parametrize("name", ON_DISK)
    def test_an_empty_one(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BadInput, match=f"has no .*; the task {name} expects .* there"):
            read(name, tmp_path)

    @pytest.mark.parametrize("name", ON_DISK)
    def test_none_at_all(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BadInput, match=f"nowhere is not a folder; the task {name} expects "):
            read(name, tmp_path / "nowhere")
        with pytest.raises(BadInput, match=f"the task {name} reads files; name their folder"):
            open_task(name, None, None, None, 0)

    def test_options_that_do_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="the task pope has no splits to choose from; name none"):
            read("pope", tmp_path, "random")
        with pytest.raises(BadInput, match="the task tags renders its scenes and reads no files"):
            read("tags", tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", "is not JSON"),
            (b"\xff\x00", "is not UTF-8 text"),
            ({"data": []}, "holds no question"),
            ([1], "holds no question"),
            ({"data": [1]}, "question 1 cannot be read .expected an object, got int"),
            ({"data": [{"question": "?", "answers": ["a"], "image_id": "x"}]}, "question 1 has no 'question_id'"),
            ({"data": [{"question": "?", "answers": 3, "image_id": "x", "question_id": 1}]}, "expected text or a list"),
            (
                {"data": [{"question": "?", "answers": ["a"], "image_id": "../../x", "question_id": 1}]},
                "lies outside",
            ),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, content: object, message: str) -> None:
        write(tmp_path / "TextVQA_0.5.1_val.json", content)
        with pytest.raises(BadInput, match=message) as caught:
            read("textvqa", tmp_path)
        assert "\n" not in str(caught.value)

    def test_no_parquet(self, tmp_path: Path) -> None:
        write(tmp_path / "data" / "test-00000-of-00001.parquet", b"PAR1 but not really")
        with pytest.raises(BadInput, match="cannot be read as Parquet"):
            read("ocrbench", tmp_path)

    @pytest.mark.parametrize(
        ("image", "message"),
        [("not base64!", "is not base64 text"), (None, "has no picture"), ("aGVsbG8=", "image")],
    )
    def test_pictures_that_are_none(self, tmp_path: Path, image: object, message: str) -> None:
        row = {**TestHrBench.ROW, "index": 0, "cycle_category": "c", "image": image}
        table = pa.Table.from_pylist([row, {**row, "image": "aGVsbG8="}])
        pq.write_table(table, tmp_path / "hr_bench_4k.parquet")
        sample = read("hrbench", tmp_path).samples[0]
        with pytest.raises(BadInput, match=message):
            sample.open_picture()

    def test_a_picture_that_is_missing(self, tmp_path: Path) -> None:
        write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [TestTextVqa.ROW]})
        opener: Callable[[], Image.Image] = read("textvqa", tmp_path).samples[0].open_picture
        with pytest.raises(BadInput, match=r"train_images/abc\.jpg"):
            opener()
