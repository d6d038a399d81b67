"""Let an evaluation ask a session. Knows no task and no method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from sdrpn.evaluation.looks import Answered, GivenLook, Judged, Look, RpnLook
    from sdrpn.families.look_settings import LookSettings
    from sdrpn.method.roi import Crop, Decide, RoiDecision
    from sdrpn.method.spec import ModelSpec
    from sdrpn.runtime import Answer, Session, Timings
    from sdrpn.runtime.pictures.picture import Picture

    Float32 = NDArray[np.float32]

__all__ = ["BundleAnswerer"]


class BundleAnswerer:
    """A session as an answerer. It gives no attention maps; given crops still cost a run of the RPN."""

    def __init__(self, session: Session, settings: LookSettings | None = None) -> None:
        """Args: settings: of this model; its image tokens and resize are those of every picture"""
        import dataclasses

        from sdrpn.errors import BadInput
        from sdrpn.text.prompt import load_tokenizer

        tokenizer = session.bundle.manifest.tokenizer
        if tokenizer is None:
            raise BadInput(f"{session.bundle.path} has no tokenizer.json; export a checkpoint that has a tokenizer")
        self._session = session
        self._image_tokens = None if settings is None else settings.image_tokens
        self._resize = None if settings is None else settings.resize
        vision = session.spec.vision if settings is None else settings.vision_of(session.spec)
        self._spec = dataclasses.replace(session.spec, vision=vision)
        self._tokenizer = load_tokenizer(session.bundle.file(tokenizer))

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._spec

    @property
    def rpns(self) -> tuple[str, ...]:
        """The bundle's own RPN, if it has one."""
        return () if self.spec.rpn is None else ("",)

    @property
    def looks(self) -> frozenset[type[Any]]:
        """The looks that need no attention maps."""
        from sdrpn.evaluation.looks import GivenLook, RpnLook

        return frozenset((GivenLook, RpnLook)) if self.rpns else frozenset()

    def answer(self, picture: Image, question: str, look: Look | None, max_new_tokens: int) -> Answered:
        """Answer greedily, recomputing the prefix; or only look."""
        import time

        from sdrpn.evaluation.looks import Answered

        if max_new_tokens == 0:
            return self._look(picture, question, look)
        self._session.forget_image()
        start = time.perf_counter()
        answer = self._answer(picture, question, look, max_new_tokens)
        seconds = time.perf_counter() - start
        decision = answer.trace.decision if answer.trace is not None else None
        crops = () if decision is None else decision.crops
        return Answered(
            answer.text.strip(),
            crops,
            self._peak(picture, look, decision),
            answer.roi_token_count,
            seconds,
            answer.note,
            self._map(look, decision),
            self._judged(look, decision, answer.gate_score, answer.timings),
        )

    def _look(self, picture: Image, question: str, look: Look | None) -> Answered:
        """Look without a second pass. The first token, which the session computes anyway, is not counted."""
        from sdrpn.evaluation.looks import Answered, GivenLook, RpnLook, given_note, window_xy_px

        if not isinstance(look, RpnLook):
            crops = look.crops if isinstance(look, GivenLook) else ()
            note = given_note(crops) if look is not None else None
            return Answered("", crops, window_xy_px(crops), self._tokens(picture, crops), 0.0, note)
        self._session.forget_image()
        decision, timings = self._decided(picture, question, look)
        seconds = timings.preprocess_s + timings.vision_s + timings.trunk_s + timings.rpn_s + timings.roi_decode_s
        peak = self._peak(picture, look, decision)
        tokens, strength = self._tokens(picture, decision.crops), self._map(look, decision)
        judged = self._judged(look, decision, None, timings)
        return Answered("", decision.crops, peak, tokens, seconds, decision.note, strength, judged)

    def _judged(
        self, look: Look | None, decision: RoiDecision | None, gate_score: float | None, timings: Timings
    ) -> Judged | None:
        from sdrpn.evaluation.looks import Judged, RpnLook, confidence_of

        if not isinstance(look, RpnLook):
            return None
        confidence = None if decision is None else confidence_of(decision, look.policy)
        return Judged(confidence, timings.rpn_s + timings.roi_decode_s, gate_score, timings.gate_s)

    def _map(self, look: Look | None, decision: RoiDecision | None) -> Float32 | None:
        from sdrpn.evaluation.looks import RpnLook, map_over_image

        return map_over_image(decision, look.policy) if decision is not None and isinstance(look, RpnLook) else None

    def _tokens(self, picture: Image, crops: Sequence[Crop]) -> int:
        grid = self.spec.vision.grid(picture.size)
        return sum(crop.token_count(grid.crop_hw(crop.box_xyxy_px)) for crop in crops)

    def _peak(self, picture: Image, look: Look | None, decision: RoiDecision | None) -> tuple[float, float] | None:
        from sdrpn.evaluation.looks import RpnLook, peak_xy_px, window_xy_px

        if decision is None:
            return None
        if isinstance(look, RpnLook):
            return peak_xy_px(decision, picture.size, self.spec)
        return window_xy_px(decision.crops)

    def decide(self, picture: Image, question: str, look: RpnLook) -> RoiDecision:
        """The crops that this look chooses."""
        return self._decided(picture, question, look)[0]

    def _decided(self, picture: Image, question: str, look: RpnLook) -> tuple[RoiDecision, Timings]:
        """The decision, whatever a gate says, and its timings."""
        import dataclasses

        rpn = self.spec.rpn
        if rpn is not None and rpn.sink_query:
            # Sinks reach the family's own decision only, so that the crop is encoded, too; its time is not counted.
            policy = dataclasses.replace(look.policy, gate_threshold=-1.0)
            answer = self._asked(picture, question, roi=policy, max_new_tokens=1, trace=True)
            assert answer.trace is not None
            assert answer.trace.decision is not None
            return answer.trace.decision, answer.timings
        from sdrpn.families.registry import family_of

        decider, decided = family_of(self.spec).decide(look.policy, self.spec), []

        def decide(logits: Float32, image_wh: tuple[int, int]) -> RoiDecision:
            decided.append(decider(logits, image_wh))
            return dataclasses.replace(decided[0], crops=())

        answer = self._asked(picture, question, roi=None, decide=decide, max_new_tokens=1)
        return decided[0], answer.timings

    def _answer(self, picture: Image, question: str, look: Look | None, max_new_tokens: int) -> Answer:
        from sdrpn.evaluation.looks import RpnLook

        if isinstance(look, RpnLook):
            return self._asked(picture, question, roi=look.policy, max_new_tokens=max_new_tokens, trace=True)
        if look is None:
            return self._asked(picture, question, roi=None, max_new_tokens=max_new_tokens, trace=True)
        from sdrpn.evaluation.looks import GivenLook
        from sdrpn.workflows.crop_pictures import PictureWithOtherCrops

        assert isinstance(look, GivenLook)
        shown = picture if look.pixels is None else PictureWithOtherCrops(picture, look.pixels)
        return self._asked(shown, question, roi=None, decide=_given(look), max_new_tokens=max_new_tokens, trace=True)

    def _asked(self, picture: Image | Picture, question: str, **options: Any) -> Answer:
        from sdrpn.families.registry import prompt_of

        prompt = prompt_of(self.spec, self._tokenizer, question)
        return self._session.answer_ids(
            picture,
            prompt.ids_before,
            prompt.ids_after,
            image_tokens=self._image_tokens,
            resize=self._resize,
            **options,
        )


def _given(look: GivenLook) -> Decide:
    import numpy as np

    from sdrpn.evaluation.looks import given_note
    from sdrpn.method.roi import RoiDecision

    crops = look.crops

    def decide(logits: Float32, image_wh: tuple[int, int]) -> RoiDecision:
        return RoiDecision(np.zeros((0, 4), np.int64), crops, given_note(crops), logits)

    return decide
