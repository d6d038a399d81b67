"""`sdrpn bench`: what is asked, how often, and what is reported. No seconds are judged."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from sdrpn.host.machine import read_cpu
from sdrpn.runtime import Answer, Session
from tests.cli.command import Command

FEW = ("--runs", 2, "--new-tokens", 3, "--threads", 1)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Every answer that was made."""
    made = list[Answer]()
    original = Session.answer_ids

    def answer_ids(self: Session, *args: object, **options: object) -> Answer:
        made.append(original(self, *args, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(Session, "answer_ids", answer_ids)
    return made


def test_every_case_has_the_crops_that_it_says(sdrpn: Command, text_bundle: Path, answers: list[Answer]) -> None:
    outcome = sdrpn("bench", text_bundle, *FEW, "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    cases = ["plain", "no-box", "one-box", "mask", "two-box", "second-question"]
    assert [case["case"] for case in report["cases"]] == cases
    # A round has the six cases, and the question before the second one.
    assert len(answers) == 3 * 7
    boxes = [len(answer.boxes_xyxy_px) for answer in answers[:7]]
    assert boxes == [0, 0, 1, 1, 2, 0, 0]
    assert [answer.tokens.roi for answer in answers[:5]] == [0, 0, 16, 3, 32]
    assert [answer.tokens.images_encoded for answer in answers[4:7]] == [3, 1, 0]  # the last one knows its picture
    assert [answer.tokens.rpn_rows > 0 for answer in answers[:3]] == [False, True, True]
    assert {len(answer.token_ids) for answer in answers[:5]} <= {1, 2, 3}


def test_what_is_reported(sdrpn: Command, text_bundle: Path, tmp_path: Path) -> None:
    outcome = sdrpn("bench", text_bundle, *FEW, "--cases", "plain,one-box", "--json", "--html", tmp_path / "page.html")
    report = json.loads(outcome.out)
    plain, box = report["cases"]
    assert (report["runs"], report["machine"]["threads"]) == (2, 1)
    assert plain["relative_to_plain"] == 1.0
    assert box["relative_to_plain"] == pytest.approx(plain["stages"]["total"]["p50"] / box["stages"]["total"]["p50"])
    assert box["stages"]["crop trunk"]["p50"] > 0 == plain["stages"]["crop trunk"]["p50"]
    for case in (plain, box):
        for stage in case["stages"].values():
            assert 0 <= stage["p50"] <= stage["p95"] <= stage["p99"]
    assert report["peak_rss_bytes"] > 10_000_000
    bandwidth = report["bandwidth_bytes_per_s"]
    for case in (plain, box):
        expected = case["token_bytes"] / case["stages"]["token"]["p50"] / bandwidth
        assert case["bandwidth_share"] == pytest.approx(expected)
    assert box["token_bytes"] > plain["token_bytes"]  # a longer context
    assert plain["prefill_flops_per_s"] > 0
    assert box["prefill_flops_per_s"] is None
    assert "fewer than 10" in outcome.err
    assert "one-box" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_stages_add_up_to_the_whole_answer(sdrpn: Command, text_bundle: Path) -> None:
    report = json.loads(sdrpn("bench", text_bundle, *FEW, "--cases", "plain,one-box", "--json").out)
    plain, box = report["cases"]
    for case in (plain, box):
        parts = case["median_answer_s"]
        assert sum(parts.values()) == pytest.approx(case["stages"]["total"]["p50"])
        assert parts["picture preparation"] > 0
        assert set(parts) <= set(case["stages"])
    assert box["median_answer_s"]["crop preparation"] > 0 == plain["median_answer_s"]["crop preparation"]
    assert report["machine"]["processor"] == read_cpu().name


def test_sides_take_turns(sdrpn: Command, text_bundle: Path, answers: list[Answer]) -> None:
    other = f"{text_bundle}:primitive-fp32"
    outcome = sdrpn("bench", text_bundle, *FEW, "--cases", "plain", "--compare", other, "--csv")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert {row["side"] for row in rows} == {"bundle:fused-fp32", "bundle:primitive-fp32"}
    assert len(answers) == 3 * 2


def test_libraries_take_turns(sdrpn: Command, text_bundle: Path) -> None:
    pytest.importorskip("openvino")
    others = ("--compare", f"{text_bundle}:fused-fp32:openvino", "--cases", "plain")
    outcome = sdrpn("bench", text_bundle, "--variant", "fused-fp32", *FEW, *others)
    assert outcome.code == 0
    sides = [line.split()[0] for line in outcome.out.splitlines() if line.startswith("bundle:")]
    assert sides == 2 * ["bundle:fused-fp32", "bundle:fused-fp32:openvino"]
    assert "a token reads" in outcome.out


def test_caches_in_8_bits_take_turns(sdrpn: Command, text_bundle: Path) -> None:
    pytest.importorskip("openvino")
    first = (text_bundle, "--backend", "openvino", "--variant", "fused-fp32", "--cases", "plain")
    others = ("--compare", f"{text_bundle}:fused-fp32:openvino:int8", "--json")
    plain, coded = json.loads(sdrpn("bench", *first, *FEW, *others).out)["cases"]
    assert coded["side"] == "bundle:fused-fp32:openvino:int8"
    assert coded["token_bytes"] < plain["token_bytes"]
    for form in ("fused-fp32:openvino:fp8", "fused-fp32:openvino:int8:more"):
        outcome = sdrpn("bench", text_bundle, "--compare", f"{text_bundle}:{form}")
        assert "or BUNDLE:VARIANT:BACKEND:int8" in outcome.err


def test_against_torch(sdrpn: Command, text_bundle: Path, text_checkpoint: Path) -> None:
    arguments = ("--cases", "one-box", "--compare", "torch", "--checkpoint", text_checkpoint, "--json")
    report = json.loads(sdrpn("bench", text_bundle, *FEW, *arguments).out)
    ours, torch = report["cases"]
    assert torch["side"] == "torch"
    assert torch["relative_to_first"] == pytest.approx(ours["stages"]["total"]["p50"] / torch["stages"]["total"]["p50"])
    assert report["peak_rss_bytes"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cases", "plain,three-box"), "there is no case three-box; expected some of plain, gate-skips, no-box"),
        (("--cases", ","), "there is no case (none given)"),
        (("--compare", "torch"), "--compare torch and --checkpoint DIR go together"),
        (("--runs", "0"), "argument --runs"),
        (("--variant", "fused-int3"), "has no variant 'fused-int3'"),
    ],
)
def test_refusals(sdrpn: Command, text_bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = sdrpn("bench", text_bundle, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_the_same_side_twice(sdrpn: Command, text_bundle: Path) -> None:
    outcome = sdrpn("bench", text_bundle, "--compare", text_bundle)
    assert outcome.code == 2
    assert "compared with itself" in outcome.err


def test_a_bundle_without_rpn(sdrpn: Command, plain_bundle: Path) -> None:
    assert "only the case plain can be measured; name only that (--cases plain)" in sdrpn("bench", plain_bundle).err
    assert sdrpn("bench", plain_bundle, *FEW, "--cases", "plain").code == 0
