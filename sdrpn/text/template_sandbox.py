"""Run untrusted Jinja templates in the library's sandbox and within a work budget. Knows no chat.

The sandbox protects the interpreter. It does not prevent a template from counting to ten billion or doubling a text
forty times, so every operation of a template is paid for before it runs: a fixed price plus the sizes of what it reads
and writes (`template_prices`). No clock, signal or thread is involved: the same template and input always end the same
way. Filters that format pages or take quadratic time are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import Environment, Template, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from sdrpn.text.template_prices import (
    Meter,
    OverBudget,
    price_of_call,
    price_of_filter,
    price_of_format,
    price_of_operator,
    require_small_number,
)

__all__ = ["MAX_SOURCE_CHARACTERS", "MeteredSandbox", "OverBudget"]

MAX_SOURCE_CHARACTERS = 32_768  # chat templates have a tenth of it, those with many tools nearly all
BUDGET = 1_000_000  # 0.3 s and 50 MB at worst; chat templates take a few thousand
PER_INPUT_CHARACTER = 16  # how many times a template may read a long question

_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap")
_METER: ContextVar[Meter] = ContextVar("template_meter")


class SafeNamespace(Namespace):
    """Jinja's `namespace()` without names that begin with an underscore: they give access to the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a template may set `self`
        self, args = args[0], args[1:]
        names = dict(*args, **kwargs)
        for name in names:
            _require_public(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot keep {name!r}; expected a name without an underscore before it")


class MeteredSandbox(ImmutableSandboxedEnvironment):
    """A sandbox whose templates are rendered only by `render_within_budget`."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self, **options: Any) -> None:
        # The optimiser would evaluate constant expressions at compile time, before they are paid for.
        super().__init__(optimized=False, finalize=_printed, cache_size=0, **options)
        self.concat = _concatenated  # type: ignore[method-assign]  # joins every captured block
        del self.globals["lipsum"]
        self.globals["namespace"] = SafeNamespace
        for name in _LEFT_OUT:
            del self.filters[name]
        filters: Any = self.filters
        tests: Any = self.tests
        self.filters = {name: _metered(function, _filter_price(name)) for name, function in filters.items()}
        self.tests = {name: _metered(function, _test_price) for name, function in tests.items()}
        self.filters.update(_OWN_FILTERS)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add a filter, priced by the product of its arguments."""
        self.filters[name] = _metered(function, _filter_price(name))

    def compile_within_limits(self, source: str) -> Template:
        """The compiled template, cached. Raises: OverBudget for one that is too long; whatever Jinja raises."""
        return _compiled(self, source)

    def render_within_budget(self, source: str, variables: Mapping[str, Any], input_characters: int) -> str:
        """Compile and render a template.

        Raises: OverBudget; whatever Jinja and the template raise.
        """
        template = self.compile_within_limits(source)
        meter = Meter(BUDGET + PER_INPUT_CHARACTER * input_characters)
        token = _METER.set(meter)
        try:
            pieces = []
            for piece in template.generate(**variables):
                meter.pay(len(piece))
                pieces.append(piece)
            return "".join(pieces)
        finally:
            _METER.reset(token)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Called by Jinja for every call of a function, method or macro."""
        meter = _METER.get()
        if isinstance(__obj, LoopContext) and args:  # a recursive loop
            args = (_each(args[0]), *args[1:])
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        meter.pay(price_of_call(meter, name, owner, args, kwargs))
        result = super().call(__context, __obj, *args, **kwargs)
        meter.pay(meter.size(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Called by Jinja for every arithmetic operator."""
        meter = _METER.get()
        meter.pay(price_of_operator(meter, operator, left, right))
        result = super().call_binop(context, operator, left, right)
        require_small_number(result)
        meter.pay(meter.size(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Called by Jinja before `str.format`."""
        function = super().wrap_str_format(value)
        if function is None:
            return None

        def metered(*args: Any, **kwargs: Any) -> str:
            meter = _METER.get()
            meter.pay(price_of_format(meter, (value.__self__, *args), kwargs))
            return function(*args, **kwargs)

        return metered

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Called by Jinja for subscripts; slices were turned into a filter."""
        meter = _METER.get()
        meter.pay(meter.size(argument))  # it is hashed
        return super().getitem(obj, argument)


@functools.lru_cache(maxsize=16)
def _compiled(environment: Environment, source: str) -> Template:
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise OverBudget(f"it has {len(source)} characters; expected {MAX_SOURCE_CHARACTERS} at most")
    return environment.from_string(source)


class _Metering(NodeTransformer):
    """Route operations that the sandbox does not expose through metered filters."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _EACH)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _READ)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _READ)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [end or nodes.Const(None) for end in (node.arg.start, node.arg.stop, node.arg.step)]
        return _filtered(node.node, _SLICE, ends)

    def visit_List(self, node: nodes.List) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _READ)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _READ) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _READ)


def _filtered(node: Any, name: str, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(node, name, args or [], [], None, None, lineno=node.lineno)


# Replacements for parts of the language, under names that no template can write. -------------------------------------


def _each(values: Iterable[Any]) -> Iterator[Any]:
    meter = _METER.get()
    for value in values:
        meter.pay(0)
        yield value


def _read(value: Any) -> Any:
    meter = _METER.get()
    meter.pay(meter.size(value))
    return value


def _concatenated(values: Iterable[Any]) -> str:
    meter = _METER.get()
    parts = []
    for value in values:
        meter.pay(meter.size(value))
        parts.append(str(value))
    return "".join(parts)


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    meter = _METER.get()
    meter.pay(meter.size(value))
    return value[start:stop:step]


@pass_context  # so that Jinja cannot call it at compile time
def _printed(context: Context, value: Any) -> Any:
    return _read(value)


_EACH, _READ, _CONCAT, _SLICE = " each", " read", " concat", " slice"
_OWN_FILTERS = {_EACH: _each, _READ: _read, _CONCAT: _concatenated, _SLICE: _sliced}


# Filters and tests of the library and of ours ------------------------------------------------------------------------

Price = Callable[[Meter, tuple[Any, ...], dict[str, Any]], int]


def _filter_price(name: str) -> Price:
    def price(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return price_of_filter(meter, name, args, kwargs)

    return price


def _test_price(meter: Meter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return meter.size(*args, *kwargs.values())


def _metered(function: Callable[..., Any], price: Price) -> Callable[..., Any]:
    """The function, metered; the attributes by which Jinja passes a context are kept."""

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        values = tuple(arg for arg in args if not isinstance(arg, (Context, Environment, nodes.EvalContext)))
        meter.pay(price(meter, values, kwargs))
        result = function(*args, **kwargs)
        require_small_number(result)
        meter.pay(meter.size(result))
        return result

    return metered
