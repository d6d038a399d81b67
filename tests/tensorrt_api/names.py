"""Which names of TensorRT a source file uses, found by running its syntax tree on kinds instead of values.

The library is whatever is called `trt` or comes from `import_module` or `tensorrt_module`; from there kinds follow
calls, assignments, parameters and attributes, with the help of what the bindings' own documentation says that their
methods give. The tree is run for one release at a time, so that a branch for another flavour, or after a `getattr`
that finds nothing, is not taken: what is left is what this release would be asked for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tensorrt_api.bindings import Api

__all__ = ["Found", "Subclass", "Use", "names_in"]

Kinds = frozenset[tuple[Any, ...]]
NOTHING: Kinds = frozenset()
# Kinds: ("module",), ("class", N), ("instance", N), ("method", N, name) are TensorRT's; ("ours", C), ("our class", C),
# ("function", key) are of the file itself; ("entries", kinds), ("tuple", (kinds, ...)) and ("constant", value).
FLAVOURS = ("tensorrt", "tensorrt-rtx")
_KEEPS_ENTRIES = {"tuple", "list", "sorted", "reversed", "iter"}


@dataclass(frozen=True, order=True)
class Use:
    """A name, and where it is looked up: in a class, or in the module itself."""

    line: int
    owner: str
    name: str


@dataclass(frozen=True)
class Subclass:
    """A class of ours that TensorRT calls."""

    base: str
    methods: frozenset[str]


@dataclass
class Found:
    """What a file asks of one release."""

    used: set[Use] = field(default_factory=set)
    missing: set[Use] = field(default_factory=set)
    asked_for: set[Use] = field(default_factory=set)  # with getattr or hasattr: it need not be there
    unknown: set[tuple[int, str]] = field(default_factory=set)  # attributes of something of unknown kind
    subclasses: set[Subclass] = field(default_factory=set)
    miscounted: set[tuple[int, str, int]] = field(default_factory=set)  # calls with as many arguments as none takes


@dataclass
class _Function:
    node: ast.FunctionDef
    owner: str | None  # the class that it is a method of
    closure: dict[str, Kinds]


def names_in(path: Path, api: Api) -> Found:
    """Run the tree until no kind changes any more."""
    run = _Run(api, ast.parse(path.read_text(encoding="utf-8")))
    return run.to_the_end()


class _Run:
    def __init__(self, api: Api, tree: ast.Module) -> None:
        self._api = api
        self._functions: dict[str, _Function] = {}
        self._properties: set[str] = set()
        self._parameters: dict[tuple[str, str], Kinds] = {}
        self._returns: dict[str, Kinds] = {}
        self._attributes: dict[tuple[str, str], Kinds] = {}
        self._found = Found()
        self._globals: dict[str, Kinds] = {}
        self._current = ""
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                self._declare(node, None, {})
            elif isinstance(node, ast.ClassDef):
                self._declare_class(node, {})

    def to_the_end(self) -> Found:
        before: Any = None
        while before != self._state():
            before, self._found = self._state(), Found()
            for key in list(self._functions):
                self._run_function(key)
        return self._found

    def _state(self) -> tuple[Any, ...]:
        return dict(self._parameters), dict(self._returns), dict(self._attributes), len(self._functions)

    def _declare(self, node: ast.FunctionDef, owner: str | None, closure: dict[str, Kinds]) -> str:
        key = f"{owner}.{node.name}" if owner else node.name
        self._functions[key] = _Function(node, owner, closure)
        if any(isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in node.decorator_list):
            self._properties.add(key)
        if owner is None:
            self._globals[node.name] = frozenset({("function", key)})
        return key

    def _declare_class(self, node: ast.ClassDef, closure: dict[str, Kinds]) -> Kinds:
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                self._declare(statement, node.name, closure)
        kinds: Kinds = frozenset({("our class", node.name)})
        self._globals.setdefault(node.name, kinds)
        return kinds

    def _run_function(self, key: str) -> None:
        function = self._functions[key]
        self._current = key
        scope = dict(function.closure)
        for argument in (*function.node.args.args, *function.node.args.kwonlyargs):
            scope[argument.arg] = self._parameters.get((key, argument.arg), NOTHING)
            if argument.arg == "trt":
                scope["trt"] = frozenset({("module",)})
            if argument.arg == "self" and function.owner:
                scope["self"] = frozenset({("ours", function.owner)})
        self._block(function.node.body, scope)

    # Statements: True where what follows cannot be reached.

    def _block(self, body: Sequence[ast.stmt], scope: dict[str, Kinds]) -> bool:
        return any(self._statement(statement, scope) for statement in body)

    def _statement(self, node: ast.stmt, scope: dict[str, Kinds]) -> bool:
        if isinstance(node, ast.If):
            return self._if(node, scope)
        if isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break)):
            return self._leave(node, scope)
        if isinstance(node, ast.For):
            self._bind(node.target, self._entries(self._value(node.iter, scope)), scope)
            self._block(node.body, scope)
        elif isinstance(node, ast.With):
            for item in node.items:
                kinds = self._value(item.context_expr, scope)
                if item.optional_vars is not None:
                    self._bind(item.optional_vars, kinds, scope)
            return self._block(node.body, scope)
        elif isinstance(node, ast.Try):
            for block in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                self._block(block, scope)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            kinds = self._value(node.value, scope) if node.value is not None else NOTHING
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self._bind(target, kinds, scope)
        elif isinstance(node, ast.FunctionDef):
            key = self._declare(node, None, scope)
            scope[node.name] = frozenset({("function", key)})
        elif isinstance(node, ast.ClassDef):
            scope[node.name] = self._subclass(node, scope)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._value(child, scope)
        return False

    def _if(self, node: ast.If, scope: dict[str, Kinds]) -> bool:
        self._value(node.test, scope)
        truth = self._truth(node.test, scope)
        if truth is not None:
            return self._block(node.body if truth else node.orelse, scope)
        first = self._block(node.body, scope)
        return self._block(node.orelse, scope) and first

    def _leave(self, node: ast.stmt, scope: dict[str, Kinds]) -> bool:
        value = getattr(node, "value", None) or getattr(node, "exc", None)
        kinds = self._value(value, scope) if value is not None else NOTHING
        if isinstance(node, ast.Return):
            self._returns[self._current] = self._returns.get(self._current, NOTHING) | kinds
        return True

    def _subclass(self, node: ast.ClassDef, scope: dict[str, Kinds]) -> Kinds:
        methods = frozenset(statement.name for statement in node.body if isinstance(statement, ast.FunctionDef))
        for base in node.bases:
            for kind in self._value(base, scope):
                if kind[0] == "class":
                    self._found.subclasses.add(Subclass(kind[1], methods))
        return self._declare_class(node, dict(scope))

    def _bind(self, target: ast.expr, kinds: Kinds, scope: dict[str, Kinds]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = kinds
        elif isinstance(target, ast.Attribute) and target.attr == "__class__" and isinstance(target.value, ast.Name):
            # What the bindings give as an instance of a base class, said to be one of another.
            scope[target.value.id] = frozenset(("instance", kind[1]) for kind in kinds if kind[0] == "class")
        elif isinstance(target, ast.Attribute):
            for owner in self._value(target.value, scope):
                if owner[0] == "ours":
                    key = owner[1], target.attr
                    self._attributes[key] = self._attributes.get(key, NOTHING) | kinds
                elif owner[0] == "instance":
                    self._look_up(owner[1], target)
        elif isinstance(target, ast.Tuple):
            parts = [kind[1] for kind in kinds if kind[0] == "tuple"]
            for index, element in enumerate(target.elts):
                inner = [part[index] for part in parts if len(part) == len(target.elts)]
                self._bind(element, frozenset().union(*inner) if inner else self._entries(kinds), scope)

    # Expressions.

    def _value(self, node: ast.expr, scope: dict[str, Kinds]) -> Kinds:
        if isinstance(node, ast.Name):
            return scope.get(node.id, self._globals.get(node.id, NOTHING))
        if isinstance(node, ast.Constant):
            return frozenset({("constant", node.value)})
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self._value(node.value, scope))
        if isinstance(node, ast.Call):
            return self._call(node, scope)
        if isinstance(node, ast.IfExp):
            return self._choice(node, scope)
        if isinstance(node, ast.BoolOp):
            return frozenset().union(*(self._value(operand, scope) for operand in node.values))
        if isinstance(node, (ast.List, ast.Set)):
            return frozenset({("entries", frozenset().union(*(self._value(element, scope) for element in node.elts)))})
        if isinstance(node, ast.Tuple):
            return frozenset({("tuple", tuple(self._value(element, scope) for element in node.elts))})
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            return self._comprehension(node, scope)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child, scope)
        return NOTHING

    def _comprehension(self, node: Any, scope: dict[str, Kinds]) -> Kinds:
        inner = dict(scope)
        for generator in node.generators:
            self._bind(generator.target, self._entries(self._value(generator.iter, inner)), inner)
            for condition in generator.ifs:
                self._value(condition, inner)
        if isinstance(node, ast.DictComp):
            self._value(node.key, inner)
            return frozenset({("entries", self._value(node.value, inner))})
        return frozenset({("entries", self._value(node.elt, inner))})

    def _choice(self, node: ast.IfExp, scope: dict[str, Kinds]) -> Kinds:
        self._value(node.test, scope)
        truth = self._truth(node.test, scope)
        if truth is not None:
            return self._value(node.body if truth else node.orelse, scope)
        return self._value(node.body, scope) | self._value(node.orelse, scope)

    def _attribute(self, node: ast.Attribute, owners: Kinds) -> Kinds:
        if not owners:
            self._found.unknown.add((node.lineno, node.attr))
        return frozenset().union(*(self._member(owner, node) for owner in owners))

    def _member(self, owner: tuple[Any, ...], node: ast.Attribute) -> Kinds:
        kind, *rest = owner
        if kind == "module":
            return self._look_up(None, node)
        if kind in ("class", "instance"):
            return self._look_up(rest[0], node)
        if kind == "ours":
            key = f"{rest[0]}.{node.attr}"
            if key in self._properties:
                return self._returns.get(key, NOTHING)
            if key in self._functions:
                return frozenset({("function", key)})
            return self._attributes.get((rest[0], node.attr), NOTHING)
        return NOTHING

    def _look_up(self, owner: str | None, node: ast.Attribute | ast.Call, name: str | None = None) -> Kinds:
        """Note the use, and say what it is."""
        name = name or (node.attr if isinstance(node, ast.Attribute) else "")
        if name.startswith("__"):
            return NOTHING
        use = Use(node.lineno, owner or "module", name)
        self._found.used.add(use)
        if not self._api.has(owner, name):
            self._found.missing.add(use)
            return NOTHING
        return self._kinds_of(owner, name)

    def _kinds_of(self, owner: str | None, name: str) -> Kinds:
        if owner is None:
            return frozenset({("class", name)}) if self._api.module[name] == "class" else NOTHING
        facts = self._api.classes[owner][name]
        gives = self._api.class_named(facts["gives"])
        if facts["kind"] == "method":
            return frozenset({("method", owner, name)})
        if facts["kind"] == "class":
            return frozenset({("class", name)})
        return frozenset({("instance", gives)}) if gives is not None else NOTHING

    def _call(self, node: ast.Call, scope: dict[str, Kinds]) -> Kinds:
        arguments = [self._value(argument, scope) for argument in node.args]
        named = {argument.arg: self._value(argument.value, scope) for argument in node.keywords}
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("getattr", "hasattr"):
            return self._asked(name, node, arguments)
        if name in ("import_module", "tensorrt_module"):
            return frozenset({("module",)})
        if name in _KEEPS_ENTRIES:
            return arguments[0] if arguments else NOTHING
        functions = self._value(node.func, scope)
        for kind in functions:
            if kind[0] == "method" and not any(isinstance(argument, ast.Starred) for argument in node.args):
                self._count(node, kind, len(arguments) + len(named))
        return frozenset().union(*(self._result(kind, arguments, named) for kind in functions))

    def _count(self, node: ast.Call, kind: tuple[Any, ...], arguments: int) -> None:
        """Whether any documented form of the method takes so many."""
        forms = self._api.classes[kind[1]][kind[2]]["takes"]
        if forms and not any(least <= arguments <= most for least, most in forms):
            self._found.miscounted.add((node.lineno, f"{kind[1]}.{kind[2]}", arguments))

    def _asked(self, name: str, node: ast.Call, arguments: list[Kinds]) -> Kinds:
        wanted = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
        found: set[tuple[Any, ...]] = set()
        for owner in arguments[0]:
            if owner[0] not in ("module", "class", "instance") or not isinstance(wanted, str):
                continue
            place = None if owner[0] == "module" else owner[1]
            self._found.asked_for.add(Use(node.lineno, place or "module", wanted))
            there = self._api.has(place, wanted)
            if name == "hasattr":
                found.add(("constant", there))
            else:
                found |= self._kinds_of(place, wanted) if there else {("constant", None)}
        return frozenset(found)

    def _result(self, kind: tuple[Any, ...], arguments: list[Kinds], named: dict[str | None, Kinds]) -> Kinds:
        if kind[0] == "class":
            return frozenset({("instance", kind[1])})
        if kind[0] == "method":
            gives = self._api.class_named(self._api.classes[kind[1]][kind[2]]["gives"])
            return frozenset({("instance", gives)}) if gives is not None else NOTHING
        if kind[0] == "function":
            self._pass(kind[1], arguments, named)
            return self._returns.get(kind[1], NOTHING)
        if kind[0] == "our class":
            if f"{kind[1]}.__init__" in self._functions:
                self._pass(f"{kind[1]}.__init__", arguments, named)
            return frozenset({("ours", kind[1])})
        return NOTHING

    def _pass(self, key: str, arguments: list[Kinds], named: dict[str | None, Kinds]) -> None:
        """What is handed to a function of the file becomes known of its parameters."""
        function = self._functions[key]
        parameters = [argument.arg for argument in function.node.args.args]
        own = parameters[1:] if function.owner else parameters
        for name, kinds in (*zip(own, arguments, strict=False), *named.items()):
            if name is not None:
                before = self._parameters.get((key, name), NOTHING)
                self._parameters[key, name] = before | kinds

    def _entries(self, kinds: Kinds) -> Kinds:
        found: Iterable[Kinds] = (
            kind[1] if kind[0] == "entries" else frozenset().union(*kind[1])
            for kind in kinds
            if kind[0] in ("entries", "tuple")
        )
        return frozenset().union(*found)

    def _truth(self, node: ast.expr, scope: dict[str, Kinds]) -> bool | None:
        """The value of a condition that the release alone decides."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._truth(node.operand, scope)
            return None if inner is None else not inner
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._comparison(node, scope)
        if isinstance(node, ast.Call):
            kinds = self._value(node, scope)
            if len(kinds) == 1 and next(iter(kinds))[:1] == ("constant",):
                return bool(next(iter(kinds))[1])
        return None

    def _comparison(self, node: ast.Compare, scope: dict[str, Kinds]) -> bool | None:
        operator, right = node.ops[0], node.comparators[0]
        positive = isinstance(operator, (ast.Eq, ast.Is))
        if (not positive and not isinstance(operator, (ast.NotEq, ast.IsNot))) or not isinstance(right, ast.Constant):
            return None
        if right.value in FLAVOURS and ast.unparse(node.left).rpartition(".")[2] == "flavour":
            return (self._api.flavour == right.value) is positive
        if right.value is None:
            kinds = {kind[0] for kind in self._value(node.left, scope)}
            if kinds and kinds <= {"class", "method", "module"}:
                return not positive
            if self._value(node.left, scope) == frozenset({("constant", None)}):
                return positive
        return None
