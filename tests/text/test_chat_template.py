"""Chat templates give the text, and with a tokenizer the ids, that transformers gives."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from sdrpn.errors import BadInput
from sdrpn.families.llava.prompt import build_prompt
from sdrpn.method.spec import PromptSpec
from sdrpn.text.chat_template import render_chat
from sdrpn.text.tokenizer import token_text
from tests.tiny_tokenizers import gpt_like, llama_like

IMAGE_ID = 3
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# In the shapes of published templates: parts with generation marks, text after a system prompt, trimmed text with
# headers, ChatML with a default system message, [INST] with rules that raise.
LLAVA_HF = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if m['role'] != 'assistant' %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% else %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system = 'A chat.' %}"
    "{% endif %}{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 %}{{ system + ' ' }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for m in loop_messages %}"
    "{% set content = '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
CHATML = """\
{%- set ns = namespace(images=0, found=false) %}
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if not loop.first %}{{ '\\n' }}{% endif %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' }}
    {%- if m.content is string %}
        {{- m.content }}
    {%- else %}
        {%- for part in m.content %}
            {%- if part.type == 'image' or 'image_url' in part %}
                {%- set ns.images = ns.images + 1 %}
                {{- '<image>\\n' }}
            {%- elif 'text' in part %}
                {{- part.text | replace('\\r\\n', '\\n') }}
            {%- else %}{% continue %}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
    {%- if ns.images > 3 %}{% break %}{% endif %}
{%- endfor %}
{%- if tools is defined and tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- if bos_token is defined %}{{ bos_token }}{% endif %}
{%- for message in messages recursive %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('conversation roles must alternate') }}
    {%- endif %}
    {%- macro image() %}<image>{% endmacro %}
    {%- set texts = message['content'] | rejectattr('type', 'equalto', 'image') | map(attribute='text') | list %}
    {%- set data = {'n': texts | length, 'a': [1, 'é<&>']} | tojson(ensure_ascii=false, separators=(',', ':')) %}
    {{- '[INST] ' + image() + data + {'b': 2, 'a': 1} | tojson(sort_keys=true) + texts | join('\\n') + ' [/INST]' }}
{%- endfor %}
"""


@dataclass(frozen=True)
class Family:
    """A template, the tokenizer that goes with it, and whether it takes a message's parts."""

    template: str
    tokenizer: Tokenizer
    bos_id: int
    takes_parts: bool

    @property
    def tokens(self) -> dict[str, str]:
        names = {"bos_token": self.bos_id, "eos_token": self.bos_id + 1}
        return {name: token_text(self.tokenizer, token_id) for name, token_id in names.items()}

    @property
    def spec(self) -> PromptSpec:
        return PromptSpec(self.template, image_token_id=IMAGE_ID, bos_token_id=self.bos_id, special_tokens=self.tokens)


def with_markers(tokenizer: Tokenizer) -> Tokenizer:
    markers = ("<|start|>", "<|end|>", "<|eot|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in markers])
    return tokenizer


FAMILIES = {
    "llava-hf": Family(LLAVA_HF, llama_like(image=True), 1, takes_parts=True),
    "vicuna": Family(VICUNA, llama_like(image=True), 1, takes_parts=False),
    "llama-3": Family(LLAMA_3, with_markers(gpt_like()), 1, takes_parts=False),
    "chatml": Family(CHATML, with_markers(gpt_like()), 1, takes_parts=True),
    "mistral": Family(MISTRAL, llama_like(image=True), 1, takes_parts=True),
}
ALPHABET = [
    *"abcdefghij XYZ 0123456789 .,?!\n\t '\"\\ <>&{}%#|[]()_",
    *("é", "e\u0301", "日", "本", "й", "🙂", "👩\u200d👧", "\u00a0", "\u2028", "\ufeff", "  ", "\r\n", "\0"),
    *("{{ ", " }}", "{% if x %}", "{# ", "</s>", "<s>", "<|im_end|>", "[INST]", "USER:", "▁", "<0x0A>", "what is"),
]


def strings(count: int) -> Iterator[str]:
    rng = random.Random(0)
    while count:
        text = "".join(rng.choices(ALPHABET, k=rng.randint(1, 40)))
        if text.strip():
            count -= 1
            yield text


def reference(family: Family) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=family.tokenizer, chat_template=family.template, **family.tokens
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_text_and_ids_are_those_of_transformers(name: str) -> None:
    """As a processor does it: the text is tokenised with the tokenizer's own rules, unless it starts with BOS."""
    family = FAMILIES[name]
    transformers = reference(family)
    for question in strings(1000):
        parts: Any = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts if family.takes_parts else f"<image>\n{question}"}]
        text = transformers.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render_chat(family.template, question, "<image>", family.tokens) == text, repr(question)
        add_special_tokens = not text.startswith(family.tokens["bos_token"])
        ids = transformers(text, add_special_tokens=add_special_tokens)["input_ids"]
        place = ids.index(IMAGE_ID)
        prompt = build_prompt(family.tokenizer, family.spec, question)
        assert (*prompt.ids_before, IMAGE_ID, *prompt.ids_after) == tuple(ids), repr(question)
        assert len(prompt.ids_before) == place


# --- what templates may ask for

IMAGE_FIRST = (
    "{% for c in messages[0].content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
)


def rendered(template: str, **tokens: str) -> str:
    return render_chat(template, "what?", "<image>", tokens)


@pytest.mark.parametrize(
    ("start", "text"),
    [
        ("{{ {'a': '<&>é'} | tojson }}", '{"a": "<&>é"}'),
        ("{{ {'a': 'é'} | tojson(ensure_ascii=True) }}", '{"a": "\\u00e9"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=2, sort_keys=true) }}", json.dumps({"a": [2], "b": 1}, indent=2)),
        ("{{ [1, 2] | tojson(separators=('; ', ': ')) }}", "[1; 2]"),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ("{%- generation -%} a {%- endgeneration -%} ", "a"),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02345678"),
        ("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}", "TrueTrueTrue"),
        ("{{ pad_token is defined }}", "False"),
        ("{{ dict(a=1) }}{{ dict.fromkeys('ab', 0) }}", "{'a': 1}{'a': 0, 'b': 0}"),
        ("{% set ns = namespace(a=1, self=2) %}{% set ns.a = ns.a + ns.self %}{{ ns.a }}", "3"),
        ("{{ 'a-b-c'.split('-')[1:] | join('+') ~ 1 }}", "b+c1"),
        ("{{ '%s and %d' % ('a', 3) }} {{ '{} {x}'.format(1, x=2) }}", "a and 3 1 2"),
        ("{{ '%05.1f' | format(2.25) }}", "002.2"),
        ("{% macro f(x, y='d') %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}{{ f(x=2, y=3) }}", "1d23"),
        ("{% macro f(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call f(2) %}c{% endcall %}", "2c"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{{ loop.last }}{{ loop.length }}{% endfor %}", "x1True1"),
        ("{% for x in [[1], [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
        ("{% filter upper %}a{% endfilter %}{% set b %}x{{ 1 }}{% endset %}{{ b | length }}", "A2"),
        ("{{ 1 < 2 < 3 }}{{ 'b' in 'abc' }}{{ 3 in [1] }}{{ {'a': 1} == dict(a=1) }}", "TrueTrueFalseTrue"),
        ("{{ [3, 1] | sort | first }}{{ (1, 2) | sum }}{{ 'a\nb' | indent(2) }}", "13a\n  b"),
        ("{{ x.y if x else 'none' }}{{ 7 // 2 }}{{ 2 ** 5 }}{{ -3 % 5 }}{{ 3 / 2 }}", "none33221.5"),
    ],
)  # fmt: skip
def test_the_language(start: str, text: str) -> None:
    assert rendered(start + IMAGE_FIRST) == f"{text}<image>what?"


def test_today() -> None:
    before = datetime.now()
    text = rendered("{{ strftime_now('%Y-%m-%d') }}" + IMAGE_FIRST)
    assert text in {f"{day:%Y-%m-%d}<image>what?" for day in (before, datetime.now())}


# --- how the question is put in


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (IMAGE_FIRST, "<image>what?"),
        ("{{ messages[0].content }}", "<image>\nwhat?"),
        ("U: {{ messages[0].content | trim }} A:", "U: <image>\nwhat? A:"),
        ("U: {{ 'x' ~ messages[0].content }}", "U: x<image>\nwhat?"),
        ("{{ 'U: ' + messages[0].content }}", "U: <image>\nwhat?"),
        ("U: <image> {{ messages[0].content }} A:", "U: <image> what? A:"),
        ("{{ messages[0].content if messages[0].content is string else raise_exception('text') }}", "<image>\nwhat?"),
        ("{{ messages[0].content.split('</think>')[-1].lstrip('\n') }}", "<image>\nwhat?"),
        ("{{ messages[0].content | upper | replace('<IMAGE>', '<image>') }}", "<image>\nWHAT?"),
    ],
)
def test_templates_for_text_get_the_image_as_text(template: str, text: str) -> None:
    assert rendered(template) == text


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("<image>only", "leaves the question out; expected one that writes what the user says: name another with"),
        ("{{ messages[0].content[1].text }}", "places no images; expected exactly one"),
        ("<image>{{ messages[0].content }}<image>", "places 2 images"),
        ("{{ raise_exception('only\n text') }}", r"cannot be filled \(only text\); expected one for images: name"),
        ("{% include 'x' %}", r"cannot be filled \(no loader"),
        ("{{ messages[0]['role']['x']['y'] }}", "cannot be filled"),
        ("{% endif %}", "cannot be filled"),
    ],
)  # fmt: skip
def test_templates_that_are_refused(template: str, match: str) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        rendered(template)
    assert "\n" not in str(caught.value)
