"""The process for one group of steps: `python -m sdrpn.runtime.checkup GROUP FD`, with the request on stdin.

Events are written to the descriptor, one JSON object per line: {"steps": [names]}, {"begin": name}, {"result": {...}}.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from sdrpn.errors import SdrpnError
from sdrpn.runtime.checkup.groups import CheckupRequest, steps_of
from sdrpn.runtime.checkup.steps import Finding, Step, run_steps


def main(group: str, descriptor: int) -> None:
    """Run the steps of a group and report each."""
    request = CheckupRequest(**json.load(sys.stdin))
    with os.fdopen(descriptor, "w", encoding="utf-8") as events:

        def report(**event: Any) -> None:
            events.write(f"{json.dumps(event)}\n")
            events.flush()

        steps = _steps(group, request)
        report(steps=[step.name for step in steps])
        for result in run_steps(group, steps, lambda name: report(begin=name)):
            report(result=asdict(result))


def _steps(group: str, request: CheckupRequest) -> list[Step]:
    """The steps of the group; where they cannot be created, one step that fails with the reason."""
    try:
        return steps_of(group, request)
    except SdrpnError as error:
        reason = error

        def fail() -> Finding:
            raise reason

        return [Step("open", fail)]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
