"""One picture of a question: the same pixels however they are prepared, and what "fast" does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from sdrpn.errors import BadImage, BadInput
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.images.image import ImageSource, base_pixels, crop_pixels, image_digest, open_image
from sdrpn.runtime.pictures import picture as picture_module
from sdrpn.runtime.pictures import pixels
from sdrpn.runtime.pictures.picture import Picture, PictureSource, open_picture
from tests.tolerances import PIXEL_VALUES_ABS

VISION = VisionSpec(image_size_px=56, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
BOXES = [(0, 0, 640, 480), (600, 400, 640, 480), (10, 20, 11, 480)]


@pytest.fixture(params=["native", "pillow"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pillow":
        for module in (pixels, picture_module):
            monkeypatch.setattr(module, "native_module", lambda name="_native": None)
    else:
        pytest.importorskip("sdrpn._native", exc_type=ImportError)
    return str(request.param)


def scene() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((640, 480))


def encoded(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def turned_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def another_profile() -> bytes:
    """A picture in another colour space than sRGB: pixels are left as they are, as Pillow leaves them."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def see_through() -> Image.Image:
    image = scene()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def looks(picture: Picture) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    base, crops = np.empty((1, 3, 56, 56), np.float32), np.empty((len(BOXES), 3, 56, 56), np.float32)
    picture.write_base(VISION, base)
    picture.write_crops(BOXES, VISION, crops)
    return base[0], crops


@pytest.mark.parametrize(
    "source",
    [
        scene(),
        np.asarray(scene()),
        np.asarray(scene())[:, ::-1],
        encoded(scene()),
        encoded(scene(), "PNG"),
        encoded(scene().convert("CMYK")),
        encoded(scene().convert("L")),
        encoded(scene().transpose(Image.Transpose.ROTATE_90), exif=turned_by_exif()),
        encoded(scene(), icc_profile=another_profile()),
        encoded(scene(), keep_rgb=True),
        encoded(scene().convert("CMYK"), icc_profile=another_profile()),
        encoded(scene(), "WEBP"),
        encoded(scene(), "PNG", icc_profile=another_profile()),
        encoded(see_through(), "PNG"),
        encoded(see_through(), "WEBP", lossless=True),
    ],
    ids=[
        "image",
        "array",
        "turned array",
        "JPEG",
        "PNG",
        "CMYK",
        "grey",
        "JPEG, turned by EXIF",
        "JPEG with a colour profile",
        "JPEG stored as RGB",
        "CMYK with a colour profile",
        "WebP",
        "PNG with a colour profile",
        "PNG with transparency",
        "WebP with transparency",
    ],
)
def test_a_picture_gives_the_pixels_of_the_specification(source: ImageSource, path: str) -> None:
    image, picture = open_image(source), open_picture(source)
    assert picture.size == image.size
    assert picture.digest() == image_digest(image)
    base, crops = looks(picture)
    np.testing.assert_allclose(base, base_pixels(image, VISION), rtol=0, atol=PIXEL_VALUES_ABS)
    for box, found in zip(BOXES, crops, strict=True):
        np.testing.assert_allclose(found, crop_pixels(image, box, VISION), rtol=0, atol=PIXEL_VALUES_ABS)


def test_fast_changes_the_first_look_alone(path: str) -> None:
    data = encoded(scene(), quality=95)
    exact, fast = open_picture(data), open_picture(data, jpeg="fast")
    assert fast.size == exact.size
    assert fast.digest() != exact.digest()
    (base, crops), (fast_base, fast_crops) = looks(exact), looks(fast)
    np.testing.assert_array_equal(fast_crops, crops)
    assert not np.array_equal(fast_base, base)
    assert np.corrcoef(fast_base.ravel(), base.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("source", [encoded(scene(), "PNG"), np.asarray(scene())], ids=["PNG", "array"])
def test_fast_leaves_other_pictures_alone(source: PictureSource, path: str) -> None:
    exact, fast = open_picture(source), open_picture(source, jpeg="fast")
    assert fast.digest() == exact.digest()
    np.testing.assert_array_equal(looks(fast)[0], looks(exact)[0])


def test_a_small_file_is_decoded_in_full_for_the_first_look(path: str) -> None:
    data = encoded(scene().resize((100, 60)))
    exact, fast = (np.empty((1, 3, 56, 56), np.float32) for _ in range(2))
    open_picture(data).write_base(VISION, exact)
    open_picture(data, jpeg="fast").write_base(VISION, fast)
    np.testing.assert_array_equal(fast, exact)


@pytest.mark.parametrize("jpeg", ["exact", "fast"])
@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 641, 5), (6, 0, 5, 5)])
def test_crops_outside_the_picture(box: tuple[int, int, int, int], jpeg: Any, path: str) -> None:
    picture = open_picture(encoded(scene()), jpeg=jpeg)
    with pytest.raises(BadInput, match="is empty or extends beyond the image; expected x1 < x2 <= 640"):
        picture.write_crops([box], VISION, np.empty((1, 3, 56, 56), np.float32))


def test_float16_results(path: str) -> None:
    half, full = np.empty((1, 3, 56, 56), np.float16), np.empty((1, 3, 56, 56), np.float32)
    picture = open_picture(scene())
    picture.write_base(VISION, half)
    picture.write_base(VISION, full)
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_errors_are_those_of_open_image(tmp_path: Path, path: str) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(encoded(scene())[:-900])
    with pytest.raises(BadImage, match=f"{broken} cannot be decoded: damaged or cut off"):
        open_picture(broken)
    with pytest.raises(BadImage, match="does not exist"):
        open_picture(tmp_path / "nothing.jpg")
    with pytest.raises(BadImage, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(BadImage, match=r"has the shape \(4, 5\)"):
        open_picture(np.zeros((4, 5), np.uint8))


def test_a_broken_file_is_refused_at_the_first_look(path: str) -> None:
    picture = open_picture(encoded(scene())[:-900], jpeg="fast")
    with pytest.raises(BadImage, match="cannot be decoded: damaged or cut off"):
        picture.write_base(VISION, np.empty((1, 3, 56, 56), np.float32))


def test_a_picture_is_opened_once() -> None:
    picture = open_picture(scene())
    assert open_picture(picture) is picture


def test_unknown_ways_to_decode() -> None:
    with pytest.raises(BadInput, match="jpeg is 'quick'; expected 'exact', 'fast', 'gpu'"):
        open_picture(scene(), jpeg="quick")  # type: ignore[arg-type]


def test_more_threads_than_cores_are_cut_down() -> None:
    assert 1 <= pixels.thread_count(None) == pixels.thread_count(100_000)
    assert pixels.thread_count(1) == 1
