"""How a checkpoint's processor prepares pictures: supported settings, and those refused by name. Knows no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdrpn.checkpoint.config_section import ConfigSection, read_optional_config
from sdrpn.errors import BadCheckpoint
from sdrpn.method.geometry import Fit

__all__ = ["Processor", "read_processor"]

Rgb = tuple[float, float, float]

_DEFAULT_MEAN, _DEFAULT_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RESCALE_FACTOR = 1 / 255
_LARGEST = 1e6  # for means and deviations; those for values that are not divided by 255 go up to 255
_BICUBIC = 3  # of PIL.Image.Resampling


@dataclass(frozen=True)
class Processor:
    """How pictures are normalised, (value / 255 - mean) / std, and how they become squares."""

    mean: Rgb
    std: Rgb
    border: tuple[int, int, int] | None  # RGB of the padding where it is not the mean colour
    fit: Fit  # what the processor of transformers does with this config
    config: ConfigSection

    def require_fit(self, fit: Fit, side_px: int) -> None:
        """Raise BadCheckpoint for sizes other than the tower's, or where `fit` needs another kind of resize."""
        config = self.config
        for name in ("size", "crop_size"):
            side = _side(config, name)
            if side is not None and side != side_px:
                raise BadCheckpoint(f"{config.where}: {name} is {side}; the vision tower sees {side_px} px")
        if fit == "pad":
            return  # the picture is square before this processor resizes it: nothing is cut or distorted
        config.require("do_resize", True)
        config.require("do_center_crop", True)
        size = config.get("size", {"shortest_edge": side_px})
        if isinstance(size, dict) and "shortest_edge" not in size:
            raise BadCheckpoint(
                f"{config.where}: size is {size!r}, which distorts pictures; expected a shortest_edge to cut them to: "
                "pad them instead",
                options=("fit pad",),
            )


def read_processor(folder: Path) -> Processor:
    """The processor of a checkpoint or a vision tower; CLIP's where the folder has none. Raises BadCheckpoint."""
    config = read_optional_config(folder / "preprocessor_config.json")
    if not config.values:
        config = read_optional_config(folder / "processor_config.json").section("image_processor")
    config.require("resample", _BICUBIC)
    mean, std = _rgb(config, "image_mean", _DEFAULT_MEAN), _rgb(config, "image_std", _DEFAULT_STD)
    if not all(value > 0 for value in std):
        raise config.wrong("image_std", config.get("image_std"), "three numbers above 0")
    border = tuple(int(255 * value) for value in mean)
    normalised = config.flag("do_normalize", True)
    if not normalised:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = config.number("rescale_factor", _RESCALE_FACTOR) if config.flag("do_rescale", True) else 1.0
    if not 0 < factor < float("inf"):
        raise config.wrong("rescale_factor", factor, "a number above 0")
    if abs(factor * 255 - 1) > 1e-6:
        # (value * factor - mean) / std, rewritten in terms of value / 255.
        mean, std = _divided(mean, 255 * factor), _divided(std, 255 * factor)
    same = tuple(int(255 * value) for value in mean) == border
    red, green, blue = border
    fit: Fit = "pad" if config.flag("do_pad") else "crop"
    return Processor(mean, std, None if same else (red, green, blue), fit, config)


def _divided(values: Rgb, divisor: float) -> Rgb:
    red, green, blue = (value / divisor for value in values)
    return red, green, blue


def _rgb(config: ConfigSection, key: str, default: Rgb) -> Rgb:
    value = config.get(key, default)
    try:
        red, green, blue = (float(channel) for channel in value)
    except (TypeError, ValueError, OverflowError):
        raise config.wrong(key, value, "three numbers") from None
    if not all(abs(channel) <= _LARGEST for channel in (red, green, blue)):
        raise config.wrong(key, value, "three numbers of a normalisation")
    return red, green, blue


def _side(config: ConfigSection, key: str) -> int | None:
    """The side of a size as transformers writes it: a number, a shortest edge, or height and width; None if absent."""
    value = config.get(key)
    sides = list(value.values()) if isinstance(value, dict) else [value]
    if value is None or not sides:
        return None
    side = sides[0]
    if isinstance(side, bool) or not isinstance(side, int) or any(other != side for other in sides):
        raise config.wrong(key, value, "one side in pixels")
    return side
