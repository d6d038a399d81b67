"""`--fit crop`: kept in the bundle and in labels, honoured by every verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.bundle.bundle import open_bundle
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.families.registry import spec_from_json
from sdrpn.images.pixels import base_pixels
from sdrpn.method.spec import RpnSpec
from sdrpn.runtime.pictures.picture import open_picture
from tests.cli.command import Command, refusal
from tests.labels.data import write_questions
from tests.tiny_models import tiny_spec
from tests.train.data import write_labels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit") / "checkpoint"
    write_random_checkpoint(folder, tiny_spec(rpn=RpnSpec(layers=2)), layout="sdrpn", with_tokenizer=True)
    return folder


def vision_of(bundle: Path) -> Any:
    return open_bundle(bundle).spec.vision


def test_a_bundle_of_cut_pictures(sdrpn: Command, checkpoint: Path, tmp_path: Path, picture: Path) -> None:
    bundle = tmp_path / "bundle"
    done = sdrpn("export", checkpoint, "--out", bundle, "--fit", "crop")
    assert done.code == 0
    assert "pictures: the ends of the longer side are cut off (fit: crop)" in done.out
    vision = vision_of(bundle)
    assert vision.fit == "crop"

    seen = np.empty((1, 3, vision.image_size_px, vision.image_size_px), np.float32)
    for source in (picture, picture.read_bytes(), np.asarray(Image.open(picture))):
        open_picture(source).write_base(vision, seen)
        np.testing.assert_array_equal(seen[0], base_pixels(Image.open(picture), vision))

    assert sdrpn("verify", "--exact", bundle, "--checkpoint", checkpoint).code == 0
    overlay = tmp_path / "looked-at.png"
    assert sdrpn("ask", bundle, picture, "where?", "--max-new-tokens", 2, "--overlay", overlay).code == 0
    assert overlay.is_file()
    # Another variant of this bundle must be of the same pictures.
    refused = refusal(sdrpn("export", checkpoint, "--out", bundle, "--precision", "fp16"))
    assert "holds another export: its model description differs" in refused


def test_padding_is_said_as_well(sdrpn: Command, checkpoint: Path, tmp_path: Path) -> None:
    done = sdrpn("export", checkpoint, "--out", tmp_path / "bundle")
    assert "pictures: padded to squares (fit: pad)" in done.out
    assert vision_of(tmp_path / "bundle").fit == "pad"
    assert spec_from_json(json.loads(json.dumps(open_bundle(tmp_path / "bundle").spec.to_json())))


def test_labels_of_cut_pictures(sdrpn: Command, checkpoint: Path, tmp_path: Path) -> None:
    data, heads, labels = write_questions(tmp_path), tmp_path / "heads.json", tmp_path / "labels"
    heads.write_text(json.dumps({"format_version": 1, "grounding": [[2, 0], [2, 1]]}))
    gathering = ("--data", data, "--images", tmp_path, "--heads", heads, "--max-new-tokens", 3, "--fit", "crop")
    assert sdrpn("label", checkpoint, *gathering, "--out", labels).code == 0
    assert json.loads((labels / "labels.json").read_text())["fit"] == "crop"


def test_a_training_takes_over_how_pictures_were_labelled(sdrpn: Command, checkpoint: Path, tmp_path: Path) -> None:
    labels, rpn = write_labels(tmp_path), tmp_path / "rpn"
    about = json.loads((labels / "labels.json").read_text())
    (labels / "labels.json").write_text(json.dumps(about | {"fit": "crop"}))
    small = ("--preset", "tiny", "--steps", 2, "--tap-layer", 2, "--rpn-layers", 2, "--validation-share", 0)
    assert sdrpn("train", checkpoint, "--labels", labels, "--out", rpn, *small).code == 0
    assert json.loads((rpn / "rpn.json").read_text())["fit"] == "crop"
    exporting = ("export", checkpoint, "--rpn", rpn, "--out", tmp_path / "bundle")
    assert "of the fit crop and is used with pad; name the same (--fit)" in refusal(sdrpn(*exporting))
    assert sdrpn(*exporting, "--fit", "crop").code == 0
