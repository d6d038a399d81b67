"""`sdrpn ask`: what it prints, where, and what each option does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from sdrpn.host import listed_files
from sdrpn.host.escaping import terminal_text
from sdrpn.runtime import RoiPolicy, Session, decoder
from sdrpn.runtime.backends import row_feeds
from sdrpn.terminal.output import warn
from tests.cli.command import Command, Outcome, refusal
from tests.damage import copied, edit_json, flip_byte
from tests.pictures import SIZE_WH, photo

QUESTION = "What does the sign say?"
# On the photo of these tests: the first finds a region, nothing reaches the second.
SOME_CELLS, NO_CELL = "0.3", "0.99"


@pytest.fixture
def ask(sdrpn: Command, text_bundle: Path, picture: Path) -> Command:
    def run(*options: object) -> Outcome:
        # Of 4 x 4 cells, any region may be looked at.
        looks = () if "--no-roi" in options else ("--max-share", 1)
        return sdrpn("ask", text_bundle, picture, QUESTION, "--max-new-tokens", 8, *looks, *options)

    return run


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Session:
        raise AssertionError("the graphs were loaded")

    monkeypatch.setattr(Session, "open_with", fail)


class TestOutput:
    def test_text_on_stdout_and_nothing_else(self, ask: Command, text_bundle: Path) -> None:
        with Session.open(text_bundle) as session:
            expected = session.answer(photo(), QUESTION, roi=RoiPolicy(max_share=1), max_new_tokens=8)
        assert ask() == Outcome(0, f"{terminal_text(expected.text)}\n", "")

    def test_json(self, ask: Command) -> None:
        answer = ask("--json", "--threshold", SOME_CELLS).json()
        assert list(answer) == [
            "format_version",
            "text",
            "token_ids",
            "finish_reason",
            "boxes_xyxy_px",
            "roi_token_count",
            "note",
            "timings",
            "tokens",
            "overlay",
        ]
        assert len(answer["token_ids"]) == 8
        assert answer["finish_reason"] == "length"
        ((x1, y1, x2, y2),) = answer["boxes_xyxy_px"]
        assert 0 <= x1 < x2 <= SIZE_WH[0]
        assert 0 <= y1 < y2 <= SIZE_WH[1]
        assert (x2 - x1) * (y2 - y1) < SIZE_WH[0] * SIZE_WH[1]
        assert answer["roi_token_count"] == answer["tokens"]["roi"] == 16
        assert answer["note"] is None
        assert answer["timings"]["total_s"] > 0
        assert len(answer["timings"]["decode_s"]) == 7  # the first token comes from the prefill
        assert answer["tokens"]["generated"] == 8

    def test_a_note_is_a_warning_on_stderr(self, ask: Command) -> None:
        found = ask("--threshold", NO_CELL)
        assert found.code == 0
        assert found.err.startswith("sdrpn: warning: nothing inserted: no cell is above 0.99, the highest is 0.")
        assert found.err.count("\n") == 1

    @pytest.mark.parametrize("options", [(), ("--no-roi",), ("--temperature", 2, "--seed", 5)])
    def test_streamed_pieces_are_the_text(self, ask: Command, options: tuple[object, ...]) -> None:
        streamed = ask("--stream", "--max-new-tokens", 40, *options)
        assert streamed == ask("--max-new-tokens", 40, *options)
        assert (streamed.code, streamed.err) == (0, "")


class TestOptions:
    def test_no_roi_looks_once(self, ask: Command) -> None:
        answer = ask("--json", "--no-roi").json()
        assert (answer["boxes_xyxy_px"], answer["roi_token_count"], answer["tokens"]["images_encoded"]) == ([], 0, 1)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--threshold", 0.3),
            ("--upscale", "bbox"),
            ("--max-ratio", 2),
            ("--max-share", 0.5),
            ("--gate-threshold", 0.5),
        ],
    )
    def test_options_of_a_second_look_that_is_left_out(
        self, sdrpn: Command, text_bundle: Path, picture: Path, option: str, value: object, nothing_is_loaded: None
    ) -> None:
        outcome = sdrpn("ask", text_bundle, picture, QUESTION, "--no-roi", option, value)
        assert refusal(outcome) == (
            f"{option} is for the second look, and --no-roi leaves that out; leave one of them out"
        )

    @pytest.mark.parametrize(("option", "value"), [("--top-p", 0.5), ("--seed", 7), ("--seed", 0)])
    def test_options_of_sampling_without_a_temperature(
        self, ask: Command, option: str, value: object, nothing_is_loaded: None
    ) -> None:
        name = option.removeprefix("--").replace("-", "_")
        assert refusal(ask(option, value)) == (
            f"{name} is {value}, and at a temperature of 0 the most likely token is always taken; give a temperature "
            f"above 0, or leave {name} out (--temperature, {option})"
        )

    @pytest.mark.parametrize("ratio", ["0.5", "1.5"])
    def test_max_ratio_with_bbox(self, ask: Command, ratio: str) -> None:
        options = ("--json", "--threshold", SOME_CELLS, "--upscale", "bbox")
        limited = ask(*options, "--max-ratio", ratio).json()
        assert 0 < limited["roi_token_count"] < ask(*options).json()["roi_token_count"]

    def test_max_ratio_without_bbox(self, ask: Command, nothing_is_loaded: None) -> None:
        for options, got in (((), "none"), (("--upscale", "mask"), "--upscale mask")):
            assert refusal(ask("--max-ratio", 2, *options)) == f"--max-ratio 2 needs --upscale bbox; got {got}"

    def test_without_options_the_bundle_says_where_to_look(
        self, sdrpn: Command, text_bundle: Path, picture: Path, tmp_path: Path
    ) -> None:
        bundle = copied(text_bundle, tmp_path)
        edit_json(bundle / "manifest.json", lambda manifest: manifest["policy"].update(threshold=0.99, max_share=1.0))

        def answer(*options: object) -> Any:
            """Whatever it warns of."""
            asked = ("ask", bundle, picture, QUESTION, "--max-new-tokens", 2, "--json")
            return json.loads(sdrpn(*asked, *options).out)

        assert "no cell is above 0.99" in answer()["note"]
        assert answer("--threshold", SOME_CELLS)["boxes_xyxy_px"]  # the share stays the bundle's
        edit_json(bundle / "manifest.json", lambda manifest: manifest.pop("policy"))  # as older releases wrote it
        found, expected = answer(), answer("--threshold", 0.15, "--upscale", "mask")
        assert (found["note"], found["token_ids"]) == (expected["note"], expected["token_ids"])

    def test_the_former_name_of_jpeg_works_and_says_so(self, ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        assert ask("--decode", "fast").err == ""  # to people only
        monkeypatch.setattr("sdrpn.terminal.arguments.warn_of_former_name", warn)
        outcome = ask("--decode", "fast")
        assert outcome.err == "sdrpn: warning: --decode is --jpeg now; the old name goes with the next version\n"
        assert outcome.out == ask("--jpeg", "fast").out
        assert refusal(ask("--decode", "quick")).startswith("argument --decode: 'quick' is unknown")

    def test_a_seed_is_a_draw(self, ask: Command) -> None:
        def drawn(seed: int) -> list[int]:
            ids: list[int] = ask("--json", "--temperature", 1.5, "--seed", seed).json()["token_ids"]
            return ids

        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)

    def test_next_to_no_temperature_is_greedy(self, ask: Command) -> None:
        assert ask("--temperature", "1e-300") == ask()

    @pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32"])
    def test_variants_agree(self, ask: Command, variant: str) -> None:
        assert ask("--variant", variant) == ask()

    @pytest.mark.parametrize("threads", [1, 2])
    def test_threads_change_nothing(self, ask: Command, threads: int) -> None:
        assert ask("--threads", threads) == ask()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ("--variant", "fused-int3"),
                r".* has no variant 'fused-int3'; it has fused-fp32, primitive-fp32\. Add one:",
            ),
            (("--threshold", "0"), r"threshold is 0\.0; expected a number between 0 and 1.* \(--threshold\)"),
            (("--top-p", "0"), r"top_p is 0\.0; expected more than 0, at most 1 \(--top-p\)"),
            (("--seed", "-1"), r"seed is -1; expected 0 or more.* \(--seed\)"),
            (("--upscale", "bbox", "--max-ratio", "0"), r"max_ratio is 0\.0; expected .* \(--max-ratio\)"),
            (("--repetition-penalty", "0"), r"repetition_penalty is 0\.0; .* \(--repetition-penalty\)"),
            (("--threads", "1000"), r"threads is 1000; expected 1 to 256, .* \(--threads\)"),
            (("--backend", "openvino", "--activation-block", "7"), r"activation_block is 7; .* \(--activation-block\)"),
            (
                ("--max-new-tokens", "5000"),
                r"\d+ prompt tokens \+ 5000 new tokens need \d+ positions, the bundle has 512; .*max-new-tokens\)",
            ),
        ],
    )
    def test_values_that_cannot_be(self, ask: Command, options: tuple[str, ...], message: str) -> None:
        assert re.match(message, refusal(ask(*options)))

    def test_a_provider_that_is_not_there(self, ask: Command) -> None:
        backend, provider = "onnxruntime-cuda", "CUDAExecutionProvider"
        if provider in onnxruntime.get_available_providers():
            pytest.skip(f"this ONNX Runtime has the {provider}")
        assert refusal(ask("--backend", backend)) == (
            f"backend {backend} needs ONNX Runtime's {provider}, which is not available in this build; install it: "
            "pip uninstall onnxruntime && pip install 'sdrpn[cuda]'"
        )

    def test_no_verify_takes_large_files_unread(
        self, sdrpn: Command, text_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changed = copied(text_bundle, tmp_path)
        flip_byte(changed / "weights" / "tail.fp32.bin")
        monkeypatch.setattr(listed_files, "SMALL_FILE_BYTES", 10_000)
        command = ("ask", changed, picture, QUESTION, "--max-new-tokens", 2)
        assert "tail.fp32.bin was changed" in refusal(sdrpn(*command))
        assert sdrpn(*command, "--no-verify").code == 0


class TestOverlay:
    def test_a_picture_that_opens(self, ask: Command, tmp_path: Path) -> None:
        for name, form in (("overlay.png", "PNG"), ("overlay.jpg", "JPEG"), ("OVERLAY.JPEG", "JPEG")):
            path = tmp_path / name
            assert ask("--overlay", path, "--threshold", SOME_CELLS).code == 0
            with Image.open(path) as image:
                assert image.format == form
                image.load()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "o.gif",
                r"--overlay \S+o\.gif ends in \.gif; expected a name that ends in \.png, \.jpg, \.jpeg or \.webp",
            ),
            ("overlay", r"--overlay \S+overlay has no ending; expected a name that ends in"),
            (
                "resutls/o.png",
                r".* in a folder that does not exist; did you mean results\?; make it first: mkdir",
            ),
        ],
    )
    def test_a_name_that_was_not_meant(
        self, ask: Command, tmp_path: Path, nothing_is_loaded: None, name: str, message: str
    ) -> None:
        (tmp_path / "results").mkdir()
        before = sorted(tmp_path.rglob("*"))
        assert re.match(message, refusal(ask("--overlay", tmp_path / name)))
        assert sorted(tmp_path.rglob("*")) == before

    def test_without_roi_the_image_is_drawn_bare(self, ask: Command, tmp_path: Path) -> None:
        bare, mapped = tmp_path / "bare.png", tmp_path / "mapped.png"
        assert ask("--no-roi", "--overlay", bare).code == 0
        assert ask("--threshold", NO_CELL, "--overlay", mapped).code == 0
        shown = [np.asarray(Image.open(path).convert("RGB")) for path in (bare, mapped)]
        corner = [int(pixels[60, 60].min()) for pixels in shown]  # in the white corner of the photo
        assert corner[0] == 255
        assert corner[1] < 255

    def test_the_answer_is_printed_also_with_an_overlay(self, ask: Command, tmp_path: Path) -> None:
        path = tmp_path / "overlay.png"
        assert ask("--overlay", path) == Outcome(0, ask().out, f"sdrpn: where it looked: {path}\n")
        once = ask("--no-roi", "--overlay", path).err
        assert once == f"sdrpn: the picture, at which it looked once: {path}\n"
        nowhere = ask("--threshold", NO_CELL, "--overlay", path).err.splitlines()[-1]
        assert nowhere == f"sdrpn: its map, of which it looked at no part again: {path}"
        assert ask("--overlay", path, "--json").json()["overlay"] == str(path)

    @pytest.mark.parametrize("target", ["folder", "below a file", "the image"])
    def test_a_place_that_cannot_be_written_is_found_before_the_work(
        self, ask: Command, target: str, tmp_path: Path, picture: Path, nothing_is_loaded: None
    ) -> None:
        (tmp_path / "folder").mkdir()
        places: dict[str, tuple[Path, str]] = {
            "folder": (tmp_path / "folder", "is a folder, not a regular file; expected the name of a file to write"),
            "below a file": (picture / "overlay.png", "photo.png, which is a file; expected"),
            "the image": (picture, "would replace the image that is asked about; name another file"),
        }
        path, message = places[target]
        before = sorted(tmp_path.rglob("*")), picture.read_bytes()
        assert message in refusal(ask("--overlay", path))
        assert (sorted(tmp_path.rglob("*")), picture.read_bytes()) == before

    def test_a_refused_question_leaves_no_overlay(self, ask: Command, tmp_path: Path) -> None:
        refusal(ask("--overlay", tmp_path / "overlay.png", "--max-new-tokens", 5000))
        assert not (tmp_path / "overlay.png").exists()


class TestFailures:
    def test_a_graph_that_fails_is_one_line(self, ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        original = row_feeds.row_buffers

        def misplaced(*arguments: Any) -> dict[str, Any]:
            buffers: dict[str, Any] = original(*arguments)
            buffers["write_index"].write(np.array([10_000]))  # past the caches
            return buffers

        monkeypatch.setattr(decoder, "row_buffers", misplaced)
        message = refusal(ask())
        assert re.match(r"the trunk graph failed in ONNX Runtime: \S", message)


class TestBundlesThatLackSomething:
    def test_without_a_tokenizer_nothing_is_loaded(
        self, sdrpn: Command, tiny_bundle: Path, picture: Path, nothing_is_loaded: None
    ) -> None:
        message = refusal(sdrpn("ask", tiny_bundle, picture, QUESTION))
        assert message == (
            f"{tiny_bundle} has no tokenizer.json, and a question in words needs one: put tokenizer.json or "
            "tokenizer.model beside the checkpoint's config.json and export it again"
        )

    def test_without_an_rpn_it_answers_plainly_and_says_so(
        self, sdrpn: Command, plain_bundle: Path, picture: Path
    ) -> None:
        command = ("ask", plain_bundle, picture, QUESTION, "--max-new-tokens", 4)
        told, plain = sdrpn(*command), sdrpn(*command, "--no-roi")
        assert plain == Outcome(0, told.out, "")
        assert told.code == 0
        assert told.err == (
            f"sdrpn: warning: {plain_bundle} has no RPN: answering as the plain model (use --no-roi to "
            "avoid this warning)\n"
        )

    def test_a_bundle_from_before_there_were_gates(
        self, sdrpn: Command, text_bundle: Path, picture: Path, tmp_path: Path
    ) -> None:
        def without_gates(manifest: dict[str, Any]) -> None:
            del manifest["policy"]["gate_threshold"]
            rpn = manifest["spec"]["rpn"]
            for name in [name for name in rpn if name.startswith("gate")]:
                del rpn[name]

        old = copied(text_bundle, tmp_path / "old")
        edit_json(old / "manifest.json", without_gates)
        command = ("ask", old, picture, QUESTION, "--max-new-tokens", 4)
        assert sdrpn(*command).out == sdrpn("ask", text_bundle, *command[2:]).out
        assert refusal(sdrpn(*command, "--gate-threshold", 0.5)) == (
            "a gate's threshold of 0.5 was given, and this model has no gate; leave it out (--gate-threshold)"
        )

    def test_a_policy_that_was_asked_for_is_not_dropped_silently(self, plain_bundle: Path) -> None:
        with Session.open(plain_bundle) as session:
            with pytest.raises(ValueError, match=r"has no RPN and answers as the plain model only: pass roi=None"):
                session.answer(photo(), QUESTION, roi=RoiPolicy())
            assert session.answer(photo(), QUESTION, roi=None, max_new_tokens=2).boxes_xyxy_px == ()
