"""A bundle as a model of lmms-eval, which finds it through the entry point `sdrpn` and loads it by name:

    lmms_eval --model sdrpn --model_args bundle=DIR,threshold=0.3 --tasks textvqa_val --batch_size 1
    lmms_eval --model sdrpn --model_args bundle=DIR,preset=document,image_tokens=256:576 --tasks docvqa_val

lmms-eval loads this module, which can be imported without it: the class is created on demand, because its base class is
lmms-eval's. One picture per question, one question at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from PIL import Image

from sdrpn.errors import BadInput, MissingDependency
from sdrpn.families.look_settings import LookSettings
from sdrpn.method.policy import RoiChange
from sdrpn.runtime.questions import Budget
from sdrpn.runtime.sampling import Sampling
from sdrpn.runtime.session import Session

__all__ = ["MODEL_NAME", "LmmsEvalRequest", "manifest"]

MODEL_NAME = "sdrpn"
CLASS_NAME = "SdRpn"
# For tasks that set no limit; lmms-eval leaves it to the model.
MAX_NEW_TOKENS = 64


class LmmsEvalRequest(Protocol):
    """A request of lmms-eval: `args` are text, settings, a function that finds a document's pictures, its number, task
    and split."""

    @property
    def args(self) -> tuple[Any, ...]:
        """See above."""


def manifest() -> Any:
    """How lmms-eval finds the model: its entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_NAME, simple_class_path=f"{__name__}.{CLASS_NAME}")


def __getattr__(name: str) -> Any:
    """Create the class by its name in the manifest."""
    if name == CLASS_NAME:
        return _model_class()
    raise AttributeError(f"module {__name__} has no attribute {name}")


@dataclass(frozen=True)
class Generation:
    """A task's generation settings."""

    max_new_tokens: int
    sampling: Sampling
    until: tuple[str, ...]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Generation:
        """lmms-eval's `generation_kwargs`; greedy unless they ask for a temperature."""
        until = settings.get("until") or ()
        temperature = float(settings.get("temperature") or 0) if settings.get("do_sample", True) else None
        return cls(
            int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
            Sampling.lenient(temperature, float(settings.get("top_p") or 1), seed=0),
            (until,) if isinstance(until, str) else tuple(until),
        )

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        ends = [text.index(word) for word in self.until if word and word in text]
        return text[: min(ends, default=len(text))].strip()


def answer_requests(
    session: Session,
    look: LookSettings,
    requests: Iterable[LmmsEvalRequest],
    find_document: Callable[[str, str, Any], Any],
) -> list[str]:
    """One answer per request, in order; `look` is settled for the session's model.

    Raises: BadInput for a question that is not about exactly one picture.
    """
    return [_answer(session, look, request.args, find_document) for request in requests]


def _answer(
    session: Session, look: LookSettings, args: tuple[Any, ...], find_document: Callable[[str, str, Any], Any]
) -> str:
    question, settings, find_pictures, number, task, split = args
    generation = Generation.from_settings(settings)
    picture = _one_picture(find_pictures(find_document(task, split, number)), f"{task} {split} {number}")
    answer = session.answer(
        picture,
        question,
        roi=look.roi,
        max_new_tokens=generation.max_new_tokens,
        sampling=generation.sampling,
        image_tokens=look.image_tokens,
        resize=look.resize,
    )
    return generation.cut(answer.text)


def _one_picture(pictures: Any, where: str) -> Image.Image:
    found = list(pictures or ())
    if len(found) != 1 or not isinstance(found[0], Image.Image):
        kinds = ", ".join(type(picture).__name__ for picture in found) or "none"
        raise BadInput(f"{where} asks about {kinds}; a bundle answers questions about one picture: choose such a task")
    return found[0]


def settled_look(
    session: Session,
    *,
    roi: bool = True,
    threshold: float | None = None,
    upscale: Any = None,
    gate_threshold: float | None = None,
    preset: str | None = None,
    image_tokens: str | int | None = None,
    resize: Any = None,
) -> LookSettings:
    """How questions look, by the arguments of the model; one look where that is all that the bundle can do.

    Raises: BadInput for what the model cannot use
    """
    change = RoiChange(threshold, upscale, gate_threshold=gate_threshold)
    looks = roi and session.spec.rpn is not None
    budget = Budget(image_tokens_from_text(image_tokens), resize)  # refuses what is neither, before questions are asked
    asked = LookSettings(change if looks else None, preset, budget.image_tokens, budget.resize)
    return asked.settled(session.spec)


def image_tokens_from_text(value: object) -> tuple[int, int] | None:
    """LEAST:MOST or one number, of which lmms-eval makes an int. Raises BadInput for anything else."""
    if value is None:
        return None
    least, colon, most = str(value).partition(":")
    numbers = [int(text) for text in (least, most if colon else least) if text.isdecimal()]
    if len(numbers) != 2:
        raise BadInput(f"image_tokens is {value!r}; expected LEAST:MOST, such as 256:576, or one number for both")
    return numbers[0], numbers[1]


@cache
def _model_class() -> type[Any]:
    """The class that lmms-eval instantiates. Raises MissingDependency without lmms-eval."""
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise MissingDependency(f"{CLASS_NAME} is a model for lmms-eval, which cannot be imported ({error})") from error

    class SdRpn(lmms):  # type: ignore[misc]
        """A bundle, asked through lmms-eval.

        Its arguments are those of `--model_args`: bundle (a folder, or demo), backend, threads, variant as for
        `sdrpn ask`; roi=false for one look; threshold, upscale and gate_threshold of the second look, preset,
        image_tokens (LEAST:MOST) and resize, the model's own where they are left out. The others are lmms-eval's
        own and say nothing here: a session answers one question at a time, where its backend runs.
        """

        is_simple = True

        def __init__(
            self,
            bundle: str,
            backend: str = "onnxruntime",
            threads: int | None = None,
            variant: str | None = None,
            roi: bool = True,
            threshold: float | None = None,
            upscale: str | None = None,
            gate_threshold: float | None = None,
            preset: str | None = None,
            image_tokens: str | int | None = None,
            resize: str | None = None,
            batch_size: int | str = 1,
            max_batch_size: int | None = None,
            device: str | None = None,
        ) -> None:
            super().__init__()
            self._session = Session.open(bundle, backend=backend, threads=threads, variant=variant)
            self._look = settled_look(
                self._session,
                roi=roi,
                threshold=threshold,
                upscale=upscale,
                gate_threshold=gate_threshold,
                preset=preset,
                image_tokens=image_tokens,
                resize=resize,
            )

        def generate_until(self, requests: list[LmmsEvalRequest]) -> list[str]:
            """One answer per request, in order."""
            return answer_requests(
                self._session, self._look, requests, lambda task, split, number: self.task_dict[task][split][number]
            )

        def loglikelihood(self, requests: list[LmmsEvalRequest]) -> list[tuple[float, bool]]:
            """Not supported: a session gives answers, not likelihoods."""
            raise BadInput("a bundle answers questions and gives no likelihoods; choose a task that generates")

        def generate_until_multi_round(self, requests: list[LmmsEvalRequest]) -> list[str]:
            """Not supported: each question is independent."""
            raise BadInput("a bundle answers one question at a time; choose a task of one round")

    return SdRpn
