"""The small model's training: its data says what is there, packed questions are as if alone, states go on exactly."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.tags.scene import CELL_PX, SEEN, render_scene
from sdrpn.tags.task import TRAINED_CODES
from tests.tolerances import HALF_PRECISION_ABS, MUON_SINGULAR_VALUES, PACKED_LOGITS_ABS, SAME_MATH_ABS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FOLDER = Path(__file__).parents[2] / "examples" / "tiny"
MODULES = [path.stem for path in FOLDER.glob("*.py")]


@pytest.fixture(scope="module", autouse=True)
def _scripts_can_be_imported() -> Iterator[None]:
    """As they import each other: by bare names, from their own folder."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


def script(name: str) -> Any:
    return importlib.import_module(name)


class TestTruth:
    def test_every_digit_is_marked_in_the_cell_of_its_centre(self) -> None:
        views = script("views")
        scene = render_scene(np.random.default_rng(3), SEEN, TRAINED_CODES)
        truth = views.truth_of_cells(scene.tags, (0, 0, 840, 840), 48)
        for tag in scene.tags:
            for place, digit in enumerate(tag.digits):
                column, row = (int(value // (CELL_PX / 4)) for value in digit.centre_xy)
                assert truth[row, column, :2].tolist() == [digit.value, place]

    def test_cells_without_a_tag_say_nothing(self) -> None:
        views = script("views")
        truth = views.truth_of_cells((), (0, 0, 840, 840), 12)
        assert (truth == list(views.FIELDS.values())).all()

    def test_a_page_is_the_same_for_a_seed(self) -> None:
        views = script("views")
        first, second = (views.page_view(np.random.default_rng(5), views.SMALL_DIGITS, 168, 14) for _ in range(2))
        assert (first.pixels == second.pixels).all()
        assert (first.truth == second.truth).all()
        assert ((first.truth[..., 0] >= 0) & (first.truth[..., 0] < 10)).sum() > 10


class TestConversations:
    def batch(self, stage: str, index: int = 0) -> Any:
        conversations = script("conversations")
        small = dataclasses.replace(conversations.STAGES[stage], batch=2)
        return conversations.Conversations(small, range(100))[index]

    def test_a_batch_depends_on_its_number_alone(self) -> None:
        first, second, other = self.batch("C", 4), self.batch("C", 4), self.batch("C", 5)
        assert torch.equal(first.questions.ids, second.questions.ids)
        assert torch.equal(first.base, second.base)
        assert not torch.equal(first.base, other.base)

    def test_only_answers_are_learned(self) -> None:
        questions = self.batch("L0").questions
        learned = questions.labels >= 0
        assert (questions.labels[learned] == questions.ids[learned]).all()
        assert 0 < learned.float().mean() < 0.5

    def test_packed_questions_are_answered_as_if_alone(self) -> None:
        """Changing one question changes no logit of another, and a question alone has the logits that it has packed."""
        tiny_llava = script("tiny_llava")
        torch.manual_seed(0)
        model = tiny_llava.TinyLlava().eval()
        batch = self.batch("L0")
        packed = batch.questions
        last = packed.segment == packed.segment.max()
        alone = dataclasses.replace(
            packed,
            ids=packed.ids[:, last],
            labels=packed.labels[:, last],
            segment=packed.segment[last],
            position=packed.position[last],
        )
        with torch.no_grad():
            base = model.tower(script("dense_heads").normalised(batch.base), batch.corner_rc)
            together = model.run_llm(base, None, packed)[-1]
            single = model.run_llm(base, None, alone)[-1]
        difference = (together[:, last] - single).abs().max().item()
        assert difference <= PACKED_LOGITS_ABS, f"largest difference {difference}"

    def test_what_a_question_is_about_is_said_where_its_answer_begins(self) -> None:
        """`answer_at` is the first labelled token, and `subjects` the colour that stands in the question."""
        packing = script("packing")
        questions = self.batch("C").questions
        flat = questions.labels.view(*questions.answer_at.shape, -1)
        length = flat.shape[-1]
        for row, column in np.ndindex(*questions.answer_at.shape):
            start = int(questions.answer_at[row, column])
            assert start % length == int((flat[row, column] >= 0).int().argmax())
            subject = int(questions.subjects[row, column])
            if subject != packing.IGNORED:
                assert subject in questions.ids[row, column * length : start].tolist()


class TestPool:
    def test_features_are_those_of_the_tower_and_codes_are_asked_only_where_they_can_be_read(self) -> None:
        pool, networks, dense = script("pool"), script("networks"), script("dense_heads")
        torch.manual_seed(0)
        tower = networks.VisionTower().eval()
        few = pool.Pool(tower, 5, 6, lambda done: None)
        scene, pixels = pool.RenderedScenes(5, 6)[3]
        assert few.scenes[3] == scene
        with torch.no_grad():
            seen = tower(dense.normalised(pixels))
        assert (few.features[3].float() - seen).abs().max() <= HALF_PRECISION_ABS
        unreadable = [index for index, entry in enumerate(few.scenes) if not entry.readable]
        assert unreadable
        few.scenes = [few.scenes[index] for index in unreadable]
        batch = few.batch(np.random.default_rng(0), 4, 5, crops=False)
        assert batch.crops is None
        assert batch.questions.kinds.all(), "a code was asked for that nobody could read"

    def test_the_loss_learns_what_a_question_is_about(self) -> None:
        """The term for the subject is there only when it is asked for, and reaches the layers below it alone."""
        pool, tiny_llava = script("pool"), script("tiny_llava")
        torch.manual_seed(0)
        model = tiny_llava.TinyLlava()
        few = pool.Pool(model.tower, 5, 4, lambda done: None)
        batch = few.batch(np.random.default_rng(0), 2, 3, crops=True)
        without, _ = model.language_loss(batch.base, batch.crops, batch.questions)
        with_subjects, _ = model.language_loss(batch.base, batch.crops, batch.questions, subjects=True)
        (with_subjects - without).backward()
        layers = model.llm.model.layers
        # Differences of equal sums are not exactly zero, so layers above are compared with those below.
        below, above = (layers[at].mlp.down_proj.weight.grad.abs().max() for at in (1, tiny_llava.SUBJECT_LAYER))
        assert with_subjects > without
        assert above < below * 1e-3


class TestMuon:
    def test_updates_have_singular_values_near_one(self) -> None:
        muon = script("muon")
        generator = torch.Generator().manual_seed(0)
        for shape in ((3, 32, 64), (2, 64, 32)):
            values = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape, generator=generator)))
            low, high = MUON_SINGULAR_VALUES
            assert low < values.min()
            assert values.max() < high

    def test_a_resumed_run_is_the_run_that_was_not_broken_off(self, tmp_path: Path) -> None:
        schedule = script("schedule")

        def steps(model: Any, optimizer: Any, numbers: range) -> None:
            for number in numbers:
                model(torch.full((2, 8), float(number))).square().mean().backward()
                optimizer.step(1e-2)

        def fresh() -> tuple[Any, Any]:
            torch.manual_seed(1)
            module = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(8, 8)])})
            model = module["layers"][0]
            return module, (model, schedule.Optimizers({1.0: module}))

        _, (model, optimizer) = fresh()
        steps(model, optimizer, range(6))
        broken, (half, half_optimizer) = fresh()
        steps(half, half_optimizer, range(3))
        schedule.save_state(tmp_path, broken, half_optimizer, 3)
        resumed, (other, other_optimizer) = fresh()
        first = schedule.load_state(tmp_path, resumed, other_optimizer)
        steps(other, other_optimizer, range(first, 6))
        assert torch.equal(model.weight, other.weight)


class TestStartingWeights:
    def test_attention_begins_by_looking_at_what_is_alike(self) -> None:
        networks = script("networks")
        torch.manual_seed(0)
        layer = networks.VisionTower().clip.encoder.layers[0].self_attn
        product = layer.q_proj.weight.T @ layer.k_proj.weight
        own, others = product.diagonal().mean(), product.mean()
        assert own > 10 * others.abs()

    def test_a_question_s_word_and_a_patch_that_shows_it_agree(self) -> None:
        """After the projector was fitted to truth that one channel of the features gives away."""
        alignment, networks = script("alignment"), script("networks")
        torch.manual_seed(0)
        llm = networks.make_llm()
        fields = alignment.set_llm_starting_weights(llm)
        red = networks.make_tokenizer().token_to_id("▁red")
        assert torch.allclose(llm.get_input_embeddings().weight[red], fields["colour"][0], atol=SAME_MATH_ABS)
        truth = torch.zeros(1, 4, 5).long()
        truth[..., 0] = -100
        exact = sum(rows[0] for name, rows in fields.items() if name != "digit").expand(1, 4, -1)
        assert alignment.field_loss(exact, truth, fields).item() < SAME_MATH_ABS
        assert alignment.field_loss(torch.zeros_like(exact), truth, fields).item() == pytest.approx(4.0)


def test_what_is_labelled_has_neither_boxes_nor_answers(tmp_path: Path) -> None:
    make_pairs = script("make_pairs")
    make_pairs.write_pairs(tmp_path / "pairs", "train", 4, seed=9, per_scene=2)
    lines = [json.loads(line) for line in (tmp_path / "pairs" / "questions.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"id", "image", "question"}] * 4
    assert not any(any(letter.isdigit() for letter in line["question"]) for line in lines)
    assert lines[0]["image"] == lines[1]["image"] != lines[2]["image"]
    assert lines[0]["question"] != lines[1]["question"]
    assert sorted(path.suffix for path in (tmp_path / "pairs").rglob("*") if path.is_file()) == [
        ".jpg",
        ".jpg",
        ".jsonl",
    ]


def test_the_checkpoint_says_what_the_trained_modules_say(tmp_path: Path) -> None:
    """Written in half precision, read back by transformers, and by the exporter's reader."""
    from transformers import LlavaForConditionalGeneration

    from sdrpn.checkpoint import open_checkpoint

    save_checkpoint, tiny_llava = script("save_checkpoint"), script("tiny_llava")
    torch.manual_seed(0)
    model = tiny_llava.TinyLlava().half().float()
    (tmp_path / "run").mkdir()
    torch.save({"step": 0, "modules": model.state_dict()}, tmp_path / "run" / "state.pt")
    save_checkpoint.write_checkpoint(tmp_path / "run", tmp_path / "checkpoint")
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        ours = model.llm(input_ids=ids).logits
        theirs = llava(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=SAME_MATH_ABS)
    assert open_checkpoint(tmp_path / "checkpoint").spec.llm.width == script("networks").SPEC.llm.width
