"""Products and attention of decode steps (runtime/native/steps_module.cpp); may be absent."""

from typing import Any

SANITIZED: bool
PAGE_ROWS: int

def instructions() -> str: ...
def attend(
    queries: Any,
    new_keys: Any,
    new_values: Any,
    keys: Any,
    values: Any,
    past: Any,
    out: Any,
    *,
    scale: float,
    window: int = 0,
    threads: int = 1,
    instructions: str = "",
) -> None: ...

class PackedMatrix:
    @staticmethod
    def coded(codes: Any, scales: Any, *, bits: int, inputs: int, columns: int) -> PackedMatrix: ...
    @staticmethod
    def half(numbers: Any) -> PackedMatrix: ...
    def multiply(self, rows: Any, out: Any, *, threads: int = 1, instructions: str = "") -> None: ...
    @property
    def nbytes(self) -> int: ...
