"""The compiled image path is compared, or skipped with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sdrpn.host import native_modules
from sdrpn.host.native_modules import native_module
from sdrpn.reports.device_report import CheckResult
from sdrpn.runtime.backends.device_memory import Device
from sdrpn.runtime.checkup import picture_checks
from sdrpn.runtime.checkup.groups import STEP_COUNTS
from sdrpn.runtime.checkup.picture_checks import PictureChecks
from sdrpn.runtime.checkup.steps import Skip, run_steps


def no_gpu() -> Device:
    raise Skip("no GPU")


def checked() -> dict[str, CheckResult]:
    return {result.name: result for result in run_steps("pictures", PictureChecks(no_gpu).steps())}


def test_the_compiled_path_is_pillows() -> None:
    results = checked()
    assert len(results) == STEP_COUNTS["pictures"]
    compiled = native_module() is not None
    for name in ("resize, compiled", "patches, compiled"):
        assert results[name].state == ("passed" if compiled else "skipped")
    assert results["resize, on the GPU"].detail == results["JPEG, on the GPU"].detail == "no GPU"


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_checks, "native_module", lambda name="_native": None)
    monkeypatch.setattr(native_modules, "_imported", lambda name: ModuleNotFoundError(name))
    for name in ("resize, compiled", "patches, compiled", "JPEG, compiled"):
        assert "was not compiled: Pillow is used" in checked()[name].detail


def test_a_module_that_cannot_be_loaded_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_checks, "native_module", lambda name="_native": None)
    reason = "libjpeg.so.62: cannot open shared object file"
    monkeypatch.setattr(native_modules, "_imported", lambda name: ImportError(reason))
    assert f"the native JPEG decoder cannot be loaded ({reason})" in checked()["JPEG, compiled"].detail


def test_wrong_values_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*arguments: Any) -> None:
        arguments[-1][0, 0, 0, 0] = 9.0

    monkeypatch.setattr(picture_checks, "native_module", lambda name="_native": SimpleNamespace(decode=spoilt_jpeg))
    monkeypatch.setattr(picture_checks, "write_base", spoilt)
    monkeypatch.setattr(picture_checks, "write_patches", spoilt_patches)
    results = checked()
    assert results["resize, compiled"].state == "failed"
    assert "values are not Pillow's" in results["resize, compiled"].detail
    assert results["patches, compiled"].state == "failed"
    assert "of 1440000 values are not Pillow's" in results["JPEG, compiled"].detail


def spoilt_jpeg(data: bytes, out: np.ndarray[Any, Any]) -> None:
    out[...] = 3


def spoilt_patches(pixels: Any, box: Any, sizes: Any, vision: Any, out: np.ndarray[Any, Any]) -> None:
    out[...] = 3
