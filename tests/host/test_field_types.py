"""Fields of the types that their dataclass declares, and what is said of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields, require_type

if TYPE_CHECKING:
    from decimal import Decimal as Unknown


class Grid(Protocol):
    @property
    def hw(self) -> tuple[int, int]: ...


@dataclass
class Square:
    hw: tuple[int, int] = (2, 2)


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Wish(CheckedFields):
    flag: bool = True
    count: int = 1
    share: float | None = None
    name: str = "a"
    place: Path | str = "a"
    kind: Literal["mask", "bbox"] | None = None
    names: Sequence[str] = ()
    pair: tuple[int, int] = (1, 2)
    numbers: tuple[int, ...] | None = None
    inner: Inner = field(default_factory=Inner)
    call: Callable[[], int] | None = None
    table: Mapping[str, int] = field(default_factory=dict)
    grid: Grid = field(default_factory=Square)
    anything: Any = None
    unknown: Unknown | None = None


@dataclass(frozen=True)
class Longer(Wish):
    checked_elsewhere = ("name",)

    more: int = 0


def changed(name: str, value: object) -> Wish:
    changes: dict[str, Any] = {name: value}
    return replace(Wish(), **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", np.int64(3)),
        ("share", 1),
        ("share", np.float32(0.5)),
        ("place", Path("a")),
        ("kind", "bbox"),
        ("names", ["a", "b"]),
        ("pair", [3, 4]),
        ("numbers", [1, 2]),
        ("call", len),
        ("table", {"a": 1}),
        ("anything", object()),
        ("unknown", object()),
    ],
)
def test_values_that_fit(name: str, value: object) -> None:
    assert getattr(changed(name, value), name) is value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flag", 1, "flag is 1; expected True or False"),
        ("count", True, "count is True; expected an integer"),
        ("count", 1.5, r"count is 1\.5; expected an integer"),
        ("count", None, "count is None; expected an integer"),
        ("share", "0.5", r"share is '0\.5'; expected a number or None"),
        ("share", False, "share is False; expected a number or None"),
        ("name", b"a", "name is b'a'; expected a text"),
        ("place", 3, "place is 3; expected a path or a text"),
        ("kind", "box", "kind is 'box'; expected 'mask' or 'bbox' or None"),
        ("names", "ab", "names is 'ab'; expected a list, each a text"),
        ("names", [1], r"names is \[1\]; expected a list, each a text"),
        ("names", {"a": 1}, "expected a list, each a text"),
        ("pair", (1,), r"pair is \(1,\); expected 2 values: an integer, an integer"),
        ("numbers", 3, "numbers is 3; expected a list, each an integer or None"),
        ("inner", {"size": 2}, r"inner is \{'size': 2\}; expected Inner"),
        ("call", "len", "call is 'len'; expected a function or None"),
        ("table", [], r"table is \[\]; expected a mapping"),
        ("grid", None, "grid is None; expected Grid"),
        ("name", ["x" * 99], r"name is \['x{55}\.\.\.; expected a text"),
    ],
)
def test_values_that_do_not(name: str, value: object, message: str) -> None:
    with pytest.raises(BadInput, match=f"{message}$"):
        changed(name, value)


def test_fields_of_a_base_class_count_too() -> None:
    with pytest.raises(BadInput, match="count is 'a'"):
        Longer(count="a")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="more is 'a'"):
        Longer(more="a")  # type: ignore[arg-type]


def test_a_field_that_is_checked_elsewhere() -> None:
    anything: Any = 3
    assert Longer(name=anything).name == anything


def test_a_value_alone() -> None:
    require_type("decide", len, Callable)
    with pytest.raises(BadInput, match="what grid_over returns is None; expected Grid"):
        require_type("what grid_over returns", None, Grid)
