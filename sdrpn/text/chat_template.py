"""Fill a chat template as Hugging Face's `apply_chat_template` does, with the turns of a conversation about images.

Templates have the same features as there: trimmed blocks, `break` and `continue`, `{% generation %}`, `tojson` with
the options of `json.dumps`, `raise_exception`, `strftime_now`. Knows no tokenizer.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from sdrpn.errors import BadInput
from sdrpn.text.template_prices import OverBudget
from sdrpn.text.template_sandbox import MeteredSandbox
from sdrpn.text.turns import Turn

__all__ = ["render_chat", "render_turns"]

_TRIAL_QUESTION = "What is written on the plate?"
_ADVICE = "name another with `sdrpn export --template NAME|FILE`"


def render_chat(template: str, question: str, image_token: str, special_tokens: Mapping[str, str]) -> str:
    """As `render_turns`, of one question about one image."""
    return render_turns(template, (Turn("user", question, images=1),), image_token, special_tokens)


def render_turns(template: str, turns: Sequence[Turn], image_token: str, special_tokens: Mapping[str, str]) -> str:
    """The text of a conversation, up to where the model answers.

    A template that accepts text only gets the image token and a newline before what is asked about an image, as LLaVA
    was trained.

    Args:
        special_tokens: `bos_token` and the like, by the names that templates use
    Raises: BadInput for a template that fails, exceeds its work budget, omits the question, or does not place exactly
        one image in a question about one.
    """
    content = _content_for(template, image_token, frozenset(special_tokens.items()))
    messages = [{"role": turn.role, "content": content(turn, image_token)} for turn in turns]
    try:
        return _render(template, messages, sum(len(turn.text) for turn in turns), special_tokens)
    except Exception as error:  # templates are programs: they raise exceptions of any type
        raise _refusal(error) from error


# How a template receives the question --------------------------------------------------------------------------------


class _TextExpected(Exception):
    """A list was printed where a template expected text."""


class _Parts(list[dict[str, str]]):
    """The parts of a message, for templates that iterate over them; printing the list itself is an error."""

    def __repr__(self) -> NoReturn:
        raise _TextExpected("it takes text only")

    __str__ = __repr__


def _parts(turn: Turn, image_token: str) -> object:
    return _Parts([*({"type": "image"} for _ in range(turn.images)), {"type": "text", "text": turn.text}])


def _text_with_image(turn: Turn, image_token: str) -> object:
    return f"{image_token}\n" * turn.images + turn.text


def _text_alone(turn: Turn, image_token: str) -> object:
    return turn.text


@functools.lru_cache(maxsize=16)
def _content_for(template: str, image_token: str, tokens: frozenset[tuple[str, str]]) -> Callable[[Turn, str], object]:
    """The first form that puts both the image and the question into the text, found by rendering a trial question."""
    try:
        _environment().compile_within_limits(template)
    except Exception as error:  # the parser's errors, and Python's where an expression is nested too deeply
        raise _refusal(error) from error
    faults = []
    trial = Turn("user", _TRIAL_QUESTION, images=1)
    for content in (_parts, _text_with_image, _text_alone):
        try:
            messages = [{"role": trial.role, "content": content(trial, image_token)}]
            text = _render(template, messages, len(trial.text), dict(tokens))
        except OverBudget as error:
            raise _refusal(error) from error
        except Exception as error:  # templates are programs: they raise exceptions of any type
            faults.append((isinstance(error, _TextExpected), _refusal(error)))
            continue
        images = len(re.findall(f"(?:{re.escape(image_token)})+", text))
        asks = _TRIAL_QUESTION.lower() in text.lower()
        if images == 1 and asks:
            return content
        faults.append((not asks, _misplaced(images) if asks else _unasked()))
    # The error of the first form is the most useful, unless the template cannot have been written for that form.
    raise min(faults, key=lambda fault: fault[0])[1]


def _misplaced(images: int) -> BadInput:
    return BadInput(
        f"the chat template places {images or 'no'} images; expected exactly one for a question about one image: "
        f"{_ADVICE}"
    )


def _unasked() -> BadInput:
    return BadInput(
        f"the chat template leaves the question out; expected one that writes what the user says: {_ADVICE}"
    )


def _refusal(error: Exception) -> BadInput:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return BadInput(f"the chat template cannot be filled ({reason}); expected one for images: {_ADVICE}")


# The environment -----------------------------------------------------------------------------------------------------


def _render(
    template: str, messages: Sequence[Mapping[str, object]], characters: int, special_tokens: Mapping[str, str]
) -> str:
    """characters: of all texts in the messages, which allow for more work"""
    variables = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        **special_tokens,
    }
    return _environment().render_within_budget(template, variables, characters)


@functools.cache
def _environment() -> MeteredSandbox:
    environment = MeteredSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_PlainDict())
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training. Its block is a scope, like that of a macro."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.CallBlock:
        """The block up to `{% endgeneration %}`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body, lineno=line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


class _PlainDict:
    """`dict` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Same as `dict.fromkeys`."""
        return dict.fromkeys(*args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` without HTML escapes, which Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
