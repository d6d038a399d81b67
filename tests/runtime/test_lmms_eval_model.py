"""A bundle through lmms-eval's own registry and model interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.families.look_settings import LookSettings
from sdrpn.method.policy import RoiChange
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Session
from sdrpn.runtime.lmms_eval_model import MODEL_NAME, Generation, answer_requests, manifest, settled_look
from sdrpn.runtime.sampling import Sampling
from tests.families.qwen.bundles import qwen_bundle
from tests.pictures import photo

DOCUMENTS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "signs": {"val": [{"image": Image.fromarray(photo()), "question": "What does it say?"}]}
}
SETTINGS = {"max_new_tokens": 4, "temperature": 0, "do_sample": False}


class FakeRequest:
    """As lmms-eval's Instance, of which only `args` is read."""

    def __init__(self, settings: dict[str, Any] | None = None, pictures: Any = lambda doc: [doc["image"]]) -> None:
        document = DOCUMENTS["signs"]["val"][0]
        self.args = (document["question"], settings or SETTINGS, pictures, 0, "signs", "val")


def ask(session: Session, *requests: FakeRequest, policy: RoiPolicy | None = None) -> list[str]:
    return answer_requests(
        session, LookSettings(policy), requests, lambda task, split, number: DOCUMENTS[task][split][number]
    )


class TestAnswers:
    def test_they_are_those_of_a_session(self, text_bundle: Path) -> None:
        with Session.open(text_bundle) as session:
            for policy in (None, RoiPolicy(0.5)):
                document = DOCUMENTS["signs"]["val"][0]
                expected = session.answer(document["image"], document["question"], roi=policy, max_new_tokens=4).text
                assert ask(session, FakeRequest(), FakeRequest(), policy=policy) == [expected.strip()] * 2

    @pytest.mark.parametrize("pictures", [[], [Image.new("RGB", (8, 8))] * 2, ["a path"], None])
    def test_exactly_one_picture(self, text_bundle: Path, pictures: Any) -> None:
        with (
            Session.open(text_bundle) as session,
            pytest.raises(BadInput, match=r"signs val 0 asks about .*; a bundle answers questions about one picture"),
        ):
            ask(session, FakeRequest(pictures=lambda doc: pictures))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session.open(qwen_bundle("q-zoom-gate", tmp_path_factory.mktemp("qwen")), threads=1) as session:
        yield session


class TestLooks:
    def test_presets_and_their_parts(self, qwen: Session) -> None:
        found = settled_look(qwen, preset="document")
        assert found == LookSettings(RoiChange(0.125, gate_threshold=0.05), None, (256, 576))
        found = settled_look(qwen, preset="document", threshold=0.5, image_tokens="4:36", resize="official")
        assert found == LookSettings(RoiChange(0.5, gate_threshold=0.05), None, (4, 36), "official")
        assert settled_look(qwen, gate_threshold=2.0, image_tokens=64).roi == RoiChange(gate_threshold=2.0)
        assert settled_look(qwen, roi=False, preset="scene") == LookSettings(None, None, (256, 576))

    def test_questions_are_asked_with_them(self, qwen: Session) -> None:
        look = settled_look(qwen, image_tokens="16:36", resize="official", gate_threshold=-1.0)
        asked = FakeRequest()
        (found,) = answer_requests(qwen, look, [asked], lambda task, split, number: DOCUMENTS[task][split][number])
        expected = qwen.answer(
            DOCUMENTS["signs"]["val"][0]["image"],
            asked.args[0],
            roi=RoiChange(gate_threshold=-1.0),
            max_new_tokens=4,
            image_tokens=(16, 36),
            resize="official",
        )
        assert found == expected.text.strip()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"image_tokens": "4-36"}, "image_tokens is '4-36'; expected LEAST:MOST, such as 256:576"),
            ({"image_tokens": "4:"}, "image_tokens is '4:'; expected LEAST:MOST"),
            ({"image_tokens": True}, "image_tokens is True; expected LEAST:MOST"),
            ({"image_tokens": 3}, "3"),
            ({"resize": "twice"}, "resize is 'twice'; expected 'once' or 'official'"),
            ({"preset": "signs"}, "the preset 'signs' is unknown"),
            ({"upscale": "mask"}, "upscale is 'mask'; this model looks at one box"),
        ],
    )
    def test_what_the_model_cannot_use(self, qwen: Session, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(BadInput, match=message):
            settled_look(qwen, **wrong)

    def test_a_model_without_a_gate(self, text_bundle: Path) -> None:
        with Session.open(text_bundle) as session, pytest.raises(BadInput, match="this model has no gate; leave it"):
            settled_look(session, gate_threshold=0.1)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, Generation(64, Sampling(), ())),
            ({"max_new_tokens": 16, "until": "ASSISTANT:"}, Generation(16, Sampling(), ("ASSISTANT:",))),
            ({"temperature": 0, "top_p": 1.0, "do_sample": False}, Generation(64, Sampling(), ())),
            ({"temperature": 0.7, "do_sample": False}, Generation(64, Sampling(), ())),
            ({"temperature": 0.7, "top_p": 0.9}, Generation(64, Sampling(0.7, 0.9, seed=0), ())),
            ({"temperature": None, "top_p": None, "until": ["a", "b"]}, Generation(64, Sampling(), ("a", "b"))),
        ],
    )
    def test_what_a_task_wants(self, settings: dict[str, Any], expected: Generation) -> None:
        assert Generation.from_settings(settings) == expected

    @pytest.mark.parametrize(
        ("text", "expected"), [("yes ASSISTANT: no", "yes"), ("yes\n", "yes"), ("\n\nyes", "yes"), ("a\n\nb", "a")]
    )
    def test_what_ends_an_answer(self, text: str, expected: str) -> None:
        until = ("ASSISTANT:",) if text.startswith("\n") else ("ASSISTANT:", "\n\n")
        assert Generation(1, Sampling(), until).cut(text) == expected


def test_without_lmms_eval_everything_else_works() -> None:
    import sdrpn.runtime.lmms_eval_model as module

    with pytest.raises(AttributeError, match="has no attribute Other"):
        module.Other  # noqa: B018


class TestInLmmsEval:
    """Installed by `pip install --no-deps lmms_eval loguru pytz`, beside what the tests need anyway."""

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("lmms_eval.api.model", reason="lmms-eval is not installed")

    @pytest.fixture
    def model_class(self) -> Any:
        from lmms_eval.models.registry_v2 import ModelRegistryV2

        registry = ModelRegistryV2()
        registry.register_manifest(manifest())
        return registry.get_model_class(MODEL_NAME)

    def test_the_entry_point_is_declared(self) -> None:
        from importlib.metadata import entry_points

        found = {point.name: point.value for point in entry_points(group="lmms_eval.models")}
        if MODEL_NAME not in found:
            pytest.skip("this environment was installed before the entry point was there; install it again")
        assert found[MODEL_NAME] == "sdrpn.runtime.lmms_eval_model:manifest"

    def test_it_answers_what_lmms_eval_asks(self, model_class: Any, text_bundle: Path) -> None:
        from lmms_eval.api.instance import Instance

        model = model_class.create_from_arg_string(
            f"bundle={text_bundle},threads=1,threshold=0.5", {"batch_size": 1, "max_batch_size": None, "device": None}
        )
        model.task_dict = DOCUMENTS
        asked = Instance("generate_until", FakeRequest().args, 0, {"task": "signs", "doc_id": 0, "repeats": 1})
        with Session.open(text_bundle) as session:
            assert model.generate_until([asked]) == ask(session, FakeRequest(), policy=RoiPolicy(0.5))

    def test_plain_llava(self, model_class: Any, plain_bundle: Path, text_bundle: Path) -> None:
        for bundle, more in ((plain_bundle, ""), (text_bundle, ",roi=False")):
            model = model_class.create_from_arg_string(f"bundle={bundle}{more}")
            model.task_dict = DOCUMENTS
            with Session.open(bundle) as session:
                assert model.generate_until([FakeRequest()]) == ask(session, FakeRequest())

    def test_what_it_cannot_do(self, model_class: Any, plain_bundle: Path) -> None:
        model = model_class(str(plain_bundle))
        with pytest.raises(BadInput, match="gives no likelihoods"):
            model.loglikelihood([])
        with pytest.raises(BadInput, match="one question at a time"):
            model.generate_until_multi_round([])
