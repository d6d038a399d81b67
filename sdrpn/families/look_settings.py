"""How a model looks, as somebody asked for it: what the model cannot use is refused before graphs are loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sdrpn.errors import BadInput
from sdrpn.families.family import Resize
from sdrpn.families.registry import family_of
from sdrpn.method.policy import OWN, Roi, RoiChange
from sdrpn.method.spec import ModelSpec, Vision

__all__ = ["LookSettings"]

_PARTS = ("threshold", "upscale", "max_ratio", "min_cells", "max_share")


@dataclass(frozen=True)
class LookSettings:
    """What was asked for.

    roi: how the map becomes crops; None: one look
    preset: a kind of question, whose official figures are used where nothing else is asked for
    image_tokens, resize: as in `Session.answer`
    """

    roi: Roi = OWN
    preset: str | None = None
    image_tokens: tuple[int, int] | None = None
    resize: Resize | None = None

    def settled(self, spec: ModelSpec) -> LookSettings:
        """The same for one model, without a preset. Raises BadInput for what it cannot use."""
        roi, image_tokens = self.roi, self.image_tokens
        if self.preset is not None:
            official = family_of(spec).preset(spec, self.preset)
            image_tokens = image_tokens or official.image_tokens
            if spec.rpn is not None and isinstance(roi, RoiChange):
                gate = official.gate_threshold if spec.rpn.has_gate else None
                roi = _filled(roi, threshold=official.threshold, gate_threshold=gate)
        _require_used(self.roi, spec)
        found = LookSettings(roi, None, image_tokens, self.resize)
        found.vision_of(spec)
        return found

    def vision_of(self, spec: ModelSpec) -> Vision:
        """The model's vision with the budget that was asked for. Raises BadInput for one that it cannot have."""
        family, vision = family_of(spec), spec.vision
        if self.resize is not None:
            vision = family.with_resize(vision, self.resize)
        return vision if self.image_tokens is None else family.with_image_tokens(vision, *self.image_tokens)


def _filled(change: RoiChange, *, threshold: float, gate_threshold: float | None) -> RoiChange:
    """With these where nothing was asked for."""
    return dataclasses.replace(
        change,
        threshold=threshold if change.threshold is None else change.threshold,
        gate_threshold=gate_threshold if change.gate_threshold is None else change.gate_threshold,
    )


def _require_used(roi: Roi, spec: ModelSpec) -> None:
    """Raise BadInput for parts of a policy that the model does not go by."""
    if not isinstance(roi, RoiChange):
        return
    if roi.gate_threshold is not None and (spec.rpn is None or not spec.rpn.has_gate):
        raise BadInput(
            f"a gate's threshold of {roi.gate_threshold:g} was given, and this model has no gate; leave it out",
            options=("gate_threshold",),
        )
    used = family_of(spec).policy_parts
    for name in _PARTS:
        value = getattr(roi, name)
        if value is not None and name not in used:
            raise BadInput(
                f"{name} is {value!r}; this model looks at one box around all cells above the threshold: leave it out",
                options=(name,),
            )
