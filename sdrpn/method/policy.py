"""By which policy a model looks again: its own, where that is from, and what is asked for instead. Knows no model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

from sdrpn.errors import BadInput
from sdrpn.host.json_reader import read_dataclass
from sdrpn.method.roi import RoiPolicy

__all__ = ["OWN", "ModelPolicy", "Origin", "Roi", "RoiChange", "looking_policy", "policy_for", "policy_from_json"]

Origin = Literal["official", "labels", "given"]
ORIGINS: dict[Origin, str] = {
    "official": "of the official evaluation",
    "labels": "chosen by the model's own labels at the end of its training",
    "given": "given to the export",
}


@dataclass(frozen=True)
class RoiChange:
    """What is asked for in place of parts of a model's own policy; None: as the model has it.

    threshold, upscale, max_ratio, min_cells, max_share, gate_threshold: see `RoiPolicy`
    """

    threshold: float | None = None
    upscale: Literal["mask", "bbox"] | None = None
    max_ratio: float | None = None
    min_cells: int | None = None
    max_share: float | None = None
    gate_threshold: float | None = None

    def __post_init__(self) -> None:
        # Refused here, where it is said, and not when a model is open: any policy serves to try it on.
        self.applied_to(RoiPolicy(upscale=self.upscale or "bbox"))

    def applied_to(self, policy: RoiPolicy) -> RoiPolicy:
        """The policy with these parts changed. A `max_ratio` of its own ends with its "bbox"."""
        changes: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        if self.upscale == "mask" and self.max_ratio is None:
            changes["max_ratio"] = None
        return dataclasses.replace(policy, **changes)


# All as the model has it.
OWN = RoiChange()
# How somebody says where to look again: a policy; what differs from the model's own, or its threshold alone; None: not.
Roi: TypeAlias = RoiPolicy | RoiChange | float | None
_CHOICES = "a threshold between 0 and 1, a RoiChange, or a RoiPolicy"


def policy_for(roi: Roi, own: RoiPolicy) -> RoiPolicy | None:
    """The policy that was asked for. Raises BadInput for what is none."""
    if roi is None or isinstance(roi, RoiPolicy):
        return roi
    if isinstance(roi, RoiChange):
        return roi.applied_to(own)
    if not _is_roi(roi):
        raise BadInput(f"roi is {roi!r}; expected {_CHOICES}, or None to look once")
    threshold = roi if isinstance(roi, int) else float(roi)  # NumPy's numbers too, which JSON does not hold
    return RoiChange(threshold=threshold).applied_to(own)


def looking_policy(roi: Roi, own: RoiPolicy) -> RoiPolicy:
    """`policy_for` where regions are all that is asked for. Raises BadInput for None too."""
    policy = policy_for(roi, own) if _is_roi(roi) else None
    if policy is None:
        raise BadInput(f"roi is {roi!r}; expected {_CHOICES}: a look finds regions")
    return policy


def _is_roi(roi: object) -> bool:
    return isinstance(roi, (RoiPolicy, RoiChange, Real)) and not isinstance(roi, bool)


@dataclass(frozen=True)
class ModelPolicy:
    """What a model looks by unless something else is asked for.

    origin: "official": of its family's published evaluation; "labels": the threshold was chosen where crops overlap
        most with the model's own labels, at the end of its training; "given": the threshold was given to the export
    """

    roi: RoiPolicy
    origin: Origin

    @property
    def about(self) -> str:
        """The threshold and where it is from, for people."""
        return f"{self.roi.threshold:g}, {ORIGINS[self.origin]}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse is `policy_from_json`."""
        return dataclasses.asdict(_Stored(**{name: getattr(self.roi, name) for name in _PARTS}, origin=self.origin))


def policy_from_json(value: object, place: str = "") -> ModelPolicy:
    """Raises Misfit for a missing or unknown entry, or one that no policy has."""
    return read_dataclass(_Stored, value, place).model_policy()


@dataclass(frozen=True)
class _Stored:
    """A model's policy as files have it: flat, without what is deprecated."""

    threshold: float
    upscale: Literal["mask", "bbox"]
    max_ratio: float | None
    min_cells: int
    max_share: float
    origin: Origin
    gate_threshold: float | None = None

    def __post_init__(self) -> None:
        self.model_policy()  # RoiPolicy refuses what is none, while the reader knows the place

    def model_policy(self) -> ModelPolicy:
        """As the rest of the program has it."""
        return ModelPolicy(RoiPolicy(**{name: getattr(self, name) for name in _PARTS}), self.origin)


_PARTS = ("threshold", "upscale", "max_ratio", "min_cells", "max_share", "gate_threshold")
