"""What this machine can run, as tables and lines."""

from __future__ import annotations

from collections.abc import Iterator

from sdrpn import __version__
from sdrpn.host.libraries import Extra, Library
from sdrpn.host.machine import Machine
from sdrpn.host.sizes import text_from_bytes
from sdrpn.reports.text import Part, Table
from sdrpn.workflows.diagnosis import Diagnosis

__all__ = ["diagnosis_text"]


def diagnosis_text(diagnosis: Diagnosis) -> Iterator[Part]:
    """The machine, what works on it, libraries and extras, and the commands that install what is missing."""
    yield Table("", ("Machine", ""), list(_machine_rows(diagnosis.machine)))
    yield ""
    abilities = diagnosis.abilities
    rows = [(ability.name, "yes" if ability.ready else "no", ability.detail) for ability in abilities]
    yield Table("", ("What works here", "", ""), rows)
    yield ""
    if diagnosis.plan is not None:
        from sdrpn.workflows.memory_plan_text import memory_text  # see diagnosis.py

        yield f"{diagnosis.plan.bundle} here"
        yield from memory_text(diagnosis.plan)
        yield ""
    yield Table("", ("Library", "Version", "Wanted", "For"), [_library_row(each) for each in diagnosis.libraries])
    yield ""
    extras = [(extra.name, extra.gives, _state(extra)) for extra in diagnosis.extras.values()]
    yield Table("", ("Extra", "What it adds", "State"), extras)
    commands = {ability.command: ability.name for ability in reversed(abilities) if ability.command}
    if commands:
        yield "\nTo install what is missing:"
        yield from (f"  {command}   # {name}" for command, name in reversed(commands.items()))
    yield from (f"\nNote: {note}" for note in diagnosis.notes)


def _machine_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    place = "virtual environment" if machine.virtual_environment else "no virtual environment"
    yield "sdrpn", __version__
    yield "system", f"{machine.system}, {machine.arch}"
    yield "Python", f"{machine.python}, {place}: {machine.python_path}"
    yield "CPU", f"{machine.cpu_cores} cores"
    yield "memory", f"{_size(machine.memory_bytes)}, {_size(machine.memory_available_bytes)} available"
    for gpu in machine.gpus:
        capability = f"compute capability {gpu.compute_capability or 'unknown'}"
        yield "GPU", f"{gpu.name}, {_size(gpu.memory_bytes)}, {capability}, driver {gpu.driver or 'unknown'}"
    if not machine.gpus:
        yield "GPU", "none that nvidia-smi shows"
    if machine.jetson is not None:
        release = f"JetPack {machine.jetson.jetpack or 'unknown'}, L4T {machine.jetson.l4t or 'unknown'}"
        yield "Jetson", f"{machine.jetson.model}, {release}"


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else text_from_bytes(size_bytes)


def _library_row(library: Library) -> tuple[str, ...]:
    return library.name, _version(library), library.wanted, ", ".join(library.extras)


def _version(library: Library) -> str:
    if library.version is None:
        return "not installed"
    return library.version if library.good else f"{library.version}, unsupported"


def _state(extra: Extra) -> str:
    return "complete" if extra.complete else f"lacks {', '.join(extra.missing)}"
