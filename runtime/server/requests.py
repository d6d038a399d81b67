"""The JSON of requests, checked by pydantic. Knows neither pictures nor models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdrpn.errors import BadInput
from sdrpn.method.policy import RoiChange

__all__ = ["ChatRequest", "LookRequest", "MapForm", "RoiOptions"]

MapForm = Literal["none", "png", "float16"]
Box = tuple[int, int, int, int]


class _Strict(BaseModel):
    """What is not known is refused: a misspelled option would silently not be used."""

    model_config = ConfigDict(extra="forbid")


class RoiOptions(_Strict):
    """How the map of a question becomes regions; what is left out is the model's own."""

    enabled: bool = Field(default=True, description="false: look once, without crops")
    threshold: float | None = Field(default=None, description="cells of the map above it become regions, 0 to 1")
    gate_threshold: float | None = Field(default=None, description="of models with a gate; refused by others")
    upscale: Literal["mask", "bbox"] | None = Field(
        default=None, description="one crop around all regions, or one for each"
    )
    max_ratio: float | None = Field(default=None, description="with bbox: most tokens per side for each cell")
    min_cells: int | None = Field(default=None, description="regions with fewer cells are ignored")
    max_share: float | None = Field(default=None, description="regions with a larger share of the map are ignored")

    def change(self) -> RoiChange:
        """As sessions take it. Raises BadInput for what no policy has."""
        if self.gate_threshold is not None:
            raise BadInput("roi.gate_threshold was given, and this model has no gate; leave it out")
        return RoiChange(self.threshold, self.upscale, self.max_ratio, self.min_cells, self.max_share)


class ImageUrl(_Strict):
    """A picture: `data:image/...;base64,...`, or what the server was allowed to read."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")  # what a client sends back of an answer has more entries

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(_Strict):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extras(_Strict):
    """What this server understands beyond OpenAI's interface."""

    roi: RoiOptions = RoiOptions()
    map: MapForm = Field(default="none", description="whether the reply has the map, and how")


class ChatRequest(Extras):
    """The body of `POST /v1/chat/completions`."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int = 1
    seed: int | None = Field(default=None, ge=0)
    stream: bool = False
    stream_options: StreamOptions | None = None
    region: Box | None = Field(default=None, description="x1, y1, x2, y2 in pixels of the picture, to look at again")
    # They change nothing here, or nothing that a client sees.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class LookRequest(Extras):
    """The body of `POST /v1/look`."""

    model: str | None = None
    image: str | ImageUrl
    question: str | None = None
    questions: list[str] | None = Field(default=None, min_length=1)
