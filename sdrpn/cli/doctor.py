"""`sdrpn doctor`: what this machine can run, what is missing, and the command that installs it.

The JSON form is that of sdrpn.workflows.diagnosis.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sdrpn import __version__
from sdrpn.host.sizes import text_from_bytes

if TYPE_CHECKING:
    from sdrpn.host.libraries import Extra, Library
    from sdrpn.host.machine import Machine
    from sdrpn.workflows.diagnosis import Diagnosis

HELP = "show what this machine can run and what is missing"
DESCRIPTION = """\
Show what this machine can run, which versions of libraries are installed, what each extra adds, what is missing and
the command that installs it. Always exits 0.

With --device the machine is tested, step by step: CUDA (memory, copies, order on a stream, captured graphs), the
compiled image path, and with --bundle a bundle's engines or graphs (numbers, answers, repetition, time, memory). A
failed step does not stop the others; exits 1 if one failed. Attach the report to a bug report.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from sdrpn.cli.device_check import add_device_arguments

    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis, or test the device."""
    from sdrpn.cli.device_check import require_device, run_checks
    from sdrpn.terminal.output import print_json
    from sdrpn.workflows.diagnosis import diagnose_machine

    if args.device:
        return run_checks(args)
    require_device(args)
    diagnosis = diagnose_machine()
    if args.json:
        print_json(diagnosis.to_json())
    else:
        _print(diagnosis)
    return 0


def _print(diagnosis: Diagnosis) -> None:
    from sdrpn.terminal.output import print_table, print_text

    print_table(("Machine", ""), _machine_rows(diagnosis.machine))
    print_text("")
    print_table(
        ("What works here", "", ""),
        [(a.name, "yes" if a.ready else "no", a.detail) for a in diagnosis.abilities],
    )
    print_text("")
    print_table(
        ("Library", "Version", "Wanted", "For"),
        [
            (library.name, _version(library), library.wanted, ", ".join(library.extras))
            for library in diagnosis.libraries
        ],
    )
    print_text("")
    print_table(
        ("Extra", "What it adds", "State"),
        [(extra.name, extra.gives, _state(extra)) for extra in diagnosis.extras.values()],
    )
    commands = {ability.command: ability.name for ability in reversed(diagnosis.abilities) if ability.command}
    if commands:
        print_text("\nTo install what is missing:")
        for command, name in reversed(commands.items()):
            print_text(f"  {command}   # {name}")
    for note in diagnosis.notes:
        print_text(f"\nNote: {note}")


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    place = "virtual environment" if machine.virtual_environment else "no virtual environment"
    rows = [
        ("sdrpn", __version__),
        ("system", f"{machine.system}, {machine.arch}"),
        ("Python", f"{machine.python}, {place}: {machine.python_path}"),
        ("CPU", f"{machine.cpu_cores} cores"),
        ("memory", f"{_size(machine.memory_bytes)}, {_size(machine.memory_available_bytes)} available"),
    ]
    for gpu in machine.gpus:
        capability = f"compute capability {gpu.compute_capability or 'unknown'}"
        rows.append(("GPU", f"{gpu.name}, {_size(gpu.memory_bytes)}, {capability}, driver {gpu.driver or 'unknown'}"))
    if not machine.gpus:
        rows.append(("GPU", "none that nvidia-smi shows"))
    if machine.jetson is not None:
        release = f"JetPack {machine.jetson.jetpack or 'unknown'}, L4T {machine.jetson.l4t or 'unknown'}"
        rows.append(("Jetson", f"{machine.jetson.model}, {release}"))
    return rows


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else text_from_bytes(size_bytes)


def _version(library: Library) -> str:
    if library.version is None:
        return "not installed"
    return library.version if library.good else f"{library.version}, unsupported"


def _state(extra: Extra) -> str:
    return "complete" if extra.complete else f"lacks {', '.join(extra.missing)}"
