"""OpenAI's newer interface, `POST /v1/responses`, in its basic form: the same answers in other JSON, stored nowhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdrpn.runtime.server.faults import Fault
from sdrpn.runtime.server.replies import Completion
from sdrpn.runtime.server.requests import Box, ChatRequest, Extras, Ignored, Strict

__all__ = ["ResponsesRequest", "chat_of", "response_events", "response_json"]


class InputText(Strict):
    """A piece of text."""

    type: Literal["input_text"]
    text: str


class OutputText(BaseModel):
    """A piece of an answer that is sent back."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["output_text"]
    text: str


class InputImage(Strict):
    """A picture."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


Content = Annotated[InputText | OutputText | InputImage, Field(discriminator="type")]


class InputMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")  # an answer that is sent back has more entries

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content]


class TextFormat(BaseModel):
    """What the answer is."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """How the answer is written."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Extras, Ignored):
    """The body of `POST /v1/responses`."""

    model: str | None = None
    input: str | list[InputMessage]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    text: TextOptions | None = None
    region: Box | None = None
    truncation: Literal["auto", "disabled"] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    # Refused with a reason where they ask for something.
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


def chat_of(request: ResponsesRequest) -> ChatRequest:
    """The same question as a chat. Raises Fault for what is not available here."""
    for name, why in (
        ("previous_response_id", "no response is stored; send the whole conversation"),
        ("conversation", "no conversation is stored; send the whole of it"),
        ("background", "answers are given at once"),
    ):
        if getattr(request, name):
            raise Fault(400, f"{name} is not available: {why}", "unsupported", name)
    messages: list[dict[str, object]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    inputs = request.input if isinstance(request.input, list) else [InputMessage(role="user", content=request.input)]
    messages += [{"role": each.role, "content": _chat_content(each)} for each in inputs]
    form = request.text.format if request.text is not None else None
    try:
        return ChatRequest.model_validate(
            {
                "model": request.model,
                "messages": messages,
                "max_completion_tokens": request.max_output_tokens,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "response_format": None if form is None else _chat_format(form),
                "region": request.region,
                "roi": request.roi,
                "preset": request.preset,
                "image_tokens": request.image_tokens,
                "resize": request.resize,
                "map": request.map,
                "priority": request.priority,
                "timeout_s": request.timeout_s,
                "tools": request.tools,
            }
        )
    except ValidationError as error:
        raise Fault(400, str(error.errors()[0]["msg"]), "invalid_request") from error


def response_json(request: ResponsesRequest, completion: Completion, *, is_complete: bool = True) -> dict[str, Any]:
    """The whole reply, or what is known of it before the answer is complete."""
    usage, cut_off = completion.usage, completion.finish_reason == "length"
    status = "in_progress" if not is_complete else "incomplete" if cut_off else "completed"
    return {
        "id": _id("resp", completion),
        "object": "response",
        "created_at": completion.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": completion.model,
        "output": [_item(completion, status)] if is_complete else [],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": request.temperature or 0.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": request.top_p or 1.0,
        "truncation": "disabled",
        "usage": None
        if usage is None
        else {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
        "sdrpn": completion.extras,
    }


async def response_events(
    request: ResponsesRequest, pieces: AsyncGenerator[tuple[str, Completion], None]
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed response, numbered. `pieces`: as `Service.events` gives them; closed at the end."""
    number = 0
    try:
        async for event in _events(request, pieces):
            yield {**event, "sequence_number": number}
            number += 1
    finally:
        await pieces.aclose()


async def _events(
    request: ResponsesRequest, pieces: AsyncIterator[tuple[str, Completion]]
) -> AsyncIterator[dict[str, Any]]:
    begun = False
    async for piece, completion in pieces:
        place = {"item_id": _id("msg", completion), "output_index": 0, "content_index": 0}
        if not begun:
            begun = True
            for kind in ("created", "in_progress"):
                known = response_json(request, completion, is_complete=False)
                yield {"type": f"response.{kind}", "response": known}
            item = _item(completion, "in_progress") | {"content": []}
            yield {"type": "response.output_item.added", "output_index": 0, "item": item}
            yield {"type": "response.content_part.added", **place, "part": _part("")}
        if piece:
            yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
            continue
        whole = response_json(request, completion)
        yield {"type": "response.output_text.done", **place, "text": completion.text, "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": _part(completion.text)}
        yield {"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]}
        yield {"type": f"response.{whole['status']}", "response": whole}


def _chat_content(message: InputMessage) -> object:
    if isinstance(message.content, str):
        return message.content
    return [
        {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}
        if isinstance(part, InputImage)
        else {"type": "text", "text": part.text}
        for part in message.content
    ]


def _chat_format(form: TextFormat) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": form.type, "json_schema": {"name": form.name or "answer", "schema": form.schema_ or {}}}


def _item(completion: Completion, status: str) -> dict[str, Any]:
    return {
        "type": "message",
        "id": _id("msg", completion),
        "status": status,
        "role": "assistant",
        "content": [_part(completion.text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _id(kind: str, completion: Completion) -> str:
    return f"{kind}_{completion.id.partition('-')[2] or uuid4().hex}"
