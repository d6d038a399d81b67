"""OpenAI's own client against a server: whole answers and streams, in threads and in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.tags import shipped_scene
from tests.runtime.server.serving import QUESTION, Server, chat_body, scene_url, serving

SCENE = shipped_scene()
OTHER = "what is the code on the red tag ?"
QUESTIONS = (QUESTION, OTHER, "what shape is the yellow tag ?", "list the codes of the tags .")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Session.open("demo", threads=1) as session, serving(session, ServerOptions(model="demo")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def asked(question: str = QUESTION, **entries: Any) -> dict[str, Any]:
    return chat_body(scene_url(), question, **{"max_tokens": 12, **entries})


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


class TestWhole:
    def test_an_answer(self, client: openai.OpenAI) -> None:
        reply = client.chat.completions.create(**asked())
        assert reply.choices[0].message.content == SCENE.expected
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        assert reply.usage.prompt_tokens_details.cached_tokens is not None
        assert reply.model_extra is not None
        assert reply.model_extra["sdrpn"]["boxes"]

    def test_models(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["demo"]

    def test_extras_go_in_the_extra_body(self, client: openai.OpenAI) -> None:
        reply = client.chat.completions.create(**asked(), extra_body={"roi": {"threshold": 0.99}, "map": "png"})
        assert reply.model_extra is not None
        extras = reply.model_extra["sdrpn"]
        assert extras["boxes"] == []
        assert extras["map"]["encoding"] == "png"

    def test_a_short_answer_is_cut_off(self, client: openai.OpenAI) -> None:
        reply = client.chat.completions.create(**asked(max_tokens=1))
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 1

    def test_a_conversation_goes_on(self, client: openai.OpenAI) -> None:
        """What was said before is part of the prompt, and the picture's place in it is kept."""
        first = asked()["messages"]
        again = {"role": "user", "content": OTHER}
        messages = [*first, {"role": "assistant", "content": SCENE.expected}, again]
        replies = [client.chat.completions.create(**{**asked(), "messages": each}) for each in (first, messages)]
        prompts = [reply.usage.prompt_tokens for reply in replies if reply.usage is not None]
        assert prompts[1] > prompts[0]
        assert replies[1].choices[0].message.content

    def test_a_text_without_a_picture_gets_one_look(self, client: openai.OpenAI) -> None:
        said = [{"role": "user", "content": QUESTION}]
        reply = client.chat.completions.create(**{**asked(), "messages": said})
        assert reply.model_extra is not None
        extras = reply.model_extra["sdrpn"]
        assert (extras["boxes"], extras["image_wh"], extras["map"]) == ([], None, None)
        assert reply.usage is not None
        assert reply.usage.prompt_tokens < 144

    def test_several_pictures_are_refused_by_a_model_that_takes_one(self, client: openai.OpenAI) -> None:
        (message,) = asked()["messages"]
        picture, text = message["content"]
        said = [{"role": "user", "content": [picture, picture, text]}]
        with pytest.raises(openai.BadRequestError, match="places 1 images of 2"):
            client.chat.completions.create(**{**asked(), "messages": said})

    @pytest.mark.parametrize(
        ("roles", "message"),
        [("ua", "last message is the assistant's"), ("uu", "expected the assistant"), ("usu", "system")],
    )
    def test_a_conversation_in_another_order_is_refused(self, client: openai.OpenAI, roles: str, message: str) -> None:
        (question,) = asked()["messages"]
        names = {"a": "assistant", "u": "user", "s": "system"}
        rest = [{"role": names[role], "content": "so"} for role in roles[1:]]
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(**{**asked(), "messages": [question, *rest]})

    def test_an_error_is_the_clients_own(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="logprobs is not available"):
            client.chat.completions.create(**asked(), logprobs=True)
        with pytest.raises(openai.NotFoundError, match="is not here"):
            client.chat.completions.create(**asked(model="other"))

    def test_sampling_follows_the_seed(self, client: openai.OpenAI) -> None:
        def sampled(seed: int) -> str:
            body = asked(temperature=2.0, top_p=1.0, seed=seed, max_tokens=12)
            return str(client.chat.completions.create(**body).choices[0].message.content)

        assert sampled(3) == sampled(3)
        assert len({sampled(seed) for seed in range(6)}) > 1

    @pytest.mark.parametrize("stop", ["7", ["7", "3"], [SCENE.expected[1:3]]])
    def test_a_stop_text_ends_it(self, client: openai.OpenAI, stop: str | list[str]) -> None:
        reply = client.chat.completions.create(**asked(stop=stop))
        content = reply.choices[0].message.content
        whole, stops = SCENE.expected, [stop] if isinstance(stop, str) else stop
        places = [whole.find(text) for text in stops if text in whole]
        assert content == (whole[: min(places)] if places else whole)
        assert reply.choices[0].finish_reason == "stop"


class TestStreams:
    def test_the_pieces_are_the_answer(self, client: openai.OpenAI) -> None:
        chunks = list(client.chat.completions.create(**asked(), stream=True, stream_options={"include_usage": True}))
        assert text_of(chunks) == SCENE.expected
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-2].model_extra is not None
        assert chunks[-2].model_extra["sdrpn"]["boxes"]
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        whole = client.chat.completions.create(**asked()).usage
        assert whole is not None
        assert chunks[-1].usage.completion_tokens == whole.completion_tokens
        assert chunks[-1].usage.prompt_tokens == whole.prompt_tokens

    def test_without_usage_the_last_piece_ends_it(self, client: openai.OpenAI) -> None:
        chunks = list(client.chat.completions.create(**asked(), stream=True))
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert all(chunk.usage is None for chunk in chunks)
        assert len(chunks) > 3

    def test_a_stop_text_is_never_sent(self, client: openai.OpenAI) -> None:
        stop = SCENE.expected[1:3]
        chunks = list(client.chat.completions.create(**asked(stop=stop), stream=True))
        assert text_of(chunks) == SCENE.expected[:1]
        assert chunks[-1].choices[0].finish_reason == "stop"

    def test_an_error_before_the_first_piece_is_no_stream(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="the bundle has 1024") as found:
            client.chat.completions.create(**asked("what " * 2000), stream=True)
        assert found.value.code == "context_length_exceeded"

    def test_an_event_loop(self, server: Server) -> None:
        async def both() -> tuple[str | None, str]:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
                whole = await client.chat.completions.create(**asked())
                stream = await client.chat.completions.create(**asked(), stream=True)
                return whole.choices[0].message.content, text_of([chunk async for chunk in stream])

        assert asyncio.run(both()) == (SCENE.expected, SCENE.expected)


def respond(**entries: Any) -> dict[str, Any]:
    content = [{"type": "input_image", "image_url": scene_url()}, {"type": "input_text", "text": QUESTION}]
    return {"model": "demo", "input": [{"role": "user", "content": content}], "max_output_tokens": 12, **entries}


class TestResponses:
    def test_an_answer(self, client: openai.OpenAI) -> None:
        reply = client.responses.create(**respond())
        assert reply.output_text == SCENE.expected
        assert reply.status == "completed"
        assert reply.usage is not None
        whole = client.chat.completions.create(**asked()).usage
        assert whole is not None
        assert reply.usage.input_tokens == whole.prompt_tokens
        assert reply.usage.output_tokens == whole.completion_tokens
        assert reply.usage.input_tokens_details.cached_tokens >= 0
        assert reply.model_extra is not None
        assert reply.model_extra["sdrpn"]["boxes"]

    def test_a_short_answer_is_incomplete(self, client: openai.OpenAI) -> None:
        reply = client.responses.create(**respond(max_output_tokens=1))
        assert reply.status == "incomplete"
        assert reply.incomplete_details is not None
        assert reply.incomplete_details.reason == "max_output_tokens"

    def test_a_stream(self, client: openai.OpenAI) -> None:
        events = list(client.responses.create(**respond(), stream=True))
        assert [event.type for event in events[:4]] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == SCENE.expected
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == SCENE.expected
        assert [event.sequence_number for event in events] == list(range(len(events)))

    def test_a_conversation_with_instructions(self, client: openai.OpenAI) -> None:
        said = [*respond()["input"], {"role": "assistant", "content": "so"}, {"role": "user", "content": OTHER}]
        reply = client.responses.create(**respond(input=said, instructions="be brief"))
        assert reply.instructions == "be brief"
        assert reply.output_text

    def test_what_is_stored_nowhere_is_refused(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="no response is stored"):
            client.responses.create(**respond(), previous_response_id="resp_1")


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_answers_do_not_depend_on_how_many_are_asked_at_once(
    server: Server, client: openai.OpenAI, at_once: int
) -> None:
    server.session.forget_image()
    expected = [server.session.answer(SCENE.picture, question, max_new_tokens=12).text for question in QUESTIONS]
    with ThreadPoolExecutor(at_once) as threads:
        bodies = [asked(QUESTIONS[number % len(QUESTIONS)]) for number in range(16)]
        replies = list(threads.map(lambda body: client.chat.completions.create(**body), bodies))
    found = [reply.choices[0].message.content for reply in replies]
    assert found == [expected[number % len(QUESTIONS)] for number in range(16)]
