"""`sdrpn demo`: it answers, says how, draws it, and needs nothing but the base install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from sdrpn.tags import shipped_scene
from tests.cli.command import Command, refusal
from tests.test_imports import AUTHORING

# Importing one of these fails as if it were not installed.
WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from sdrpn.cli.main import main
sys.exit(main(sys.argv[2:]))
"""
NOT_IN_THE_BASE_INSTALL = (*AUTHORING, "matplotlib", "sentencepiece", "pyarrow", "accelerate")


def without_extras(*command: object) -> subprocess.CompletedProcess[str]:
    """Run `sdrpn ...` as the base install would."""
    arguments = [sys.executable, "-c", WITHOUT, ",".join(NOT_IN_THE_BASE_INSTALL), *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


def test_json(sdrpn: Command, tmp_path: Path) -> None:
    overlay = tmp_path / "looked.png"
    found = sdrpn("demo", "--json", "--threads", 1, "--overlay", overlay).json()
    scene = shipped_scene()
    assert list(found) == ["format_version", "question", "expected", "plain", "sdrpn", "overlay", "picture"]
    assert (found["question"], found["expected"]) == (scene.question, scene.expected)
    assert list(found["plain"]) == ["text", "seconds"]
    assert list(found["sdrpn"]) == ["text", "seconds", "boxes_xyxy_px"]
    assert all(found[method]["text"] and found[method]["seconds"] > 0 for method in ("plain", "sdrpn"))
    for x1, y1, x2, y2 in found["sdrpn"]["boxes_xyxy_px"]:
        assert 0 <= x1 < x2 <= 840
        assert 0 <= y1 < y2 <= 840
    assert found["overlay"] == str(overlay)
    assert found["picture"] == str(tmp_path / "sdrpn-scene.png")
    assert Path(found["picture"]).read_bytes() == scene.picture.read_bytes()
    with Image.open(overlay) as picture:
        picture.load()
        assert picture.width > 3 * 400


def test_the_second_look_reads_what_the_first_cannot(sdrpn: Command, tmp_path: Path) -> None:
    """On the shipped scene, and on scenes that neither model nor RPN ever saw."""
    found = sdrpn("demo", "--json", "--threads", 1, "--overlay", tmp_path / "a.png").json()
    assert found["sdrpn"]["text"] == found["expected"]
    assert found["plain"]["text"] != found["expected"]
    asked = ("--task", "tags", "--samples", 20, "--threads", 1)
    methods = sdrpn("eval", "demo", *asked, "--methods", "plain,sdrpn,oracle-crop", "--json").json()["methods"]
    # 1 %, 86 % and 98 % of 2,000 scenes: a sample of twenty is this far off by chance once in thousands of runs.
    assert methods["plain"]["accuracy"] <= 0.2
    assert methods["sdrpn"]["accuracy"] >= 0.6
    assert methods["oracle-crop"]["accuracy"] >= 0.8


def test_both_answers_are_those_of_ask(sdrpn: Command, tmp_path: Path) -> None:
    scene = shipped_scene()
    found = sdrpn("demo", "--json", "--threads", 1, "--overlay", tmp_path / "a.png").json()
    for method, option in (("plain", ("--no-roi",)), ("sdrpn", ())):
        asked = ("ask", "demo", scene.picture, scene.question, "--max-new-tokens", 8, "--threads", 1, "--json")
        assert sdrpn(*asked, *option).json()["text"] == found[method]["text"]


def test_it_needs_the_base_install_only(tmp_path: Path) -> None:
    done = without_extras("demo", "--overlay", tmp_path / "demo.png")
    assert (done.returncode, done.stderr) == (0, "")
    first, head, truth, *answers, where, picture = done.stdout.splitlines()
    assert first == shipped_scene().question
    assert "seconds" in head
    assert truth.split() == ["true", "answer", shipped_scene().expected]
    assert [line[:9] for line in answers] == ["one look ", "two looks"]
    assert where == f"where it looked: {tmp_path / 'demo.png'}"
    assert (tmp_path / "demo.png").is_file()
    assert picture == f"the scene, to try other verbs with: {tmp_path / 'sdrpn-scene.png'}"


def test_rendered_scenes_say_what_they_lack() -> None:
    done = without_extras("eval", "demo", "--task", "tags", "--samples", 1, "--json")
    assert done.returncode == 2
    assert done.stderr == (
        "sdrpn: error: rendering tags needs the DejaVu fonts of matplotlib; install it: pip install matplotlib\n"
    )


def test_rendered_scenes_need_nothing_else(tmp_path: Path) -> None:
    """Everything of the [train] extra but matplotlib, whose fonts are found without importing it, is refused."""
    refused = [name for name in NOT_IN_THE_BASE_INSTALL if name != "matplotlib"]
    command = ("eval", "demo", "--task", "tags", "--samples", "1", "--threads", "1", "--json")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, ",".join(refused), *command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["methods"]) == {"plain", "sdrpn", "oracle-crop"}


def test_where_it_cannot_draw(sdrpn: Command, tmp_path: Path) -> None:
    assert "is a folder, not a regular file" in refusal(sdrpn("demo", "--overlay", tmp_path))
    assert "is what the scene is called" in refusal(sdrpn("demo", "--overlay", tmp_path / "sdrpn-scene.png"))
    (tmp_path / "sdrpn-scene.png").mkdir()
    assert "is a folder, not a regular file" in refusal(sdrpn("demo", "--overlay", tmp_path / "a.png"))
    assert not (tmp_path / "a.png").exists()
