"""`sdrpn relabel` on what a labelling gathered: as if labelled so from the start, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrpn.labels.head_choice import write_heads
from sdrpn.labels.shards import read_shards
from tests.cli.command import Command, refusal
from tests.labels.data import write_questions


@pytest.fixture
def labelled(sdrpn: Command, text_checkpoint: Path, tmp_path: Path) -> Path:
    write_heads(tmp_path / "heads.json", ((0, 1), (1, 2)), {})
    data = write_questions(tmp_path)
    files = ("--data", data, "--images", tmp_path, "--heads", tmp_path / "heads.json", "--out", tmp_path / "labels")
    assert sdrpn("label", text_checkpoint, *files, "--max-new-tokens", 4).code == 0
    return tmp_path / "labels"


def test_the_same_rule_gives_the_same_labels(sdrpn: Command, labelled: Path) -> None:
    again = labelled.with_name("again")
    made = sdrpn("relabel", labelled, "--out", again, "--json").json()
    assert made["rule"]["raw"] is False
    assert list(read_shards(again / "labels")) == list(read_shards(labelled / "labels"))
    assert (again / "labels.json").read_text() == (labelled / "labels.json").read_text()


def test_a_page_to_look_at_is_written_too(sdrpn: Command, labelled: Path) -> None:
    again = labelled.with_name("again")
    (labelled.parent / "0.png").unlink()  # the labels are there without the picture
    outcome = sdrpn("relabel", labelled, "--out", again, "--raw")
    page = (again / "report.html").read_text("utf-8")
    assert "Where is sign 1?" in page
    assert "0.png does not exist" in page
    assert "&#34;raw&#34;: true" in page
    assert (again / "samples.png").is_file()
    assert "report.html" in outcome.err


def test_raw_labels_ignore_nothing(sdrpn: Command, labelled: Path) -> None:
    raw = labelled.with_name("raw")
    counts = sdrpn("relabel", labelled, "--out", raw, "--raw", "--json").json()["counts"]
    rows = list(read_shards(raw / "labels"))
    assert counts["oversize"] == 0
    assert len(rows) == counts["labelled"] > 0
    assert all(set(row["cells"]) <= {0, 1} for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--out", "new"), "nowhere holds no labels.json; expected a folder that `sdrpn label` completed"),
        (("labels", "--out", "labels"), "labels exists and is not empty"),
        (("labels", "--out", "new", "--foreground-share", "0.05"), "expected 0 < background_share <= foreground_share"),
        (
            ("labels", "--out", "new", "--raw", "--background-share", "0.1"),
            "leave one of them out (--raw, --background-",
        ),
        (("labels", "--out", "new", "--raw", "--largest-box-share", "0.1"), "leave one of them out (--raw, --largest-"),
    ],
)
def test_what_is_refused(sdrpn: Command, labelled: Path, arguments: tuple[str, ...], message: str) -> None:
    source, *others = (
        str(labelled.parent / word) if word in ("labels", "new", "nowhere") else word for word in arguments
    )
    assert message in refusal(sdrpn("relabel", source, *others))
    assert not (labelled.parent / "new").exists()
