"""The native image path (runtime/native/module.cpp); may be absent."""

from typing import Any

SANITIZED: bool

def cores() -> int: ...
def prepare(
    picture: Any,
    boxes: Any,
    out: Any,
    *,
    filter: Any,
    colour: Any,
    mean: Any,
    std: Any,
    threads: int = 1,
    plain: bool = False,
) -> None: ...
def prepare_patches(
    picture: Any,
    boxes: Any,
    out: Any,
    *,
    size_wh: Any,
    patch: int,
    merge: int,
    columns_first: bool,
    mean: Any,
    std: Any,
    threads: int = 1,
    plain: bool = False,
) -> None: ...
