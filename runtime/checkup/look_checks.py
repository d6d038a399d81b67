"""Check on this device what only looks: vision, trunk and RPN, from graphs or engines without a tail."""

from __future__ import annotations

import numpy as np

from sdrpn.method.roi import RoiPolicy
from sdrpn.reports.device_report import Figure
from sdrpn.runtime.bench import bench_picture, bench_prompt
from sdrpn.runtime.checkup.bundle_checks import BundleChecks, compare_bits, relative_difference, require_within
from sdrpn.runtime.checkup.steps import CheckFailed, Finding, Step
from sdrpn.runtime.look import Look
from sdrpn.runtime.session import Session

__all__ = ["LookChecks"]

_REPEATS = 5
_POLICY = RoiPolicy()


class LookChecks(BundleChecks):
    """The checks of a bundle whose sessions are opened with `parts="look"`."""

    def steps(self) -> list[Step]:
        """The steps, those with the fewest requirements first."""
        return [
            Step("load", self.load),
            Step("numbers, graph by graph", self.numbers),
            Step("a whole look", self.look),
            Step("the picture kept", self.prefix_reuse),
            Step("the same question five times", self.repeats),
            Step("time", self.time_of_a_look),
            Step("memory goes back", self.memory_back),
        ]

    def look(self) -> Finding:
        """The map equals the reference's, up to rounding."""
        with self._device.open() as session:
            found = _look(session)
        reference = self._device.open_reference()
        if reference is None:
            return Finding("a map; nothing to compare with: other backends are compared with this one")
        with reference:
            figures = self._compared_maps(found, _look(reference))
        whose = f"{reference.variant.name} on {reference.backend}"
        return Finding(f"the map of {whose}, up to {figures['map_difference']:.1e}", figures)

    def prefix_reuse(self) -> Finding:
        """A second question about an image gets the same map as in a fresh session, and computes no vision."""
        with self._device.open() as session:
            fresh = _look(session)
            session.forget_image()
            _look(session, reverse=True)
            again = _look(session)
        if again.timings.vision_s:
            raise CheckFailed("the second question about an image ran the vision graph again")
        return Finding("no vision for the second question, the same map", self._compared_maps(again, fresh))

    def repeats(self) -> Finding:
        """Whether repeated looks have bit-identical maps."""
        with self._device.open() as session:
            looks = []
            for _ in range(_REPEATS):
                session.forget_image()
                looks.append(_look(session))
        first, *others = looks
        if all(compare_bits(first.roi_map, other.roi_map) for other in others):
            return Finding(f"{_REPEATS} times the same bits")
        figures = [self._compared_maps(other, first) for other in others]
        worst = max(float(found["map_difference"]) for found in figures)
        return Finding(f"other bits: maps differ by up to {worst:.2g}", {"map_difference": worst})

    def time_of_a_look(self) -> Finding:
        """Median times on a new picture, and of a second question about it."""
        with self._device.open() as session:
            _look(session)  # warm-up: the first look is slower
            new, second = [], []
            for _ in range(_REPEATS):
                session.forget_image()
                new.append(_look(session).timings.total_s)
                second.append(_look(session, reverse=True).timings.total_s)
        new_ms, second_ms = float(np.median(new)) * 1e3, float(np.median(second)) * 1e3
        return Finding(
            f"a new picture {new_ms:.1f} ms, a second question about it {second_ms:.1f} ms",
            {"look_ms": new_ms, "second_look_ms": second_ms},
        )

    def _first_s(self, session: Session) -> float:
        return _look(session).timings.total_s

    def _compared_maps(self, found: Look, expected: Look) -> dict[str, Figure]:
        """The difference of the maps, whose values are 0 to 1. Raises CheckFailed above the variant's limit."""
        difference = relative_difference(found.roi_map, expected.roi_map)
        require_within(difference, self._limits.values, "RoI maps")
        return {"map_difference": difference}


def _look(session: Session, *, reverse: bool = False) -> Look:
    before, after = bench_prompt(session.spec)
    return session.look_ids(bench_picture(0), before, after[::-1] if reverse else after, roi=_POLICY)
