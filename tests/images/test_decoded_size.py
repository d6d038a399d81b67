"""The memory of a decoded picture, of a file or a size."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.images.decoded_size import decoded_bytes, memory_of_picture


def test_by_hand() -> None:
    assert decoded_bytes(10, 20) == 1400
    assert decoded_bytes(10, 20, 5, "JPEG") == 605
    assert memory_of_picture("4000x3000") == 84_000_000


@pytest.mark.parametrize(("kind", "per_pixel"), [("png", 7), ("jpg", 3)])
def test_a_file(tmp_path: Path, kind: str, per_pixel: int) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (40, 30)).save(path)
    assert memory_of_picture(path) == path.stat().st_size + per_pixel * 40 * 30


@pytest.mark.parametrize("given", ["none", "4000", "4000X3000", "-1x2", "0x3", "3x0", "", "1x2x3"])
def test_what_is_neither(given: str) -> None:
    with pytest.raises(BadInput, match="expected a file, or a size in pixels such as 4000x3000"):
        memory_of_picture(given)


def test_a_file_that_is_not_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no")
    with pytest.raises(BadInput, match="picture cannot be read"):
        memory_of_picture(path)
