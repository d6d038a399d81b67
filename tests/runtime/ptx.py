"""Run a kernel's PTX text one thread after the other: the few instructions that our kernels use, on ordinary memory."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Mapping

__all__ = ["run_ptx"]

_INSTRUCTION = re.compile(r"(?:@(%\w+)\s+)?([\w.]+)\s*(.*)")
_SIZES = {"u8": ctypes.c_uint8, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64}


def run_ptx(ptx: str, grid: tuple[int, int], threads: int, parameters: Mapping[str, int]) -> None:
    """Args: grid: blocks in x and y; parameters: by the names that the kernel declares."""
    body = ptx[ptx.index("{") + 1 : ptx.rindex("}")]
    lines = [line.strip().rstrip(";") for line in body.splitlines() if line.strip()]
    code = [line for line in lines if not line.startswith(".reg")]
    declared = set(re.findall(r"%\w+", " ".join(line for line in lines if line.startswith(".reg"))))
    for y, x, thread in itertools.product(range(grid[1]), range(grid[0]), range(threads)):
        special = {"%ctaid.x": x, "%ctaid.y": y, "%tid.x": thread, "%ntid.x": threads}
        _run_thread(code, declared, {**special, **parameters})


def _run_thread(code: list[str], declared: set[str], known: dict[str, int]) -> None:
    labels = {line[:-1]: index for index, line in enumerate(code) if line.endswith(":")}
    registers: dict[str, int] = {}
    at = 0

    def value(operand: str) -> int:
        if re.fullmatch(r"\d+", operand):
            return int(operand)
        return known[operand] if operand in known else registers[operand]

    def address(operand: str) -> int:
        inner = re.fullmatch(r"\[(%?\w+)(?:\+(\d+))?\]", operand)
        assert inner is not None, operand
        return value(inner[1]) + int(inner[2] or 0)

    while at < len(code):
        line, at = code[at], at + 1
        if line.endswith(":"):
            continue
        found = _INSTRUCTION.fullmatch(line)
        assert found is not None, line
        guard, name, rest = found.groups()
        operands = [part.strip() for part in rest.split(",")] if rest else []
        if guard is not None and not registers[guard]:
            continue
        if name == "ret":
            return
        if name == "bra":
            at = labels[operands[0]]
            continue
        parts = name.split(".")
        if parts[0] == "st":
            _SIZES[parts[-1]].from_address(address(operands[0])).value = value(operands[1])
            continue
        assert operands[0] in declared, line
        match parts[0]:
            case "ld" if parts[1] == "param":
                result = address(operands[1])
            case "ld":
                result = int(_SIZES[parts[-1]].from_address(address(operands[1])).value)
            case "mov" | "cvt" | "cvta":
                result = value(operands[1])
            case "add":
                result = value(operands[1]) + value(operands[2])
            case "div":
                result = value(operands[1]) // value(operands[2])
            case "mad":
                result = value(operands[1]) * value(operands[2]) + value(operands[3])
            case "setp":
                assert parts[1] == "ge"
                result = int(value(operands[1]) >= value(operands[2]))
            case _:
                raise AssertionError(f"unknown instruction {name}")
        registers[operands[0]] = result % (1 << 64)
