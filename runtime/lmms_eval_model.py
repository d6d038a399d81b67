"""A bundle as a model of lmms-eval, which finds it through the entry point `sdrpn` and loads it by name:

    lmms_eval --model sdrpn --model_args bundle=DIR,threshold=0.3 --tasks textvqa_val --batch_size 1

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
from sdrpn.method.policy import RoiChange
from sdrpn.method.roi import RoiPolicy
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
    policy: RoiPolicy | None,
    requests: Iterable[LmmsEvalRequest],
    find_document: Callable[[str, str, Any], Any],
) -> list[str]:
    """One answer per request, in order. Raises BadInput for a question that is not about exactly one picture."""
    return [_answer(session, policy, request.args, find_document) for request in requests]


def _answer(
    session: Session, policy: RoiPolicy | None, args: tuple[Any, ...], find_document: Callable[[str, str, Any], Any]
) -> str:
    question, settings, find_pictures, number, task, split = args
    generation = Generation.from_settings(settings)
    picture = _one_picture(find_pictures(find_document(task, split, number)), f"{task} {split} {number}")
    answer = session.answer(
        picture, question, roi=policy, max_new_tokens=generation.max_new_tokens, sampling=generation.sampling
    )
    return generation.cut(answer.text)


def _one_picture(pictures: Any, where: str) -> Image.Image:
    found = list(pictures or ())
    if len(found) != 1 or not isinstance(found[0], Image.Image):
        kinds = ", ".join(type(picture).__name__ for picture in found) or "none"
        raise BadInput(f"{where} asks about {kinds}; a bundle answers questions about one picture: choose such a task")
    return found[0]


def _policy(session: Session, *, roi: bool, threshold: float | None, upscale: Any) -> RoiPolicy | None:
    """None for one look: asked for, or all that the bundle can do."""
    change = RoiChange(threshold, upscale)
    return change.applied_to(session.policy) if roi and session.spec.rpn is not None else None


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
        `sdrpn ask`; roi=false for one look; threshold and upscale of the second look, the model's own where they
        are left out. The others are lmms-eval's
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
            batch_size: int | str = 1,
            max_batch_size: int | None = None,
            device: str | None = None,
        ) -> None:
            super().__init__()
            self._session = Session.open(bundle, backend=backend, threads=threads, variant=variant)
            self._policy = _policy(self._session, roi=roi, threshold=threshold, upscale=upscale)

        def generate_until(self, requests: list[LmmsEvalRequest]) -> list[str]:
            """One answer per request, in order."""
            return answer_requests(
                self._session, self._policy, requests, lambda task, split, number: self.task_dict[task][split][number]
            )

        def loglikelihood(self, requests: list[LmmsEvalRequest]) -> list[tuple[float, bool]]:
            """Not supported: a session gives answers, not likelihoods."""
            raise BadInput("a bundle answers questions and gives no likelihoods; choose a task that generates")

        def generate_until_multi_round(self, requests: list[LmmsEvalRequest]) -> list[str]:
            """Not supported: each question is independent."""
            raise BadInput("a bundle answers one question at a time; choose a task of one round")

    return SdRpn
