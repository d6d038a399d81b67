"""Several images, none, and histories: answered as transformers' own classes do, and with one look."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.qwen.vision_spec import qwen_vision_of
from sdrpn.images.patches import picture_patches
from sdrpn.runtime import RoiPolicy, Sampling, Session
from sdrpn.text.turns import Turn
from tests.families.qwen.bundles import qwen_bundle
from tests.families.qwen.saved_by_transformers import IMAGE, saved_model, token_types
from tests.tolerances import REUSE_LOGITS_ABS, TRANSFORMERS_LOGITS_ABS

STEPS = 4
# Ids around the images: each is between the ids that start and end a vision part.
PROMPTS = [
    ((300, 7, 302), (303, 302), (303, 11, 12, 13)),
    ((300, 302), (303, 21, 302), (303, 22, 302), (303, 11)),
    ((300, 7, 11, 12, 13),),
    ((300, 302), (303, 11, 12)),
]


def noise(width: int, height: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


PICTURES = [noise(333, 250, 1), noise(120, 300, 2), noise(84, 84, 3)]


@pytest.fixture(scope="module", params=["qwen2.5-vl", "qwen3-vl"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Session]]:
    """transformers' model, and a session of the bundle made of what it saves."""
    folder = tmp_path_factory.mktemp("conversations")
    theirs = saved_model(request.param, folder / "model")
    export_bundle(folder / "model", folder / "bundle", ExportOptions("fp32"))
    with Session.open(folder / "bundle", threads=1) as session:
        yield theirs, session


def of_transformers(model: Any, session: Session, pieces: Sequence[tuple[int, ...]]) -> tuple[list[int], Any]:
    vision = qwen_vision_of(session.spec)
    side = vision.patch_size_px
    first, *rest = pieces
    ids, patches, grids = list(first), [], []
    for picture, piece in zip(PICTURES, rest, strict=False):
        rows, columns = vision.grid(picture.size).hw
        grids.append([1, rows * vision.merge, columns * vision.merge])
        still = picture_patches(picture, vision).reshape(-1, 3, 1, side * side).repeat(vision.frames, axis=2)
        patches.append(still.reshape(len(still), -1))
        ids += [*[IMAGE] * (rows * columns), *piece]
    tokens = torch.tensor([ids])
    pictures = {}
    if patches:
        pictures = {
            "pixel_values": torch.from_numpy(np.concatenate(patches)),
            "image_grid_thw": torch.tensor(grids),
            **token_types(tokens),
        }
    with torch.inference_mode():
        generated = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **pictures,
        )
    return generated.sequences[0, len(ids) :].tolist(), torch.cat(generated.logits).numpy()


@pytest.mark.parametrize("pieces", PROMPTS, ids=["two images", "three", "none", "one"])
def test_any_number_of_images_as_in_transformers(
    both: tuple[Any, Session], pieces: tuple[tuple[int, ...], ...]
) -> None:
    theirs, session = both
    images = PICTURES[: len(pieces) - 1]
    ids, logits = of_transformers(theirs, session, pieces)
    for _ in range(2):  # once more on the kept prefix
        found = session.answer_pieces(images, pieces, roi=None, max_new_tokens=STEPS, trace=True)
        assert found.trace is not None
        steps = found.trace.step_logits
        assert list(found.token_ids) == ids[: len(found.token_ids)]
        assert float(np.abs(steps - logits[: len(steps)]).max()) <= TRANSFORMERS_LOGITS_ABS
        rows = sum(int(np.prod(session.spec.vision.grid(image.size).hw)) for image in images)
        assert found.tokens.image == rows
        assert found.tokens.prompt == rows + sum(map(len, pieces))


def test_questions_of_all_kinds_take_turns(both: tuple[Any, Session]) -> None:
    """No state is kept between them, and prefixes differ."""
    _, session = both
    alone = {}
    for pieces in PROMPTS:
        session.forget_image()
        found = session.answer_pieces(PICTURES[: len(pieces) - 1], pieces, roi=None, max_new_tokens=STEPS)
        alone[pieces] = found.token_ids
    for pieces in itertools.chain(PROMPTS, reversed(PROMPTS), PROMPTS):
        found = session.answer_pieces(PICTURES[: len(pieces) - 1], pieces, roi=None, max_new_tokens=STEPS)
        assert found.token_ids == alone[pieces]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session.open(qwen_bundle("q-zoom-3", tmp_path_factory.mktemp("gated")), threads=1) as session:
        yield session


def test_several_images_and_none_have_one_look(gated: Session) -> None:
    two = gated.answer(PICTURES[:2], "which is larger?", max_new_tokens=2)
    assert (two.boxes_xyxy_px, two.roi_map) == ((), None)
    assert two.note == "one look: the question shows 2 pictures"
    assert two.tokens.images_encoded == 2
    none = gated.answer(None, "what is a lens?", max_new_tokens=2)
    assert none.note == "one look: the question shows no picture"
    assert none.tokens.image == none.tokens.images_encoded == 0
    assert none.picture is None
    assert gated.answer(None, "what is a lens?", roi=None, max_new_tokens=2).note is None
    assert two.overlay().size[0] > 0
    with pytest.raises(BadInput, match="this answer knows no picture"):
        none.overlay()


def test_a_history_is_looked_behind(gated: Session) -> None:
    """The picture is in the first turn: the prefix is that of a question without a history, and crops come as usual."""
    picture, look = PICTURES[0], {"roi": 0.001, "max_new_tokens": 2, "image_tokens": (4, 40)}
    alone = gated.answer(picture, "what is it?", **look)  # type: ignore[arg-type]
    history = [Turn("user", "what is it?"), Turn("assistant", "a sign")]
    later = gated.answer(picture, "and what does it say?", history=history, **look)  # type: ignore[arg-type]
    assert later.tokens.prompt > alone.tokens.prompt
    assert later.tokens.cached > alone.tokens.image  # ids before the image, and the image
    assert later.tokens.images_encoded == len(later.boxes_xyxy_px)  # the crop alone
    assert later.roi_map is not None
    system = gated.answer(picture, "what is it?", history=[Turn("system", "Be brief.")], **look)  # type: ignore[arg-type]
    assert system.tokens.cached == 0  # what comes before the image is another text


def test_pictures_in_later_turns(gated: Session) -> None:
    history = [Turn("user", "what is it?", images=1), Turn("assistant", "a sign")]
    found = gated.answer(PICTURES[:2], "and this one?", history=history, max_new_tokens=1)
    grid = gated.spec.vision.grid
    assert found.tokens.image == sum(int(np.prod(grid(image.size).hw)) for image in PICTURES[:2])
    with pytest.raises(BadInput, match="the history shows 1 pictures; expected at most 0"):
        gated.answer(None, "what is it?", history=history)
    with pytest.raises(BadInput, match="2 pictures were passed, and the prompt shows 1; expected as many"):
        gated.answer_pieces(PICTURES[:2], [(5,), (6,)])


def test_streams_take_histories(gated: Session) -> None:
    history = [Turn("user", "what is it?"), Turn("assistant", "a sign")]
    stream = gated.stream(PICTURES[0], "and?", history=history, max_new_tokens=3)
    text = "".join(stream)
    assert stream.answer == gated.answer(PICTURES[0], "and?", history=history, max_new_tokens=3)
    assert stream.answer.text == text


def random_turns(rng: np.random.Generator) -> Iterator[list[tuple[Any, str, dict[str, Any]]]]:
    """Rounds of a few conversations: images, question, and how it is asked; policy and budget change between turns."""
    words = ["what", "is", "the", "code", "on", "a", "red", "tag", "near", "12", "?"]

    def text() -> str:
        return " ".join(rng.choice(words, rng.integers(1, 9)))

    for _ in range(4):
        histories: list[list[Turn]] = [[], [], [Turn("system", "Be brief.")]]
        shown: list[list[Image.Image]] = [[PICTURES[0]], [], [PICTURES[rng.integers(0, 3)]]]
        for turn in range(4):
            asked = []
            for number, history in enumerate(histories):
                new = turn == 0 and number != 1
                if number == 2 and turn and rng.random() < 0.5:
                    shown[number] = [*shown[number], PICTURES[rng.integers(0, 3)]]
                    new = True
                least = int(rng.integers(4, 30))
                how = {
                    "history": list(history),
                    "roi": RoiPolicy(float(rng.choice([0.05, 0.5])), gate_threshold=float(rng.choice([-1, 0.5, 2]))),
                    "image_tokens": (least, least + 20) if rng.random() < 0.4 else None,
                    "max_new_tokens": int(rng.integers(1, 5)),
                }
                asked.append((list(shown[number]) or None, text(), how))
                histories[number] = [*history, Turn("user", asked[-1][1], int(new)), Turn("assistant", text())]
            yield asked


def test_conversations_do_not_disturb_each_other(gated: Session) -> None:
    """Each answer, with others at once and on whatever prefixes were kept, equals the one that reuses nothing."""
    differences, boxes, cached = [], 0, 0
    with Session.open(gated.bundle.path, threads=1, max_batch=1) as other:
        for asked in random_turns(np.random.default_rng(5)):
            streams = [gated.stream(images, question, trace=True, **how) for images, question, how in asked]
            together = [stream.finish() for stream in streams]
            for (images, question, how), found in zip(asked, together, strict=True):
                other.forget_image()
                alone = other.answer(images, question, trace=True, **how)
                assert found.trace is not None
                assert alone.trace is not None
                assert found.token_ids == alone.token_ids
                assert (found.boxes_xyxy_px, found.note) == (alone.boxes_xyxy_px, alone.note)
                differences.append(float(np.abs(found.trace.first_logits - alone.trace.first_logits).max()))
                boxes, cached = boxes + bool(found.boxes_xyxy_px), cached + bool(found.tokens.cached)
    assert max(differences) <= REUSE_LOGITS_ABS
    assert min(boxes, cached, len(differences) - boxes) > 5


def test_a_checkpoint_s_repetition_penalty(tmp_path: Path) -> None:
    """It is read from generation_config.json; what is asked for comes first."""
    theirs = saved_model("qwen2.5-vl", tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**stored, "repetition_penalty": 4.0}), encoding="utf-8")
    export_bundle(tmp_path / "model", tmp_path / "bundle", ExportOptions("fp32"))
    ids = (300, 7, 11, 12, 13)
    tokens = torch.tensor([ids])
    with Session.open(tmp_path / "bundle", threads=1) as session:
        assert session.spec.prompt.repetition_penalty == 4.0
        for penalty in (4.0, 1.0):
            with torch.inference_mode():
                generated = theirs.generate(
                    input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, min_new_tokens=8,
                    do_sample=False, repetition_penalty=penalty,
                )  # fmt: skip
            expected = generated[0, len(ids) :].tolist()
            sampling = Sampling() if penalty == 4.0 else Sampling(repetition_penalty=penalty)
            found = session.answer_pieces([], [ids], roi=None, max_new_tokens=8, sampling=sampling)
            assert list(found.token_ids) == expected[: len(found.token_ids)]
            assert len(found.token_ids) > 3
