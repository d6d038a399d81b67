"""A template cannot loop, grow, or reach out: it ends in an error, whatever it tries, and always in the same way."""

from __future__ import annotations

import random
import threading

import pytest

from sdrpn.errors import BadInput
from sdrpn.text.chat_template import render_chat
from sdrpn.text.template_prices import OverBudget
from sdrpn.text.template_sandbox import MAX_SOURCE_CHARACTERS, MeteredSandbox
from tests.limits import ended_soon
from tests.text.test_chat_template import CHATML, IMAGE_FIRST, LLAMA_3, LLAVA_HF, MISTRAL, VICUNA

DOUBLING = "{% set ns = namespace(x=START) %}{% for i in range(40) %}STEP{% endfor %}"


def doubled(start: str, step: str) -> str:
    return DOUBLING.replace("START", start).replace("STEP", step)


TOO_MUCH = [
    # loops
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) if a < 0 %}{% endfor %}" * 2,
    "{% for x in range(300) recursive %}{% if not loop.depth0 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ range(99999) | map('upper') | map('lower') | list }}",
    "{% set l = range(99999) | list %}{% for i in l %}{% if l[1:] %}{% endif %}{% endfor %}",
    "{% set l = 'a' * 99999 %}{% for i in range(99999) %}{% if l == 'b' %}{% endif %}{% endfor %}",
    "{% set l = 'a' * 99999 %}{% for i in range(99999) %}{% if 'b' in l %}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{{ strftime_now('%Y') }}{% endfor %}",
    # texts and lists that double
    doubled("'ab'", "{% set ns.x = ns.x + ns.x %}"),
    doubled("'ab'", "{% set ns.x = ns.x ~ ns.x %}"),
    doubled("'ab'", "{% set ns.x = ns.x * 2 %}"),
    doubled("'ab'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    doubled("'ab'", "{% set ns.x = '{0}{0}'.format(ns.x) %}"),
    doubled("'ab'", "{% set ns.x = [ns.x, ns.x] | join %}"),
    doubled("'ab'", "{% set ns.x = ns.x | replace('a', 'aa') %}"),
    doubled("'ab'", "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}"),
    doubled("[1]", "{% set ns.x = ns.x + ns.x %}"),
    doubled("[1]", "{% set ns.x = [ns.x, ns.x] %}") + "{{ ns.x }}",
    doubled("[1]", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}") + "{{ ns.x | tojson }}",
    doubled("(1,)", "{% set ns.x = (ns.x, ns.x) %}") + "{{ ns.x == 1 }}",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    # one step that makes much
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ ['a' * 9999] * 9999 }}",
    "{{ 2 ** (10**9) }}",
    "{{ 2**4000 * 2**4000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**9) }}",
    "{{ ('{:>1000000000}' | attr('format'))(1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ ['a'] | map('center', 10**9) | list }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ ('\t' * 9999).expandtabs(9999) }}",
    "{{ ('a' * 30000).replace('a', 'b' * 30000) }}",
    "{{ ('a' * 30000) | replace('a', 'b' * 30000) }}",
    "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "{{ range(99999) | join('a' * 99999) }}",
    "{{ ('b' * 9999).join('a' * 9999) }}",
    "{{ ('a' * 300000).rfind('b' + 'a' * 100000) }}",
    "{{ ('a' * 300000).strip('b' * 90000) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ range(999) | list | tojson(separators=('a' * 9999, 'b' * 9999)) }}",
    "{{ [1] | batch(10**9, 1) | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ 1 | round(10**9, 'ceil') }}",
    "{{ 'a\n' | indent(10**9, true) }}",
    "{{ (10).to_bytes(10**9, 'big') }}",
    "{{ dict.fromkeys(range(99999), 'a' * 99999) }}",
    "{% for i in range(99999) %}" + "x" * 30000 + "{% endfor %}",
    "{% set a %}{% for i in range(99999) %}" + "x" * 30000 + "{% endfor %}{% endset %}",
    "x" * (MAX_SOURCE_CHARACTERS + 1),
]
OTHERWISE_WRONG = [
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ lipsum(10**8) }}",
    "{{ range(10**9) }}",
    "{{ 'a' | wordwrap(1) }}",
    "{{" + "(" * 15000 + "1" + ")" * 15000 + "}}",
    "{{" + "-" * 30000 + "1}}",
    "{{ 1" + "+1" * 15000 + " }}",
    "{% if 1 %}" * 1500 + "{% endif %}" * 1500,
    "{{ a" + ".b" * 15000 + " }}",
    "{{ " + "9" * 30000 + " }}",
    "{#" * 15000,
    "{% include 'a' %}",
    "{% import 'a' as b %}",
    "{% extends 'a' %}",
    "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ namespace(__init__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))(1).x.y }}",
]


def ids(templates: list[str]) -> list[str]:
    return [template[:60] for template in templates]


@pytest.mark.parametrize("template", TOO_MUCH, ids=ids(TOO_MUCH))
def test_templates_that_loop_or_grow(template: str) -> None:
    with pytest.raises(BadInput, match="the chat template cannot be filled") as caught:
        render_chat(template + IMAGE_FIRST, "what?", "<image>", {})
    assert isinstance(caught.value.__cause__, OverBudget)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("template", OTHERWISE_WRONG, ids=ids(OTHERWISE_WRONG))
def test_templates_that_fail(template: str) -> None:
    with pytest.raises(BadInput, match="the chat template cannot be filled"):
        render_chat(template + IMAGE_FIRST, "what?", "<image>", {})


def test_the_budget_is_each_renderings_own() -> None:
    """Also in threads, where no signal could end it."""
    sandbox = MeteredSandbox()
    half = "{% for i in range(30000) %}{% endfor %}done"
    errors: list[BaseException] = []

    def render(source: str, failing: bool) -> None:
        try:
            for _ in range(3):
                if failing:
                    with pytest.raises(OverBudget):
                        sandbox.render_within_budget(source, {}, 0)
                else:
                    assert sandbox.render_within_budget(source, {}, 0) == "done"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=render, args=(half * (1 + failing), bool(failing))) for failing in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        ended_soon(thread)
    assert not errors


def test_long_questions_have_a_longer_budget() -> None:
    question = "what is this? " * 20_000
    assert render_chat(LLAVA_HF, question, "<image>", {}).count("what is this?") == 20_000
    assert render_chat(VICUNA, question, "<image>", {"eos_token": "</s>"}).count("what is this?") == 20_000


# --- random templates

FRAGMENTS = [
    *("{{ ", " }}", "{% ", " %}", "{%- ", "-}}", "{# ", " #}", "'a'", '"b"', "1", "99999", "0.5", "-", "x", "loop"),
    *("(", ")", "[", "]", "{", "}", ", ", ": ", " | ", ".", " ~ ", " + ", " * ", " ** ", " % ", " // ", " in ", " is "),
    *("messages", "messages[0]", ".content", "['role']", "range(9)", "range(99999)", "namespace(a=1)", "dict(b=2)"),
    *("if ", "else", "endif", "for a in ", "for k, v in ", "endfor", "set x = ", "set ns = namespace(x=1)", "ns.a"),
    *("set ns.x = ", "macro f(a, b=1)", "endmacro", "call f(1)", "endcall", "filter upper", "endfilter", " not "),
    *("block c", "endblock", "raw", "endraw", "generation", "endgeneration", "break", "continue", "include 'a'"),
    *("raise_exception('no')", "f(", "caller()", "tojson", "join(',')", "map('upper')", "list", "replace('a', 'bb')"),
    *("trim", "length", "selectattr('type')", "int", "batch(3)", "center(50)", "format(1)", "sort", "items", "first"),
    *("default('z')", "string", "reverse", "sum", "e", ".split('a')", ".format(1)", ".join('abc')", ".items()"),
    *(".__class__", "\n", " ", "<image>", "\U0001f642", "\0"),
]


def random_template(rng: random.Random) -> str:
    """A published one with pieces replaced, doubled or dropped, or fragments of the language one after the other."""
    if rng.random() < 0.4:
        return "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 60)))
    template = rng.choice((LLAVA_HF, VICUNA, LLAMA_3, CHATML, MISTRAL))
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(template))
        end = start + rng.randrange(30)
        piece = rng.choice(("", template[start:end] * 2, rng.choice(FRAGMENTS), "{{ " + rng.choice(FRAGMENTS) + " }}"))
        template = template[:start] + piece + template[end:]
    return template


def try_templates(seed: int, count: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        template = random_template(rng)
        try:
            text = render_chat(template, "what?", "<image>", {"bos_token": "<s>", "eos_token": "</s>"})
        except BadInput as error:
            assert "\n" not in str(error), template  # noqa: PT017
        else:
            assert text.count("<image>") >= 1, template


def test_random_templates() -> None:
    try_templates(seed=0, count=60)


@pytest.mark.slow
def test_many_random_templates() -> None:
    try_templates(seed=1, count=500)
