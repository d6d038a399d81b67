"""The page, driven in headless Chromium: pictures, answers, the slider, the camera, the keyboard, phones, and axe-core.

Needs playwright and a Chromium (`apt install chromium`); without either it is skipped. axe-core is downloaded once.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.method.policy import RoiChange
from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.tags import shipped_scene
from tests.families.qwen.bundles import qwen_bundle
from tests.runtime.server.serving import Server, serving

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

SCENE = shipped_scene()
QUESTION = SCENE.question
OTHER = "what is the code on the blue tag ?"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
SCREENSHOTS = os.environ.get("SDRPN_SCREENSHOTS")  # a folder, to look at what was tested
Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Session.open("demo", threads=1) as session, serving(session, ServerOptions(model="demo")) as running:
        yield running


@pytest.fixture(scope="module")
def camera_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene as what a camera sees, in the one format that Chromium reads for that: raw YUV 4:2:0."""
    with Image.open(SCENE.picture) as scene:
        wide = Image.new("RGB", (1120, 840), (90, 90, 90))
        wide.paste(scene.convert("RGB"), (140, 0))
    y, u, v = wide.convert("YCbCr").split()
    half = (wide.width // 2, wide.height // 2)
    planes = y.tobytes() + u.resize(half).tobytes() + v.resize(half).tobytes()
    path = tmp_path_factory.mktemp("camera") / "scene.y4m"
    header = f"YUV4MPEG2 W{wide.width} H{wide.height} F10:1 Ip A1:1 C420jpeg\n"
    path.write_bytes(header.encode() + (b"FRAME\n" + planes) * 2)
    return path


@pytest.fixture(scope="module")
def browser(camera_file: Path) -> Iterator[Any]:
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    playwright.expect.set_options(timeout=30_000)  # a busy machine takes longer than the usual 5 s
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", *camera, f"--use-file-for-fake-video-capture={camera_file}"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Opened]:
    """Opens the page; at the end nothing may have been refused by its policy, or failed in its scripts."""
    contexts, problems = [], []

    def open_page(**options: Any) -> Any:
        context = browser.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(server.url)
        expect(page.locator("#model")).to_have_text("demo")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in problems if "Failed to load resource" not in text] == []


def expect(locator: Any) -> Any:
    return playwright.expect(locator)


def ask(page: Any, question: str = QUESTION, picture: Path = SCENE.picture) -> None:
    """Choose a picture, ask, and wait for the whole answer."""
    page.locator("#file").set_input_files(picture)
    page.locator("#question").fill(question)
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("Answered in", timeout=30_000)


def regions(page: Any) -> list[tuple[int, ...]]:
    """x1, y1, x2, y2 of every region that is listed with a number."""
    texts = [text for text in page.locator("#regions-list li").all_inner_texts() if not text.startswith("–")]
    found = [re.search(r"(\d+) × (\d+) px at (\d+), (\d+)", text) for text in texts]
    numbers = [tuple(map(int, each.groups())) for each in found if each]
    return [(x, y, x + width, y + height) for width, height, x, y in numbers]


def screenshot(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def test_a_question(opened: Opened, server: Server) -> None:
    page = opened()
    screenshot(page, "empty")
    ask(page)
    answer = server.session.answer(SCENE.picture, QUESTION)
    expect(page.locator("#answer")).to_have_text(answer.text)
    assert answer.text == SCENE.expected
    assert regions(page) == list(answer.boxes_xyxy_px)
    (x1, y1, x2, y2) = answer.boxes_xyxy_px[0]
    expect(page.locator("#crops figcaption")).to_have_text(f"{x2 - x1} × {y2 - y1} px at {x1}, {y1}")
    assert f"from {x1}, {y1} to {x2}, {y2}" in page.locator("#canvas").get_attribute("aria-label")
    rows = page.locator("#stages tbody tr").all_inner_texts()
    assert {"Vision", "Region proposal", "Vision of the crop", "Words", "All"} <= {row.split("\t")[0] for row in rows}
    expect(page.locator("#gate")).to_contain_text("it looks again")
    screenshot(page, "answer")


def pixels(page: Any, selector: str) -> Any:
    data = page.locator(selector).evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"), np.int16)


def test_the_crop_shows_the_pictures_own_pixels(opened: Opened, server: Server) -> None:
    page = opened()
    ask(page)
    crop = pixels(page, "#crops canvas")
    box = server.session.answer(SCENE.picture, QUESTION).boxes_xyxy_px[0]
    with Image.open(SCENE.picture) as scene:
        expected = scene.convert("RGB").crop(box)
    assert crop.shape[1] / crop.shape[0] == pytest.approx(expected.width / expected.height, rel=0.02)
    scaled = np.asarray(expected.resize((crop.shape[1], crop.shape[0]), Image.Resampling.BICUBIC), np.int16)
    assert np.abs(crop - scaled).mean() < 4  # of 255: two ways to enlarge


def test_heat_and_boxes_can_be_hidden(opened: Opened) -> None:
    page = opened()
    ask(page)
    whole = pixels(page, "#canvas")
    page.locator("#show-heat").uncheck()
    without_heat = pixels(page, "#canvas")
    page.locator("#show-boxes").uncheck()
    plain = pixels(page, "#canvas")
    assert np.any(whole != without_heat)
    assert np.any(without_heat != plain)
    with Image.open(SCENE.picture) as scene:
        size = plain.shape[1], plain.shape[0]
        expected = np.asarray(scene.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.int16)
    assert np.abs(plain - expected).mean() < 4


def test_the_slider_asks_nothing_and_decides_as_python_does(opened: Opened, server: Server) -> None:
    page = opened()
    ask(page)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for threshold in (0.02, 0.1, 0.2, 0.45, 0.6, 0.9):
        page.locator("#threshold").fill(str(threshold))
        expect(page.locator("#threshold-value")).to_have_text(f"{threshold:.2f}")
        look = server.session.look(SCENE.picture, QUESTION, roi=threshold)
        assert regions(page) == list(look.boxes_xyxy_px), threshold
    expect(page.locator("#regions-note")).to_have_text("No region: no cell of the map is above the threshold.")
    assert requests == []
    page.locator("#threshold-own").click()
    expect(page.locator("#threshold-value")).to_have_text("0.30")
    expect(page.locator("#threshold-own")).to_be_hidden()


def test_an_answer_with_another_threshold(opened: Opened, server: Server) -> None:
    page = opened()
    ask(page)
    page.locator("#threshold").fill("0.1")
    page.locator("#again").click()
    other = server.session.answer(SCENE.picture, QUESTION, roi=0.1)
    (x1, y1, x2, y2) = other.boxes_xyxy_px[0]
    expect(page.locator("#crops figcaption")).to_have_text(f"{x2 - x1} × {y2 - y1} px at {x1}, {y1}")
    expect(page.locator("#answer")).to_have_text(other.text)
    expect(page.locator("#again")).to_be_hidden()
    expect(page.locator("#threshold-own")).to_be_visible()


def test_the_history_of_the_session(opened: Opened, server: Server) -> None:
    page = opened()
    ask(page)
    ask(page, OTHER)
    other = server.session.answer(SCENE.picture, OTHER)
    entries = page.locator("#history button")
    expect(entries).to_have_count(2)
    expect(entries.first).to_contain_text(other.text)
    entries.last.click()
    expect(page.locator("#answer")).to_have_text(SCENE.expected)
    expect(page.locator("#question")).to_have_value(QUESTION)
    assert regions(page) == list(server.session.look(SCENE.picture, QUESTION).boxes_xyxy_px)
    page.locator("#history-clear").click()
    expect(page.locator("#history-part")).to_be_hidden()


EVENT = """async ([kind, data]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "scene.png", { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.getElementById("stage").dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped(opened: Opened, kind: str) -> None:
    page = opened(bypass_csp=True)  # for the script of this test
    page.evaluate(EVENT, [kind, base64.b64encode(SCENE.picture.read_bytes()).decode()])
    expect(page.locator("#status")).to_have_text("A picture of 840 × 840 pixels.")
    expect(page.locator("#question")).to_be_focused()


def test_a_photograph_that_lies_on_its_side(opened: Opened, server: Server, tmp_path: Path) -> None:
    """Boxes are in pixels of the upright picture, which the browser shows."""
    path = tmp_path / "turned.jpg"
    with Image.open(SCENE.picture) as scene:
        turned = scene.convert("RGB").crop((0, 0, 840, 700)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(path, quality=95, exif=exif)
    page = opened()
    ask(page, picture=path)
    assert page.locator("#canvas").get_attribute("aria-label").startswith("Picture, 840 by 700 pixels")
    assert regions(page) == list(server.session.look(path, QUESTION).boxes_xyxy_px)


def test_a_picture_that_the_browser_cannot_show(opened: Opened, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "scene.tiff"
    with Image.open(SCENE.picture) as scene:
        scene.convert("RGB").save(path)
    page = opened()
    page.locator("#file").set_input_files(path)
    expect(page.locator("#problem")).to_have_text("This browser cannot show such a file; the model may still read it.")
    page.locator("#question").fill(QUESTION)
    page.locator("#ask").click()
    expect(page.locator("#answer")).to_have_text(SCENE.expected, timeout=30_000)


def test_text_is_never_markup(opened: Opened) -> None:
    page = opened()
    label = '<img src=x onerror="document.title=1"><b>the code</b>'
    ask(page, label)
    expect(page.locator("#asked")).to_have_text(label)
    expect(page.locator("#history button")).to_contain_text(label)
    assert page.locator("#asked img, #history img").count() == 0
    assert page.title() == "sdrpn: ask about a picture"


def test_the_server_refuses(opened: Opened) -> None:
    page = opened()
    message = "the picture has 200 megapixels; the largest that fits has 50"
    refusal = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "image_too_large"}}
    page.route("**/v1/look", lambda route: route.fulfill(status=413, json=refusal, headers={"Retry-After": "7"}))
    page.locator("#example").click()
    page.locator("#ask").click()
    expect(page.locator("#problem")).to_have_text(f"{message} Try again in 7 s.")
    expect(page.locator("#ask")).to_be_visible()
    page.unroute("**/v1/look")
    page.locator("#ask").click()
    expect(page.locator("#answer")).to_have_text(SCENE.expected)
    expect(page.locator("#problem")).to_be_hidden()


def test_the_server_goes_away(opened: Opened) -> None:
    page = opened()
    page.locator("#example").click()
    page.route("**/v1/**", lambda route: route.abort())
    page.locator("#ask").click()
    expect(page.locator("#problem")).to_have_text("the server does not answer; is it running?")


def test_an_api_key_is_asked_for_and_sent(opened: Opened) -> None:
    page = opened()
    refusal = {"error": {"message": "the API key is missing or wrong", "type": "invalid_request_error"}}
    keys: list[str | None] = []

    def answer(route: Any) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer secret-key":
            route.continue_()
        else:
            route.fulfill(status=401, json=refusal)

    page.route("**/v1/**", answer)
    page.locator("#example").click()
    page.locator("#ask").click()
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("secret-key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-form")).to_be_hidden()
    page.locator("#ask").click()
    expect(page.locator("#answer")).to_have_text(SCENE.expected)
    assert keys[0] is None
    assert set(keys[1:]) == {"Bearer secret-key"}


def test_a_question_without_a_picture(opened: Opened) -> None:
    page = opened()
    page.locator("#question").fill(QUESTION)
    page.locator("#ask").click()
    expect(page.locator("#status")).to_have_text("Choose a picture first.")


def test_an_answer_is_stopped(opened: Opened) -> None:
    page = opened()
    page.locator("#example").click()
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    page.locator("#ask").click()
    page.locator("#stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")


def test_the_camera(opened: Opened, server: Server) -> None:
    page = opened(**PHONE)
    page.locator("#mode-camera").check(force=True)
    page.locator("#question").fill(QUESTION)
    page.locator("#camera-start").click()
    expect(page.locator("#rate")).to_contain_text("looks per second", timeout=30_000)
    expect(page.locator("#regions-list li")).to_have_count(1)
    ((x1, y1, x2, y2),) = regions(page)
    tag = [edge + 140 * (axis % 2 == 0) for axis, edge in enumerate(SCENE.box_xyxy_px)]
    assert x1 < (tag[0] + tag[2]) / 2 < x2
    assert y1 < (tag[1] + tag[3]) / 2 < y2
    screenshot(page, "camera")
    page.locator("#threshold").fill("0.9")
    expect(page.locator("#regions-note")).to_contain_text("No region")
    page.locator("#camera-keep").click()
    expect(page.locator("#answer")).to_have_text(SCENE.expected, timeout=30_000)
    expect(page.locator("#mode-picture")).to_be_checked()
    assert page.locator("#video").evaluate("video => video.srcObject") is None  # the camera is off


def test_the_camera_is_refused(browser: Any, server: Server) -> None:
    context = browser.new_context(**DESKTOP)
    page = context.new_page()
    page.add_init_script(
        "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('Permission denied'); }"
    )
    page.goto(server.url)
    page.locator("#mode-camera").check(force=True)
    page.locator("#question").fill(QUESTION)
    page.locator("#camera-start").click()
    expect(page.locator("#problem")).to_have_text("The camera cannot be used: Permission denied")
    expect(page.locator("#camera-start")).to_be_visible()
    context.close()


def test_by_keyboard_alone(opened: Opened) -> None:
    page = opened()
    focused: list[str] = []
    for _ in range(5):
        page.keyboard.press("Tab")
        focused.append(page.locator(":focus").evaluate("element => element.id || element.className"))
    assert focused == ["skip", "mode-picture", "file", "example", "question"]
    page.locator("#example").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_have_text(SCENE.expected, timeout=30_000)
    page.locator("#threshold").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#threshold-value")).to_have_text("0.10")
    page.locator("#history button").focus()
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("Shown again from this session.")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened: Opened, width: int) -> None:
    page = opened(**{**PHONE, "viewport": {"width": width, "height": 800}})
    ask(page, "what is the code on the very long named yellow tag " + "x" * 80)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    controls = page.locator("#details").bounding_box()
    answer = page.locator("#answer-part").bounding_box()
    if width < 960:  # below the answer on a phone, else beside it
        assert controls["y"] > answer["y"] + answer["height"] - 1
    else:
        assert controls["x"] + controls["width"] < answer["x"]


AXE_RUN = "async () => (await axe.run(document, { resultTypes: ['violations'] })).violations"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core, from the npm registry, kept in the cache of the tests."""
    cached = Path.home() / ".cache" / "sdrpn-tests" / "axe.min.js"
    if not cached.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core needs npm to be downloaded")
        folder = tmp_path_factory.mktemp("axe")
        done = subprocess.run(
            [npm, "pack", "axe-core@4"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            pytest.skip(f"axe-core could not be downloaded: {done.stderr.strip()[-200:]}")
        (archive,) = folder.glob("axe-core-*.tgz")
        with tarfile.open(archive) as files:
            member = files.extractfile("package/axe.min.js")
            assert member is not None
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_bytes(member.read())
    return cached.read_text("utf-8")


@contextmanager
def described(name: str, axe: str, page: Any) -> Iterator[None]:
    yield
    page.evaluate(axe)
    violations = page.evaluate(AXE_RUN)
    said = [(each["impact"], each["id"], [node["html"] for node in each["nodes"]]) for each in violations]
    screenshot(page, name)
    assert said == [], json.dumps(said, indent=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_axe_finds_nothing(opened: Opened, axe: str, scheme: str, device: str) -> None:
    options = PHONE if device == "phone" else DESKTOP
    page = opened(**options, color_scheme=scheme, bypass_csp=True)
    background = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) is (scheme == "light")
    with described(f"{device}-{scheme}-empty", axe, page):
        pass
    with described(f"{device}-{scheme}-answer", axe, page):
        ask(page)
        page.locator("#threshold").fill("0.1")
    with described(f"{device}-{scheme}-problem", axe, page):
        page.route("**/v1/**", lambda route: route.fulfill(status=401, json={"error": {"message": "a key is needed"}}))
        page.locator("#ask").click()
        expect(page.locator("#key")).to_be_focused()
        page.unroute("**/v1/**")
    with described(f"{device}-{scheme}-camera", axe, page):
        page.locator("#mode-camera").check(force=True)
        page.locator("#camera-start").click()
        expect(page.locator("#rate")).to_contain_text("looks per second", timeout=30_000)


def test_regions_that_are_left_out_are_shown(opened: Opened, server: Server) -> None:
    """As the server says them under the model's own threshold, and as the page decides under another."""
    page = opened()

    def smaller(route: Any) -> None:
        body = json.loads(route.request.post_data)
        body["roi"]["max_share"] = 0.001
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/look", smaller)
    ask(page)
    expect(page.locator("#regions-list")).to_contain_text("more than 0 cells")
    page.locator("#threshold").fill("0.1")
    look = server.session.look(SCENE.picture, QUESTION, roi=RoiChange(threshold=0.1, max_share=0.001))
    texts = page.locator("#regions-list li").all_inner_texts()
    assert len(texts) == len(look.dropped)
    for text, dropped in zip(texts, look.dropped, strict=True):
        assert dropped.reason in text


def test_a_model_with_a_gate(opened: Opened) -> None:
    page = opened()

    def with_gate(route: Any) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "a tag"}, "finish_reason": "stop"}
        extras: dict[str, Any] = {
            "boxes": [],
            "note": None,
            "gate": {"score": 0.12, "looks_again": False},
            "stages": {"total_s": 0.1},
        }
        route.fulfill(json={"choices": [choice], "sdrpn": extras})

    page.route("**/v1/chat/completions", with_gate)
    ask(page)
    expect(page.locator("#gate")).to_contain_text("Gate: 0.12, the first look is enough")
    expect(page.locator("#crops-part")).to_be_hidden()


@pytest.mark.parametrize("kind", ["sd-rpn", "q-zoom-3"])
def test_the_slider_of_other_families(browser: Any, kind: str, tmp_path: Path) -> None:
    """One crop around all cells but sinks: decided in the page, which asks the server nothing."""
    bundle = qwen_bundle(kind, tmp_path)
    with Session.open(bundle, threads=1) as session, serving(session, ServerOptions(model="demo")) as running:
        context = browser.new_context(**DESKTOP)
        page = context.new_page()
        page.goto(running.url)
        ask(page, "where?")
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        scores = np.sort(session.look(SCENE.picture, "where?").roi_map.ravel())
        shown = set()
        for share in (0.02, 0.3, 0.6, 0.9, 0.99, 1):
            threshold = round(float(scores[int(share * (len(scores) - 1))]), 2)
            page.locator("#threshold").fill(str(threshold))
            expect(page.locator("#threshold-value")).to_have_text(f"{threshold:.2f}")
            boxes = list(session.look(SCENE.picture, "where?", roi=RoiChange(threshold=threshold)).boxes_xyxy_px)
            assert regions(page) == boxes, threshold
            shown.add(tuple(boxes))
        assert len(shown) > 1
        assert requests == []
        context.close()
