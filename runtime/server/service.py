"""What the endpoints share: the session, its limits, and how a question is run."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

from sdrpn.families.registry import seen_of
from sdrpn.method.given_region import decide_region, require_box
from sdrpn.runtime.questions import AnswerOptions
from sdrpn.runtime.sampling import Sampling
from sdrpn.runtime.server.content import asked_in
from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.options import ServerOptions
from sdrpn.runtime.server.pictures import PictureSources
from sdrpn.runtime.server.replies import answer_extras, look_json, stages_json, usage_json
from sdrpn.runtime.server.requests import ChatRequest, ImageUrl, LookRequest
from sdrpn.runtime.session import Session

__all__ = ["Service"]


class Service:
    """Answers requests, each a coroutine that never blocks the event loop."""

    def __init__(self, session: Session, options: ServerOptions) -> None:
        self.options, self._session = options, session
        self._sources = PictureSources(options, session.open_picture)
        self.started = int(time.time())

    async def look(self, request: LookRequest) -> dict[str, Any]:
        """The reply of `POST /v1/look`."""
        self._require_model(request.model)
        session, questions = self._session, self._questions(request)
        if not request.roi.enabled:
            raise Fault(400, "roi.enabled is false; a look finds regions", param="roi.enabled")
        url = request.image.url if isinstance(request.image, ImageUrl) else request.image
        picture = await asyncio.to_thread(self._sources.opened, url)
        looks = await session.look_many_async(picture, questions, roi=request.roi.change())
        return {
            "id": f"look-{uuid4().hex}",
            "object": "look",
            "created": int(time.time()),
            "model": self.options.model,
            "image_wh": list(picture.size),
            "fit": seen_of(session.spec),
            "policy": self._policy_json(request),
            "looks": [look_json(look, request.map) for look in looks],
            "stages": stages_json(looks[0].timings),
        }

    async def chat(self, request: ChatRequest) -> dict[str, Any]:
        """The reply of `POST /v1/chat/completions` without `stream`."""
        self._require_model(request.model)
        asked, session = asked_in(request.messages), self._session
        picture = await asyncio.to_thread(self._sources.opened, asked.image.url)
        grid = session.spec.vision.grid(picture.size)
        if request.region is not None:
            require_box(request.region, picture.size)
        stream = session.stream_with(picture, asked.question, self._options_of(request, asked.image))
        answer = await stream.finish()
        return {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.options.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text, "refusal": None},
                    "finish_reason": answer.finish_reason,
                    "logprobs": None,
                }
            ],
            "usage": usage_json(answer),
            "sdrpn": answer_extras(answer, grid, seen_of(session.spec), request.map),
        }

    def models(self) -> dict[str, Any]:
        """The reply of `GET /v1/models`."""
        model = {"id": self.options.model, "object": "model", "created": self.started, "owned_by": "sdrpn"}
        return {"object": "list", "data": [model]}

    def _require_model(self, model: str | None) -> None:
        if model not in (None, "", self.options.model):
            raise Fault(
                404, f"the model {model!r} is not here; expected {self.options.model!r}", "model_not_found", "model"
            )

    def _questions(self, request: LookRequest) -> list[str]:
        if (request.question is None) == (request.questions is None):
            raise Fault(400, "expected either question, a text, or questions, a list of texts", param="questions")
        questions = [request.question] if request.question is not None else request.questions or []
        if len(questions) > self.options.most_questions:
            raise Fault(
                400,
                f"there are {len(questions)} questions; the limit is {self.options.most_questions}",
                param="questions",
            )
        return questions

    def _policy_json(self, request: LookRequest) -> dict[str, Any]:
        """By what the maps became boxes, for a client that decides again."""
        policy = request.roi.change().applied_to(self._session.policy)
        return {
            "threshold": policy.threshold,
            "upscale": policy.upscale,
            "max_ratio": policy.max_ratio,
            "min_cells": policy.min_cells,
            "max_share": policy.max_share,
        }

    def _options_of(self, request: ChatRequest, image: ImageUrl) -> AnswerOptions:
        session, roi = self._session, request.roi
        looks_again = roi.enabled and session.spec.rpn is not None and image.detail != "low"
        looks_again = looks_again and request.region is None  # a given region asks neither map nor gate
        most = request.max_completion_tokens or request.max_tokens
        most = most or min(self.options.usual_new_tokens, self.options.most_new_tokens)
        if most > self.options.most_new_tokens:
            raise Fault(400, f"max_tokens is {most}; the limit is {self.options.most_new_tokens}", param="max_tokens")
        if request.n != 1:
            raise Fault(400, f"n is {request.n}; expected 1", param="n")
        return AnswerOptions(
            roi=roi.change() if looks_again else None,
            max_new_tokens=most,
            sampling=Sampling(request.temperature or 0.0, request.top_p or 1.0, request.seed),
            decide=None if request.region is None else decide_region(request.region, session.spec.vision.grid),
        )
