"""From a checked request to the options of an answer: what is refused, and why. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdrpn.families.look_settings import LookSettings
from sdrpn.method.given_region import decide_region, require_box
from sdrpn.method.grids import cell_count
from sdrpn.method.policy import Roi, RoiChange
from sdrpn.method.spec import Vision
from sdrpn.runtime.questions import AnswerOptions, Budget
from sdrpn.runtime.sampling import Constraint, Sampling
from sdrpn.runtime.server.content import Asked
from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.options import ServerOptions
from sdrpn.runtime.server.pictures import largest_of_shape
from sdrpn.runtime.server.requests import ChatRequest, Extras, ImageUrl, RoiOptions
from sdrpn.runtime.server.stopping import StopTexts
from sdrpn.runtime.session import Session

__all__ = ["LookOf", "answer_options", "change_of", "check_chat", "look_of", "require_fitting", "roi_of", "stops_of"]

_MOST_STOPS, _MOST_STOP_CHARACTERS = 4, 256
_MOST_SEED = 2**63
# Crops of one answer, each of at most as many cells as the picture.
_MOST_CROPS = {"mask": 1, "bbox": 2}
_LEAST_ANSWER, _TEMPLATE_TOKENS = 16, 64


@dataclass(frozen=True)
class LookOf:
    """How a model looks at the pictures of a request. vision: the model's own with this budget."""

    roi: Roi
    budget: Budget
    vision: Vision


@dataclass(frozen=True)
class _Refused:
    param: str
    why: str


def check_chat(request: ChatRequest) -> None:
    """Raises Fault for what is not available here."""
    wishes = (
        (request.logprobs or request.top_logprobs, _Refused("logprobs", "log probabilities are not returned")),
        (request.logit_bias, _Refused("logit_bias", "logits are not changed")),
        (request.presence_penalty, _Refused("presence_penalty", "there are no penalties")),
        (request.frequency_penalty, _Refused("frequency_penalty", "there are no penalties")),
        (request.tools, _Refused("tools", "this model calls no tools")),
        (request.n not in (None, 1), _Refused("n", f"n is {request.n}; one answer is given")),
    )
    for wished, refused in wishes:
        if wished:
            raise Fault(
                400, f"{refused.param} is not available: {refused.why}; leave it out", "unsupported", refused.param
            )
    if request.stream_options is not None and not request.stream:
        raise Fault(400, "stream_options needs stream: true", param="stream_options")


def stops_of(request: ChatRequest) -> list[str]:
    """The texts that end the answer. Raises Fault for too many, or an empty one."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > _MOST_STOPS or any(not 0 < len(stop) <= _MOST_STOP_CHARACTERS for stop in stops):
        raise Fault(
            400,
            f"stop has {len(stops)} texts; expected at most {_MOST_STOPS}, each of 1 to {_MOST_STOP_CHARACTERS} "
            "characters",
            param="stop",
        )
    return stops


def roi_of(request: ChatRequest, images: Sequence[ImageUrl], session: Session) -> Roi:
    """How the model looks again; None: not."""
    if len(images) != 1 and (request.roi.enabled or request.region is not None):
        raise Fault(400, f"there are {len(images)} pictures; one alone is looked at again", "unsupported", "roi")
    if not images and (request.preset or request.image_tokens or request.resize):
        raise Fault(400, "there is no picture; leave preset, image_tokens and resize out", "unsupported")
    if session.spec.rpn is None:
        if request.roi.enabled or request.region is not None:
            raise Fault(400, "this model has no RPN, and looks once", "unsupported", "roi")
        return None
    enabled = request.roi.enabled
    if enabled is None:
        enabled = any(image.detail != "low" for image in images) or request.region is not None
    if not enabled and request.region is not None:
        raise Fault(400, "region needs a second look; leave roi.enabled out", param="region")
    change = change_of(request.roi, session)
    # A region that is given asks neither the gate nor the map whether to look again.
    return change if enabled and request.region is None else None


def change_of(roi: RoiOptions, session: Session) -> RoiChange:
    """What differs from the model's own policy. Raises BadInput for what no policy has, or this model has not."""
    rpn = session.spec.rpn
    if roi.gate_threshold is not None and (rpn is None or not rpn.has_gate):
        raise Fault(400, "this model has no gate; leave roi.gate_threshold out", "unsupported", "roi.gate_threshold")
    return roi.change()


def look_of(request: Extras, roi: Roi, session: Session) -> LookOf:
    """With the official figures of a preset. Raises BadInput for what this model cannot use."""
    asked = LookSettings(roi, request.preset, request.image_tokens, request.resize).settled(session.spec)
    return LookOf(asked.roi, Budget(asked.image_tokens, asked.resize), session.vision(asked.image_tokens, asked.resize))


def require_fitting(session: Session, vision: Vision, image_wh: tuple[int, int]) -> None:
    """Raises Fault 413 for a picture of more tokens than the context holds, with the largest that fits."""
    grid_of = vision.grid
    room = session.max_context - _TEMPLATE_TOKENS - _LEAST_ANSWER

    def fits(width: int, height: int) -> bool:
        return cell_count(grid_of((width, height)).hw) <= room

    if not fits(*image_wh) and fits(1, 1):
        width, height = largest_of_shape(image_wh, fits)
        raise Fault(
            413,
            f"the picture of {image_wh[0]}x{image_wh[1]} pixels has {cell_count(grid_of(image_wh).hw)} tokens, and the "
            f"context {session.max_context}: the largest of this shape is {width}x{height}",
            "image_too_large",
        )


def answer_options(
    request: ChatRequest,
    asked: Asked,
    session: Session,
    look: LookOf,
    images_wh: Sequence[tuple[int, int]],
    options: ServerOptions,
    constraint: Constraint | None,
) -> AnswerOptions:
    """Raises Fault or BadInput for what cannot be asked for."""
    stops, tokenizer = stops_of(request), session.tokenizer
    decide = None
    if request.region is not None:
        require_box(request.region, images_wh[0])
        decide = decide_region(request.region, look.vision.grid)
    ends = StopTexts(tokenizer, stops) if stops and tokenizer is not None else lambda token_id: False
    return AnswerOptions(
        roi=look.roi,
        max_new_tokens=_new_tokens(request, asked, session, look.vision, images_wh, options),
        sampling=Sampling.lenient(request.temperature, request.top_p, _seed(request.seed)),
        decide=decide,
        constraint=constraint,
        ends=ends,
        budget=look.budget,
        turns=asked.turns,
    )


def _new_tokens(
    request: ChatRequest,
    asked: Asked,
    session: Session,
    vision: Vision,
    images_wh: Sequence[tuple[int, int]],
    options: ServerOptions,
) -> int:
    """As many as were asked for; else the usual number, or what the context leaves whatever is cropped."""
    most = request.max_completion_tokens or request.max_tokens
    if most is None:
        cells = sum(cell_count(vision.grid(wh).hw) for wh in images_wh)
        crops = _MOST_CROPS[request.roi.upscale or session.policy.upscale] if len(images_wh) == 1 else 0
        left = session.max_context - cells * (1 + crops) - asked.text_bytes
        return max(_LEAST_ANSWER, min(options.usual_new_tokens, options.most_new_tokens, left - _TEMPLATE_TOKENS))
    if most > options.most_new_tokens:
        raise Fault(400, f"max_tokens is {most}; the limit is {options.most_new_tokens}", param="max_tokens")
    return most


def _seed(seed: int | None) -> int | None:
    """Clients may send a negative one."""
    return None if seed is None else seed % _MOST_SEED
