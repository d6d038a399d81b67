"""The JSON of requests, checked by pydantic. Knows neither pictures nor models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdrpn.families.family import Resize
from sdrpn.method.policy import RoiChange
from sdrpn.method.preset import Task

__all__ = ["Box", "ChatRequest", "Extras", "ImageUrl", "LookRequest", "MapForm", "ResponseFormat", "RoiOptions"]

MapForm = Literal["none", "png", "float16", "float32"]
Priority = Literal["interactive", "batch"]
Box = tuple[int, int, int, int]


class Strict(BaseModel):
    """What is not known is refused: a misspelled option would silently not be used."""

    model_config = ConfigDict(extra="forbid")


class RoiOptions(Strict):
    """How the map of a question becomes regions; what is left out is the model's own."""

    enabled: bool | None = Field(default=None, description="false: look once, without crops")
    threshold: float | None = Field(default=None, description="cells of the map above it become regions, 0 to 1")
    gate_threshold: float | None = Field(default=None, description="of models with a gate: below it they look once")
    upscale: Literal["mask", "bbox"] | None = Field(default=None, description="one crop around all, or one for each")
    max_ratio: float | None = Field(default=None, description="with bbox: most tokens per side for each cell")
    min_cells: int | None = Field(default=None, description="regions with fewer cells are ignored")
    max_share: float | None = Field(default=None, description="regions with a larger share of the map are ignored")

    def change(self) -> RoiChange:
        """As sessions take it. Raises BadInput for what no policy has."""
        return RoiChange(
            self.threshold, self.upscale, self.max_ratio, self.min_cells, self.max_share, self.gate_threshold
        )


class ImageUrl(Strict):
    """A picture: `data:image/...;base64,...`, or what the server was allowed to read."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")  # what a client sends back of an answer has more entries

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(Strict):
    """How an answer is streamed."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SchemaFormat(Strict):
    """A JSON schema by name."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the answer is: text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class Extras(Strict):
    """What this server understands beyond OpenAI's interface."""

    roi: RoiOptions = RoiOptions()
    preset: Task | None = Field(
        default=None,
        description="of models whose pictures have a budget: the official figures for such questions, where no others "
        "are given",
    )
    image_tokens: tuple[int, int] | None = Field(
        default=None, description="of such models: the least and the most of a picture, and of a crop"
    )
    resize: Resize | None = Field(
        default=None, description="of such models: official: twice, as the official evaluation does it"
    )
    map: MapForm = Field(default="none", description="whether the reply has the map, and how")
    priority: Priority = Field(default="interactive", description="batch: after all interactive ones that wait")
    timeout_s: float | None = Field(default=None, gt=0, description="an answer that takes longer is ended with 408")


class Ignored(Strict):
    """What clients send and nothing here depends on."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatRequest(Extras, Ignored):
    """The body of `POST /v1/chat/completions`."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    region: Box | None = Field(default=None, description="x1, y1, x2, y2 in pixels of the picture, to look at again")
    # Refused with a reason where they ask for something.
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None


class LookRequest(Extras, Ignored):
    """The body of `POST /v1/look`."""

    model: str | None = None
    image: str | ImageUrl
    question: str | None = None
    questions: list[str] | None = Field(default=None, min_length=1)
