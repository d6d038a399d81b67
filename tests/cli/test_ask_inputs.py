"""Every kind of image, question and bundle that `sdrpn ask` may be given: an answer, or one line that helps."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.bundle.bundle import MANIFEST_NAME
from sdrpn.export import ExportOptions, export_bundle
from tests.cli.command import Command, Outcome, refusal
from tests.damage import copied, cut, edit_json, flip_byte
from tests.export.calibration import Largest
from tests.pictures import BROKEN, PICTURES, exif_rotated, photo

QUESTION = "What does the sign say?"
ANY_REGION = ("--max-share", 1)  # of 4 x 4 cells, which are few


class TestImages:
    @pytest.mark.parametrize("kind", list(PICTURES))
    def test_every_kind_is_answered_with_boxes_and_overlay(
        self, sdrpn: Command, text_bundle: Path, tmp_path: Path, kind: str
    ) -> None:
        write, (width, height) = PICTURES[kind]
        overlay = tmp_path / "overlay.png"
        command = (
            "ask",
            text_bundle,
            write(tmp_path),
            QUESTION,
            *ANY_REGION,
            "--max-new-tokens",
            2,
            "--overlay",
            overlay,
        )
        answer = sdrpn(*command, "--json").json()
        assert len(answer["token_ids"]) == 2
        assert answer["boxes_xyxy_px"]
        for x1, y1, x2, y2 in answer["boxes_xyxy_px"]:
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
        with Image.open(overlay) as drawn:
            drawn.load()

    def test_boxes_are_in_pixels_of_the_upright_image(
        self, sdrpn: Command, text_bundle: Path, picture: Path, tmp_path: Path
    ) -> None:
        options = (QUESTION, "--max-new-tokens", 8, "--threshold", 0.3, "--json")
        upright = sdrpn("ask", text_bundle, picture, *options).json()
        turned = sdrpn("ask", text_bundle, exif_rotated(tmp_path), *options).json()
        for entry in ("text", "boxes_xyxy_px", "roi_token_count"):
            assert turned[entry] == upright[entry]
        assert upright["boxes_xyxy_px"]

    def test_of_an_animation_the_first_frame_is_asked_about(
        self, sdrpn: Command, text_bundle: Path, tmp_path: Path
    ) -> None:
        still, moving = tmp_path / "still.gif", tmp_path / "moving.gif"
        frames = [Image.fromarray(photo(seed=seed)).quantize(64) for seed in (0, 1)]
        frames[0].save(still)
        frames[0].save(moving, save_all=True, append_images=frames[1:])
        ids = [
            sdrpn("ask", text_bundle, path, QUESTION, *ANY_REGION, "--max-new-tokens", 8, "--json").json()["token_ids"]
            for path in (still, moving)
        ]
        assert ids[0] == ids[1]

    def test_a_hundred_megapixels(self, sdrpn: Command, text_bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "large.jpg"
        Image.new("L", (12_000, 9_000), 120).save(path)
        answer = sdrpn("ask", text_bundle, path, QUESTION, "--max-new-tokens", 1, "--json").json()
        assert len(answer["token_ids"]) == 1

    # A folder is asked about picture by picture: test_ask_frames.py.
    @pytest.mark.parametrize("kind", [kind for kind in BROKEN if kind != "a folder"])
    def test_what_is_no_picture_is_one_line(self, sdrpn: Command, text_bundle: Path, tmp_path: Path, kind: str) -> None:
        write, message = BROKEN[kind]
        (tmp_path / "images").mkdir()
        assert re.search(message, refusal(sdrpn("ask", text_bundle, write(tmp_path / "images"), QUESTION)))


class TestQuestions:
    @pytest.mark.parametrize(
        "question",
        [
            "Что написано?",
            "看板には何と書いてありますか",
            "ما المكتوب؟",
            "🙂?",
            "e\u0301\u200d\0?",
            "line\nbreak\t",
            "{% raise %}",
        ],
    )
    def test_any_script(self, sdrpn: Command, text_bundle: Path, picture: Path, question: str) -> None:
        found = sdrpn("ask", text_bundle, picture, question, *ANY_REGION, "--max-new-tokens", 4)
        assert (found.code, found.err) == (0, "")

    @pytest.mark.parametrize("question", ["<image>What?", "What<image>?", "<image><image>What?", "<ima<image>ge>What?"])
    def test_an_image_token_in_the_question_is_no_second_image(
        self, sdrpn: Command, text_bundle: Path, picture: Path, question: str
    ) -> None:
        asked = [sdrpn("ask", text_bundle, picture, text, "--max-new-tokens", 8) for text in (question, "What?")]
        assert asked[0] == asked[1]

    @pytest.mark.parametrize("question", ["", "  \n", "<image>"])
    def test_a_question_without_text(self, sdrpn: Command, text_bundle: Path, picture: Path, question: str) -> None:
        message = refusal(sdrpn("ask", text_bundle, picture, question))
        assert re.fullmatch(r"the question is empty \(got '.*'\); expected some text", message)

    @pytest.mark.parametrize(
        ("length", "new_tokens", "message"),
        [
            (10_000, 64, r"\d{5} prompt tokens \+ 64 new tokens need \d{5} positions, the bundle has 512; shorten .*"),
            (
                10,
                500,
                r"\d{3} prompt tokens \+ 500 new tokens need \d{3} .* or lower max_new_tokens \(--max-new-tokens\)",
            ),
            (10, 310, r"\d{3} prompt tokens \+ 16 RoI tokens \+ 310 new .* answer without the crop \(roi=None\), .*"),
        ],
        ids=["10 kB", "answer", "crop"],
    )
    def test_what_does_not_fit_the_context(
        self, sdrpn: Command, text_bundle: Path, picture: Path, length: int, new_tokens: int, message: str
    ) -> None:
        found = sdrpn("ask", text_bundle, picture, "x" * length, *ANY_REGION, "--max-new-tokens", new_tokens)
        assert re.fullmatch(message, refusal(found))


def in_manifest(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda bundle: edit_json(bundle / MANIFEST_NAME, change)


def moved_out(manifest: Any) -> None:
    manifest["files"]["../outside.bin"] = manifest["files"].pop("weights/tail.fp32.bin")


def linked_out(bundle: Path) -> None:
    path = bundle / "weights" / "tail.fp32.bin"
    path.rename(bundle.parent / "outside.bin")
    path.symlink_to(bundle.parent / "outside.bin")


def replaced_by_a_file(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).rename(bundle.parent / "moved.json")
    bundle.rename(bundle.parent / "aside")
    (bundle.parent / "moved.json").rename(bundle)


# What was done to a bundle, and what has to be said about it.
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing graph": (lambda b: (b / "trunk.fused-fp32.onnx").unlink(), r"onnx is missing; export the bundle again"),
    "missing weights": (lambda b: (b / "weights/trunk.fp32.bin").unlink(), r"trunk\.fp32\.bin is missing; export the"),
    "missing tokenizer": (lambda b: (b / "tokenizer.json").unlink(), r"tokenizer\.json is missing; export the bundle"),
    "changed byte in a graph": (
        lambda b: flip_byte(b / "tail.fused-fp32.onnx"),
        r"tail\.fused-fp32\.onnx was changed: its SHA-256 is \w{12}\.\.\., the manifest says \w{12}\.\.\.; export the",
    ),
    "changed byte in weights": (lambda b: flip_byte(b / "weights/trunk.fp32.bin"), r"trunk\.fp32\.bin was changed"),
    "changed byte in the tokenizer": (lambda b: flip_byte(b / "tokenizer.json", 20), r"tokenizer\.json was changed"),
    "cut weights": (lambda b: cut(b / "weights/embed.fp32.bin"), r"embed\.fp32\.bin has 36864 bytes, the manifest"),
    "no manifest": (lambda b: (b / MANIFEST_NAME).unlink(), r" has no manifest\.json; expected a bundle, as `sdrpn ex"),
    "manifest cut off": (lambda b: cut(b / MANIFEST_NAME), r"manifest\.json cannot be read \(.*\); export the bundle"),
    "newer format": (
        in_manifest(lambda m: m.update(format_version=99)),
        r"has format version 99, this release reads 2; export it again: .*, or install the release that wrote it",
    ),
    "path out of the bundle": (in_manifest(moved_out), r"names .\.\./outside\.bin., which leaves the bundle; expected"),
    "link out of the bundle": (linked_out, r"tail\.fp32\.bin is a link that leaves "),
    "no variant": (in_manifest(lambda m: m.update(variants={})), r"manifest\.json lists no variant; export the bundle"),
    "a file": (replaced_by_a_file, r"is a file; expected a bundle folder, as `sdrpn export` writes it"),
}  # fmt: skip


class TestBundles:
    @pytest.mark.parametrize("precision", ["bf16", "nvfp4"])
    def test_variants_for_engines_only(
        self, sdrpn: Command, text_checkpoint: Path, picture: Path, tmp_path: Path, precision: Any
    ) -> None:
        """One line with what to do, in every verb that would load them; another variant is taken by itself."""
        calibration = Largest() if precision == "nvfp4" else None
        options = ExportOptions(precision, calibration=calibration.digest if calibration else None)
        bundle = tmp_path / "bundle"
        export_bundle(text_checkpoint, bundle, options, calibration=calibration)
        commands = (("ask", bundle, picture, QUESTION), ("plan", bundle), ("optimize", bundle))
        for command in commands:
            assert refusal(sdrpn(*command)) == (
                f"{bundle} as fused-{precision} is for engines only: ONNX Runtime has no kernels for {precision}. "
                f"Build engines where a GPU is: sdrpn build {bundle} --target NAME; or add a variant for ONNX "
                f"Runtime: sdrpn export CHECKPOINT --out {bundle} --precision int4"
            )
        export_bundle(text_checkpoint, bundle, ExportOptions("int4"))
        assert sdrpn("ask", bundle, picture, QUESTION, "--max-new-tokens", 2).code == 0
        message = refusal(sdrpn("ask", bundle, picture, QUESTION, "--variant", f"fused-{precision}"))
        assert message.endswith("or use the variant fused-int4-cpu")

    @pytest.mark.parametrize("damage", list(DAMAGE))
    def test_damage_is_named_by_every_verb(
        self, sdrpn: Command, text_bundle: Path, picture: Path, tmp_path: Path, damage: str
    ) -> None:
        apply, message = DAMAGE[damage]
        bundle = copied(text_bundle, tmp_path)
        apply(bundle)
        for command in (("ask", bundle, picture, QUESTION), ("inspect", bundle), ("inspect", bundle, "--json")):
            assert re.search(message, refusal(sdrpn(*command))), command

    @pytest.mark.parametrize("verb", ["ask", "inspect"])
    def test_no_bundle_at_all(self, sdrpn: Command, picture: Path, tmp_path: Path, verb: str) -> None:
        rest = (picture, QUESTION) if verb == "ask" else ()
        gone = refusal(sdrpn(verb, tmp_path / "gone", *rest))
        assert gone.endswith("gone does not exist; expected a bundle folder, as `sdrpn export` writes it")
        (tmp_path / "bare").mkdir()
        assert "bare has no manifest.json; expected a bundle" in refusal(sdrpn(verb, tmp_path / "bare", *rest))


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24

SEVERAL_COMMANDS = """
import contextlib, io, json, sys
from sdrpn.cli.main import main
done = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def bound_by_modes() -> None:
    """Root may read and write everything: give that up for good, so that modes of files count."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def run_bound_by_modes(*commands: tuple[object, ...]) -> list[Outcome]:
    texts = [[str(word) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_COMMANDS, json.dumps(texts)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=bound_by_modes,
    )
    return [Outcome(*outcome) for outcome in json.loads(done.stdout)]


@pytest.fixture
def modes_restored(tmp_path: Path) -> Iterator[None]:
    yield
    for folder, names, files in os.walk(tmp_path):
        for name in (*names, *files):
            (Path(folder) / name).chmod(0o755)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gives up rights in Linux's way")
@pytest.mark.usefixtures("modes_restored")
def test_what_may_not_be_read_or_written_is_one_line(
    text_bundle: Path, text_checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    closed, sealed = (copied(text_bundle, tmp_path).rename(tmp_path / name) for name in ("closed", "sealed"))
    checkpoint, whole = copied(text_checkpoint, tmp_path), text_checkpoint
    read_only, secret = tmp_path / "read only", tmp_path / "secret.png"
    read_only.mkdir()
    secret.write_bytes(picture.read_bytes())
    for path in (closed, sealed / "tail.fused-fp32.onnx", secret, checkpoint / "model.safetensors"):
        path.chmod(0o000)
    read_only.chmod(0o555)
    overlay = ("--overlay", read_only / "overlay.png")
    expected = [
        (("inspect", closed), r"closed/manifest\.json cannot be read: permission denied; check the folder's owner and"),
        (("ask", closed, picture, QUESTION), r"closed/manifest\.json cannot be read: permission denied; check the"),
        (("ask", sealed, picture, QUESTION), r"tail\.fused-fp32\.onnx cannot be read: permission denied; check the"),
        (("ask", text_bundle, secret, QUESTION), r"secret\.png' cannot be read \(Permission denied\); name a"),
        (
            ("ask", text_bundle, picture, QUESTION, *overlay),
            r"overlay\.png cannot be written \(Permission denied\); make",
        ),
        (("export", checkpoint, "--out", tmp_path / "new"), r"model\.safetensors cannot be read \(Permission denied\)"),
        (
            ("export", whole, "--out", read_only / "new"),
            r"new cannot be written \(Permission denied\); make that place writable",
        ),
    ]
    outcomes = run_bound_by_modes(*(command for command, _ in expected))
    for (command, message), outcome in zip(expected, outcomes, strict=True):
        assert re.search(message, refusal(outcome)), (command, outcome)
    assert not list(read_only.iterdir())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "3"), "onnxruntime has no device 3, which is the number of an NVIDIA GPU"),
        (("--no-cuda-graph",), "an option of engines, and onnxruntime runs graphs; leave it out (--no-cuda-graph)"),
        (
            ("--runtime-cache", "kept"),
            "an option of engines, and onnxruntime runs graphs; leave it out (--runtime-cache)",
        ),
        (
            ("--runtime-cache", "none"),
            "an option of engines, and onnxruntime runs graphs; leave it out (--runtime-cache none)",
        ),
    ],
)
def test_options_that_the_backend_does_not_look_at(
    sdrpn: Command, picture: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in refusal(sdrpn("ask", "demo", picture, "what is this?", "--backend", "onnxruntime", *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runtime-cache", "file"), "file is a file; expected a folder, or a new name for one (--runtime-cache)"),
        (("--runtime-cache", "file/below"), "file is a file, expected a folder; name another place (--runtime-cache)"),
        (("--runtime-cache", ""), "argument --runtime-cache: the path is empty (got '')"),
        (("--allow-links", "nowhere"), "cannot be read (No such file or directory); name an existing folder (--allow-"),
        (("--every", "2"), "--every is for a video, a camera or several pictures, and there is one; leave it out"),
        (("--max-fps", "1"), "--max-fps is for a video, a camera or several pictures"),
        (("--drop",), "--drop is for a video, a camera or several pictures"),
        (("--no-drop",), "--no-drop is for a video, a camera or several pictures"),
        (("--frames", "1"), "--frames is for a video, a camera or several pictures"),
        (("--give-up", "5"), "--give-up is for a video, a camera or several pictures"),
    ],
)
def test_options_are_checked_where_nothing_uses_them(
    sdrpn: Command,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    """With the library that is chosen by itself: with another one they may be of use."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert message in refusal(sdrpn("ask", "demo", picture, "what is this?", *options))
