"""The tools as a server of the Model Context Protocol, with the official library. Runs no model itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.types import CallToolResult, ContentBlock, ImageContent, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import Field, ValidationError

from sdrpn.errors import SdrpnError
from sdrpn.host.escaping import one_line
from sdrpn.method.preset import Task
from sdrpn.runtime.agent.results import Answered, Box, CroppedPart, LookedAt
from sdrpn.runtime.agent.tools import MOST_QUESTIONS, MOST_SIDE_PX, Found, PictureTools, Shown, ToolResult

__all__ = ["agent_server"]

NAME = "sdrpn"
_INSTRUCTIONS = """\
Tools that find and read details in large pictures. `look` says where in a picture a question points, as boxes in its
pixels, without words; `ask` answers the question and looks again at that region in full resolution; `crop` returns a
part of a picture at full resolution, for you to see. To read something small: `look` for it, then `crop` its box (a
margin of 0.2 helps) or `ask` about it, with that `region`. Pictures are named by paths below the server's image root;
boxes are x1, y1, x2, y2 in pixels of the upright picture."""

_READS_ONLY = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
ImageName = Annotated[str, Field(description="path of a picture below the image root, such as street.jpg")]
Threshold = Annotated[
    float | None,
    Field(gt=-1, lt=1, description="cells of the map above this become regions; leave out for the model's own"),
]
ShowLook = Annotated[
    Shown,
    Field(description="pictures to return: overlay: the map and boxes drawn over it; crops: each region; none"),
]
ShowAnswer = Annotated[
    Shown,
    Field(description="pictures to return: overlay: where the model looked; crops: what it saw in detail; none"),
]
Questions = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(
        min_length=1,
        max_length=MOST_QUESTIONS,
        description="what to look for; all about this picture, which is read once",
    ),
]
AskedKind = Annotated[
    Task | None,
    Field(description="kind of question, for models whose pictures have a budget: its official figures are used"),
]
Tokens = Annotated[
    tuple[int, int] | None,
    Field(description="for such models: the least and the most image tokens of the picture, and of a crop"),
]
Margin = Annotated[float, Field(ge=0, le=1, description="widens the box on each side by this share of its size")]
MaxSide = Annotated[int, Field(ge=1, le=MOST_SIDE_PX, description="a larger crop is scaled down to this, in pixels")]
MaxTokens = Annotated[int, Field(ge=1, le=1024, description="maximum length of the answer, in tokens")]
Region = Annotated[
    Box | None,
    Field(description="x1, y1, x2, y2 in pixels: look again there; leave out to let the model find the region"),
]
CropBox = Annotated[Box, Field(description="x1, y1, x2, y2 in pixels of the upright picture, upper bounds exclusive")]


class _OneLineServer(MCPServer[Any]):
    """An `MCPServer` whose tool errors are one line, those of wrong arguments included."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError:  # which the library logs
            raise
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(_wrong_arguments(error.__cause__)) from None
            raise ToolError(str(error).removeprefix(f"Error executing tool {name}: ")) from error.__cause__


def agent_server(tools: PictureTools, *, version: str) -> MCPServer[Any]:
    """A server with the tools `look`, `ask` and `crop`; its transports are in `transports.py`."""
    server = _OneLineServer(
        NAME, title="Details in large pictures", instructions=_INSTRUCTIONS, version=version, log_level="WARNING"
    )

    @server.tool(title="Find where a question points", annotations=_READS_ONLY)
    async def look(
        image: ImageName,
        questions: Questions,
        threshold: Threshold = None,
        show: ShowLook = "overlay",
        preset: AskedKind = None,
        image_tokens: Tokens = None,
    ) -> Annotated[CallToolResult, LookedAt]:
        """Find the regions of a picture that questions are about, without answering them: fast, and exact in pixels."""
        return await _result(tools.look(image, questions, threshold, show, preset, image_tokens))

    @server.tool(title="Answer a question about a picture", annotations=_READS_ONLY)
    async def ask(
        image: ImageName,
        question: Annotated[str, Field(min_length=1, description="what to ask")],
        threshold: Threshold = None,
        region: Region = None,
        max_new_tokens: MaxTokens = 64,
        show: ShowAnswer = "none",
        preset: AskedKind = None,
        image_tokens: Tokens = None,
    ) -> Annotated[CallToolResult, Answered]:
        """Answer a question about a picture, after a second look at the region in question in full resolution."""
        return await _result(tools.ask(image, question, threshold, region, max_new_tokens, show, preset, image_tokens))

    @server.tool(title="Cut out a part of a picture", annotations=_READS_ONLY)
    async def crop(
        image: ImageName, box: CropBox, margin: Margin = 0.0, max_side_px: MaxSide = 1024
    ) -> Annotated[CallToolResult, CroppedPart]:
        """Return a part of a picture at full resolution, for reading what is small in the whole."""
        return await _result(tools.crop(image, box, margin, max_side_px))

    return server


async def _result(work: Awaitable[ToolResult[Found]]) -> CallToolResult:
    try:
        done = await work
    except SdrpnError as error:
        raise ToolError(one_line(error)) from error
    found = json.loads(json.dumps(asdict(done.found)))  # type: ignore[call-overload]  # every result is a dataclass
    content: list[ContentBlock] = [TextContent(type="text", text=json.dumps(found, ensure_ascii=False))]
    content += [
        ImageContent(type="image", data=base64.b64encode(picture.data).decode("ascii"), mime_type=picture.mime_type)
        for picture in done.pictures
    ]
    return CallToolResult(content=content, structured_content=found)


def _wrong_arguments(error: ValidationError) -> str:
    """Names and reasons, without the values, which may be long."""
    faults = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'the arguments'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return one_line("; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else ""))
