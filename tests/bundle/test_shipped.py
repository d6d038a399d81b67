"""The shipped bundle: one name, content equal to its checkpoint's, and a limit on its size."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from sdrpn.bundle import shipped
from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.shipped import (
    CHECKPOINT,
    DEMO_BUNDLE,
    RPN,
    bundle_name,
    bundle_path,
    bundle_title,
    export_advice,
    is_shipped,
    require_not_shipped,
    shipped_source,
)
from sdrpn.errors import BadInput
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Session
from sdrpn.tags import shipped_scene, tag_sample
from tests.scripts import script_module
from tests.tolerances import FONT_RENDERING_MEAN

ROOT = Path(__file__).parents[2]
LARGEST_BYTES = 13_500_000


@pytest.fixture(scope="module")
def ship() -> ModuleType:
    return script_module("examples/demo/ship.py")


class TestName:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("demo", DEMO_BUNDLE),
            ("./demo", Path("demo")),
            (Path("demo"), Path("demo")),
            ("demo/", Path("demo")),
            ("other", Path("other")),
        ],
    )
    def test_only_the_word_is_a_name(self, name: str | Path, expected: Path) -> None:
        assert bundle_path(name) == expected

    def test_a_folder_of_that_name_is_another_bundle(
        self, text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "demo").symlink_to(text_bundle)
        monkeypatch.chdir(tmp_path)
        assert open_bundle("demo").spec != open_bundle("./demo").spec == open_bundle(text_bundle).spec
        assert open_bundle(Path("demo")).spec == open_bundle(text_bundle).spec
        assert not is_shipped(Path("demo"))

    def test_the_former_name_means_it_for_one_version_and_says_so(self) -> None:
        with pytest.warns(DeprecationWarning, match="default is demo now; the old name goes with the next version"):
            assert bundle_path("default") == DEMO_BUNDLE
        with pytest.warns(DeprecationWarning, match="default is demo now"):
            assert open_bundle("default").spec == open_bundle("demo").spec
        assert bundle_path(Path("default")) == Path("default")

    def test_it_is_shown_by_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(DEMO_BUNDLE)
        assert [bundle_name(path) for path in (DEMO_BUNDLE, tmp_path / "link", Path("b"))] == ["demo"] * 2 + ["b"]
        assert [bundle_title(path) for path in (DEMO_BUNDLE, tmp_path / "b")] == ["demo", "b"]

    def test_nothing_is_written_there(self) -> None:
        require_not_shipped(Path("bundle"), "")
        with pytest.raises(BadInput, match=r"demo is part of the installed package \(.+\) and .+ there; copy it"):
            require_not_shipped(DEMO_BUNDLE, "copy it")
        assert export_advice(DEMO_BUNDLE, "--precision fp16") == "sdrpn export CHECKPOINT --out BUNDLE --precision fp16"
        assert export_advice(Path("b"), "--dialect fused") == "sdrpn export CHECKPOINT --out b --dialect fused"


class TestBundle:
    def test_a_session_opens_it_by_its_name(self) -> None:
        with Session.open("demo", threads=1) as session:
            assert session.bundle.path == DEMO_BUNDLE
            assert session.spec.rpn is not None
            answer = session.answer(shipped_scene().picture, shipped_scene().question, max_new_tokens=8)
        assert len(answer.text) >= 3
        assert answer.roi_map is not None

    def test_the_former_name_of_jpeg_works_and_says_so(self) -> None:
        with (
            pytest.warns(DeprecationWarning, match="decode is jpeg now; the old name goes with the next version"),
            Session.open("demo", threads=1, decode="fast") as session,
        ):
            assert session._questions._jpeg_mode == "fast"

    def test_every_file_is_listed_and_as_listed(self) -> None:
        bundle = open_bundle("demo")
        bundle.verify(bundle.manifest.files)
        there = {path.relative_to(DEMO_BUNDLE).as_posix() for path in DEMO_BUNDLE.rglob("*") if path.is_file()}
        assert there == {*bundle.manifest.files, "manifest.json"}

    def test_everything_together_is_small(self) -> None:
        folders = (DEMO_BUNDLE, CHECKPOINT, RPN.parent)
        sizes = {path: path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()}
        assert sum(sizes.values()) <= LARGEST_BYTES

    def test_it_is_what_its_checkpoint_gives(self, ship: ModuleType, tmp_path: Path) -> None:
        """Weights to the last byte; graphs too, where the libraries that write them are those that wrote it."""
        ship.ship_bundle(tmp_path / "again")
        kept, again = open_bundle("demo").manifest, open_bundle(tmp_path / "again").manifest
        assert (kept.spec, kept.source, kept.max_context) == (again.spec, again.source, again.max_context)
        assert kept.policy == again.policy
        assert kept.policy is not None
        gate = kept.policy.roi.gate_threshold
        assert kept.policy == ModelPolicy(RoiPolicy(0.3, gate_threshold=gate), "labels")
        assert gate is not None
        assert 0 < gate < 1
        assert set(kept.files) == set(again.files)
        same_tools = kept.tools == again.tools
        differing = [name for name, file in kept.files.items() if file != again.files[name]]
        assert [name for name in differing if same_tools or not name.endswith(".onnx")] == [], (
            "run examples/demo/ship.py: checkpoint, RPN and shipped bundle do not belong together"
        )

    def test_its_source_is_in_the_repository_only(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert shipped_source() == (CHECKPOINT, RPN)
        monkeypatch.setattr(shipped, "_REPOSITORY", tmp_path)
        monkeypatch.setattr(shipped, "CHECKPOINT", tmp_path / "examples" / "checkpoint")
        monkeypatch.setattr(shipped, "RPN", tmp_path / "examples" / "rpn.safetensors")
        with pytest.raises(BadInput, match="get the repository and name both"):
            shipped_source()


class TestScene:
    def test_it_is_the_sample_that_it_names(self, ship: ModuleType) -> None:
        scene = shipped_scene()
        assert (scene.split, scene.seed, scene.index) == ship.SCENE
        sample = tag_sample(scene.split, scene.seed, scene.index)
        assert (scene.question, scene.expected) == (sample.question, sample.answer)
        assert scene.box_xyxy_px == sample.box_xyxy_px
        with Image.open(scene.picture) as shown:
            difference = np.abs(np.asarray(shown, np.float32) - np.asarray(sample.image, np.float32))
        assert difference.mean() <= FONT_RENDERING_MEAN

    def test_it_is_written_as_it_is_read(self, ship: ModuleType, tmp_path: Path) -> None:
        ship.ship_scene(tmp_path)
        kept = shipped_scene().picture.with_name("scene.json")
        assert (tmp_path / "scene.json").read_bytes() == kept.read_bytes()
