"""What the endpoints do: a question waits for its place, is opened, runs, and becomes a reply.

Every method is a coroutine of one event loop and never blocks it: pictures are read in threads, graphs run in the
scheduler's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sdrpn.families.registry import family_of, input_side_px, seen_of
from sdrpn.host.power import PowerMeter
from sdrpn.method.grids import ImageGrid
from sdrpn.method.policy import Roi, looking_policy
from sdrpn.runtime.answer import Answer
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.scheduler import Load
from sdrpn.runtime.server.about import About
from sdrpn.runtime.server.admission import Admission
from sdrpn.runtime.server.answering import (
    LookOf,
    answer_options,
    change_of,
    check_chat,
    look_of,
    require_fitting,
    roi_of,
    stops_of,
)
from sdrpn.runtime.server.connection import TimeLimit
from sdrpn.runtime.server.content import Asked, asked_in
from sdrpn.runtime.server.faults import Fault, shown
from sdrpn.runtime.server.metrics import Metrics
from sdrpn.runtime.server.models import LoadedModel, Models, Reopening
from sdrpn.runtime.server.notes import note
from sdrpn.runtime.server.options import ServerOptions
from sdrpn.runtime.server.pictures import PictureFile, PictureSources
from sdrpn.runtime.server.replies import Completion, answer_extras, look_json, stages_json
from sdrpn.runtime.server.requests import ChatRequest, Extras, ImageUrl, LookRequest
from sdrpn.runtime.server.stopping import TextCutter
from sdrpn.runtime.server.trial import TrialLimit
from sdrpn.runtime.session import Session
from sdrpn.runtime.stream import AsyncAnswerStream

__all__ = ["Service"]

# Beside those that are decoded, so many are opened and prepared.
_AHEAD = 2
_FETCHING, _OPENING = 8, 4  # threads


@dataclass(frozen=True)
class _Admitted:
    """A request that has its place."""

    model: LoadedModel
    look: LookOf
    pictures: tuple[Picture, ...]
    queued_s: float

    @property
    def session(self) -> Session:
        return self.model.session

    @property
    def grid(self) -> ImageGrid | None:
        """Over the one picture that is looked at again."""
        return self.look.vision.grid(self.pictures[0].size) if len(self.pictures) == 1 else None


class Service:
    """One server: its model, its queue, its figures."""

    def __init__(self, session: Session, options: ServerOptions, reopening: Reopening | None = None) -> None:
        """Args: reopening: as in `create_app`"""
        self.options, self.models = options, Models(session, reopening, TrialLimit(options.watchdog_s))
        self.admission = Admission(session.max_batch + _AHEAD, options.most_queue, options.picture_bytes)
        self._sources = PictureSources(options)
        self._fetching = ThreadPoolExecutor(_FETCHING, "sdrpn fetch")
        self._opening = ThreadPoolExecutor(_OPENING, "sdrpn pictures")
        self._power = PowerMeter() if session.on == "gpu" else None
        if self._power is not None:
            self._power.__enter__()
        about = About(options.model, lambda: self.models.current.session)
        self.metrics = Metrics(options.model, lambda: self.load, self.admission, self._power, about)
        self.started = int(time.time())

    @property
    def load(self) -> Load:
        """What the current model has to do."""
        return self.models.current.session.load

    @property
    def stuck_s(self) -> float | None:
        """How long a unit of work has run, if that is longer than any should; None: it goes on."""
        unit_s = self.running_s
        return unit_s if unit_s > self.options.watchdog_s else None

    @property
    def running_s(self) -> float:
        """How long the current unit of work has run, of the model that has the longest; 0: there is none."""
        return max(model.session.load.unit_s for model in self.models.answering)

    def end_stuck(self) -> None:
        """End the answers of every model whose current unit of work has run too long; called from any thread."""
        for model in self.models.answering:
            if model.session.load.unit_s > self.options.watchdog_s:
                model.session.cancel()

    def close(self) -> None:
        """Free threads, and the model if it is not the first one."""
        for threads in (self._fetching, self._opening):
            threads.shutdown(wait=False, cancel_futures=True)
        if self._power is not None:
            self._power.__exit__(None, None, None)
        self.models.close()

    def limit_of(self, request: Extras) -> TimeLimit:
        """How long a request may take."""
        most_s = self.options.timeout_s
        if request.timeout_s is None or request.timeout_s >= most_s:
            return TimeLimit(most_s)
        return TimeLimit(request.timeout_s, 408)

    async def look(self, request: LookRequest) -> dict[str, Any]:
        """The reply of `POST /v1/look`."""
        self._require_model(request.model)
        questions = self._questions(request)
        if request.roi.enabled is False:
            raise Fault(400, "roi.enabled is false; a look finds regions", param="roi.enabled")
        url = request.image.url if isinstance(request.image, ImageUrl) else request.image
        async with self._admitted([url], request, lambda session: change_of(request.roi, session)) as admitted:
            session, look = admitted.session, admitted.look
            looks = await session.look_many_async(
                admitted.pictures[0],
                questions,
                roi=look.roi,
                image_tokens=look.budget.image_tokens,
                resize=look.budget.resize,
            )
            self.metrics.looked(looks)
            note(looks=len(looks), boxes=sum(len(each.boxes) for each in looks), queued_s=round(admitted.queued_s, 6))
            policy = looking_policy(look.roi, session.policy)
            threshold = session.gate_threshold(look.roi)
            return {
                "id": f"look-{uuid4().hex}",
                "object": "look",
                "created": int(time.time()),
                "model": self.options.model,
                "system_fingerprint": admitted.model.fingerprint,
                "image_wh": list(admitted.pictures[0].size),
                "fit": seen_of(session.spec),
                "input_side_px": input_side_px(session.spec),
                "policy": {
                    "threshold": policy.threshold,
                    "upscale": policy.upscale,
                    "max_ratio": policy.max_ratio,
                    "min_cells": policy.min_cells,
                    "max_share": policy.max_share,
                    "gate_threshold": threshold,
                },
                "rules": family_of(session.spec).map_rules(session.spec, look.vision).to_dict(),
                "looks": [look_json(each, request.map, threshold) for each in looks],
                "stages": stages_json(looks[0].timings) | {"queued_s": round(admitted.queued_s, 6)},
            }

    async def answer(self, request: ChatRequest) -> Completion:
        """The whole answer to a chat."""
        asked = self._checked(request)
        async with self._asked(asked, request) as admitted:
            answer = await (await self._stream(request, asked, admitted)).finish()
            completion = self._completion(request, admitted)
            completion.text = _cut(answer.text, stops_of(request))
            self._finish(completion, answer, admitted, request)
            return completion

    async def events(self, request: ChatRequest) -> AsyncGenerator[tuple[str, Completion], None]:
        """Pieces of the answer, and what is known of it so far; the last piece, which is empty, ends it."""
        asked = self._checked(request)
        stops = stops_of(request)
        cutter = TextCutter(stops) if stops else None
        async with self._asked(asked, request) as admitted:
            stream, completion = await self._stream(request, asked, admitted), self._completion(request, admitted)
            async for piece in stream:
                text = piece if cutter is None else cutter.push(piece)
                if text:
                    completion.text += text
                    yield text, completion
            rest = "" if cutter is None else cutter.finish()
            if rest:
                completion.text += rest
                yield rest, completion
            self._finish(completion, stream.answer, admitted, request)
            yield "", completion

    async def reload(self) -> dict[str, Any]:
        """The reply of `POST /admin/reload`."""
        try:
            model = await self.models.reload()
        except Fault:
            self.metrics.reloaded("failed")
            raise
        self.metrics.reloaded("done")
        return {
            "object": "reload",
            "model": self.options.model,
            "system_fingerprint": model.fingerprint,
            "generation": model.generation,
        }

    def model_list(self) -> dict[str, Any]:
        """The reply of `GET /v1/models`."""
        session = self.models.current.session
        model = {
            "id": self.options.model,
            "object": "model",
            "created": self.started,
            "owned_by": "sdrpn",
            "max_model_len": session.max_context,
        }
        return {"object": "list", "data": [model]}

    def _checked(self, request: ChatRequest) -> Asked:
        self._require_model(request.model)
        check_chat(request)
        stops_of(request)
        return asked_in(request.messages, self.options.most_images)

    def _asked(self, asked: Asked, request: ChatRequest) -> AbstractAsyncContextManager[_Admitted]:
        urls = [image.url for image in asked.images]
        return self._admitted(urls, request, lambda session: roi_of(request, asked.images, session))

    @asynccontextmanager
    async def _admitted(
        self, urls: Sequence[str], request: Extras, roi: Callable[[Session], Roi]
    ) -> AsyncIterator[_Admitted]:
        """A place, with the pictures opened. Args: roi: how such a model is to look again."""
        loop = asyncio.get_running_loop()
        files: list[PictureFile] = []
        for url in urls:
            threads = self._fetching if self._sources.is_slow(url) else self._opening
            files.append(await loop.run_in_executor(threads, self._sources.read, url))
        start, size_bytes = loop.time(), sum(file.size_bytes for file in files)
        async with self.admission.place(size_bytes, is_batch=request.priority == "batch"):
            queued_s = loop.time() - start
            with self.models.used() as model:
                look = look_of(request, roi(model.session), model.session)
                pictures: list[Picture] = []
                for file in files:
                    picture = await loop.run_in_executor(self._opening, model.session.open_picture, file.data)
                    require_fitting(model.session, look.vision, picture.size)
                    pictures.append(picture)
                yield _Admitted(model, look, tuple(pictures), queued_s)

    async def _stream(self, request: ChatRequest, asked: Asked, admitted: _Admitted) -> AsyncAnswerStream:
        constraint = None
        if request.response_format is not None:
            loop, grammars = asyncio.get_running_loop(), admitted.model.grammars
            constraint = await loop.run_in_executor(self._opening, grammars.constraint, request.response_format)
        session, sizes = admitted.session, [picture.size for picture in admitted.pictures]
        options = answer_options(request, asked, session, admitted.look, sizes, self.options, constraint)
        return session.stream_with(admitted.pictures, asked.question, options)

    def _completion(self, request: ChatRequest, admitted: _Admitted) -> Completion:
        return Completion(self.options.model, admitted.model.fingerprint)

    def _finish(self, completion: Completion, answer: Answer, admitted: _Admitted, request: ChatRequest) -> None:
        self.metrics.answered(answer, admitted.queued_s)
        note(
            prompt_tokens=answer.tokens.prompt + answer.tokens.roi,
            completion_tokens=answer.tokens.generated,
            cached_tokens=answer.tokens.cached,
            finish_reason=answer.finish_reason,
            boxes=len(answer.boxes_xyxy_px),
            queued_s=round(admitted.queued_s + answer.timings.waited_s, 6),
            first_token_s=round(answer.timings.first_token_s, 6),
        )
        extras = answer_extras(answer, admitted.grid, seen_of(admitted.session.spec), request.map)
        extras["stages"]["queued_s"] = round(admitted.queued_s, 6)
        completion.finish(answer, extras)

    def _require_model(self, model: str | None) -> None:
        if model not in (None, "", self.options.model):
            raise Fault(
                404,
                f"the model {shown(model)} is not here; expected {self.options.model!r}",
                "model_not_found",
                "model",
            )

    def _questions(self, request: LookRequest) -> list[str]:
        if (request.question is None) == (request.questions is None):
            raise Fault(400, "expected either question, a text, or questions, a list of texts", param="questions")
        questions = [request.question] if request.question is not None else request.questions or []
        if len(questions) > self.options.most_questions:
            most = self.options.most_questions
            raise Fault(400, f"there are {len(questions)} questions; the limit is {most}", param="questions")
        return questions


def _cut(text: str, stops: list[str]) -> str:
    """The text before the first stop text."""
    if not stops:
        return text
    cutter = TextCutter(stops)
    return cutter.push(text) + cutter.finish()
