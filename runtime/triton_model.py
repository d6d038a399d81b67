"""A bundle as a model of Triton's Python backend, which imports it through `model.py` of a repository.

Requests are answered together, in this session's own batches: Triton's are off. The model is decoupled: a request that
asks for a stream gets a response for each piece of text, another one a single response. Triton 24.04 and later run it,
with this package in the Python of its backend. It needs a module that Triton
provides, and imports nothing else of it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from sdrpn.errors import BadInput, SdrpnError
from sdrpn.families.look_settings import LookSettings
from sdrpn.method.policy import RoiChange
from sdrpn.runtime.answer import Answer
from sdrpn.runtime.session import Session

__all__ = ["INPUTS", "OUTPUTS", "TritonModel"]

# Name -> Triton's type, dims, whether it may be left out. `sdrpn export-triton` writes them into the configuration.
INPUTS: Mapping[str, tuple[str, tuple[int, ...], bool]] = {
    "image": ("TYPE_STRING", (1,), False),  # a picture file's bytes
    "question": ("TYPE_STRING", (1,), False),
    "max_new_tokens": ("TYPE_INT32", (1,), True),
    "threshold": ("TYPE_FP32", (1,), True),
    "preset": ("TYPE_STRING", (1,), True),
    "image_tokens": ("TYPE_INT32", (2,), True),  # the least and the most
    "stream": ("TYPE_BOOL", (1,), True),
}
OUTPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "text": ("TYPE_STRING", (1,)),  # the answer; in a stream the next piece
    "finish_reason": ("TYPE_STRING", (1,)),  # stop or length; empty in a stream until its last response
    "token_ids": ("TYPE_INT32", (-1,)),
    "boxes_xyxy_px": ("TYPE_FP32", (-1, 4)),
}
_MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class _Question:
    image: bytes
    question: str
    max_new_tokens: int
    look: LookSettings
    stream: bool


class TritonModel:
    """What Triton calls: `initialize`, `execute` for each batch of requests, `finalize`."""

    def __init__(self) -> None:
        self._triton: Any = None
        self._session: Session | None = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle that the configuration's parameters name.

        Args: args: as Triton passes them: model_config (JSON), model_repository, model_version, model_instance_kind,
            model_instance_device_id
        """
        self._triton = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        # A relative path is one in the repository, so that it can be moved.
        bundle = Path(args["model_repository"]) / parameters["bundle"]
        on_gpu = args["model_instance_kind"] == "GPU"
        self._session = Session.open(
            bundle,
            backend=parameters["backend"],
            target=parameters.get("target"),
            device=int(args["model_instance_device_id"]) if on_gpu else None,
            max_batch=int(parameters["max_batch"]) if "max_batch" in parameters else None,
            require_signed=[parameters["require_signed"]] if "require_signed" in parameters else (),
        )

    async def execute(self, requests: Sequence[Any]) -> None:
        """Answer all requests, each through its own sender."""
        await asyncio.gather(*(self._respond(request) for request in requests))

    def finalize(self) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()

    async def _respond(self, request: Any) -> None:
        """Every request ends with the final flag, also one that failed or was cancelled."""
        sender, triton = request.get_response_sender(), self._triton
        response = None
        try:
            response = await self._answered(_question(triton, request), sender)
        except BadInput as error:
            response = self._failed(error, triton.TritonError.INVALID_ARG)
        except (SdrpnError, OSError) as error:
            response = self._failed(error, triton.TritonError.INTERNAL)
        finally:
            if response is None:
                sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _answered(self, question: _Question, sender: Any) -> Any:
        """The last response; None for a request that was cancelled."""
        assert self._session is not None
        look = question.look.settled(self._session.spec)
        stream = self._session.stream_async(
            question.image,
            question.question,
            roi=look.roi,
            max_new_tokens=question.max_new_tokens,
            image_tokens=look.image_tokens,
        )
        # Closed when a cancelled request leaves the loop early, which ends the answer.
        async with aclosing(cast("AsyncGenerator[str, None]", aiter(stream))) as pieces:
            async for piece in pieces:
                if sender.is_cancelled():
                    return None
                if question.stream:
                    sender.send(self._response(piece))
        answer = stream.answer
        return self._response("" if question.stream else answer.text, answer)

    def _response(self, text: str, answer: Answer | None = None) -> Any:
        reason = "" if answer is None else answer.finish_reason
        tokens = () if answer is None else answer.token_ids
        boxes = () if answer is None else answer.boxes_xyxy_px
        values = {
            "text": np.array([text.encode()], object),
            "finish_reason": np.array([reason.encode()], object),
            "token_ids": np.array(tokens, np.int32),
            "boxes_xyxy_px": np.array(boxes, np.float32).reshape(-1, 4),
        }
        tensors = [self._triton.Tensor(name, value) for name, value in values.items()]
        return self._triton.InferenceResponse(output_tensors=tensors)

    def _failed(self, error: Exception, code: int) -> Any:
        message = " ".join(str(error).split())
        return self._triton.InferenceResponse(error=self._triton.TritonError(message, code))


def _question(triton: Any, request: Any) -> _Question:
    """Read a request's tensors. Raises BadInput."""
    threshold, image_tokens = _value(triton, request, "threshold"), _values(triton, request, "image_tokens")
    change = RoiChange(threshold=None if threshold is None else float(threshold))
    budget = None if image_tokens is None else (int(image_tokens[0]), int(image_tokens[1]))
    tokens = _value(triton, request, "max_new_tokens")
    return _Question(
        image=_value(triton, request, "image"),
        question=_text(triton, request, "question") or "",
        max_new_tokens=_MAX_NEW_TOKENS if tokens is None else int(tokens),
        look=LookSettings(change, _text(triton, request, "preset"), budget),
        stream=bool(_value(triton, request, "stream")),
    )


def _text(triton: Any, request: Any, name: str) -> str | None:
    value = _value(triton, request, name)
    try:
        return None if value is None else str(value.decode())
    except UnicodeDecodeError as error:
        raise BadInput(f"{name} is not UTF-8 text ({error.reason}); expected text") from error


def _value(triton: Any, request: Any, name: str) -> Any:
    """The one element of an input; None for one that was left out and may be."""
    values = _values(triton, request, name)
    return None if values is None else values[0]


def _values(triton: Any, request: Any, name: str) -> Any:
    """The elements of an input, as many as it has; None for one that was left out and may be."""
    _, (count,), optional = INPUTS[name]
    expected = "one element" if count == 1 else f"{count} elements"
    tensor = triton.get_input_tensor_by_name(request, name)
    if tensor is None:
        if optional:
            return None
        raise BadInput(f"input {name} is missing; expected {expected}")
    values = tensor.as_numpy().reshape(-1)
    if values.size != count:
        raise BadInput(f"input {name} has {values.size} elements; expected {expected}")
    return values
