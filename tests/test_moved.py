"""Modules under the names that they had in the release before, for one version."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from sdrpn._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_module_and_says_where_it_is(old: str) -> None:
    now = importlib.import_module(MOVED[old])
    spec = now.__spec__
    for name in [name for name in sys.modules if name == old]:
        del sys.modules[name]
    with pytest.warns(
        DeprecationWarning, match=rf"^{old} is {MOVED[old]} now; the old name goes with the next version"
    ):
        found = importlib.import_module(old)
    assert found is now
    assert now.__spec__ is spec
    assert now.__name__ == MOVED[old]


def test_names_of_the_old_bundle_module() -> None:
    import sdrpn.bundle
    from sdrpn.bundle.bundle import open_bundle

    with pytest.warns(
        DeprecationWarning, match=r"^sdrpn\.bundle\.open_bundle is sdrpn\.bundle\.bundle\.open_bundle now"
    ):
        assert sdrpn.bundle.open_bundle is open_bundle
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sdrpn.bundle.nothing  # noqa: B018


def test_a_name_that_went_to_another_module() -> None:
    from sdrpn.families.llava.vision_spec import VisionSpec
    from sdrpn.method import spec

    with pytest.warns(DeprecationWarning, match=r"^sdrpn\.method\.spec\.VisionSpec is sdrpn\.families\.llava\."):
        assert spec.VisionSpec is VisionSpec
    with pytest.raises(AttributeError, match="has no attribute 'AudioSpec'"):
        spec.AudioSpec  # noqa: B018


def test_a_name_that_changed() -> None:
    from sdrpn import model
    from sdrpn.model import base

    for module in (model, base):
        with pytest.warns(DeprecationWarning, match=r"LlavaBase is sdrpn\.model(\.base)?\.BaseModel now"):
            assert module.LlavaBase is base.BaseModel


def test_the_former_prompt_module_knows_prompts_by_name() -> None:
    from sdrpn.families.llava.prompt import build_prompt

    sys.modules.pop("sdrpn.prompt", None)
    with pytest.warns(DeprecationWarning, match=r"^sdrpn\.prompt is "):
        former = importlib.import_module("sdrpn.prompt")
    assert former.build_prompt is build_prompt


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'sdrpn\.nothing'"):
        importlib.import_module("sdrpn.nothing")


def test_scripts_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "from sdrpn.bundle import open_bundle; from sdrpn.spec import ModelSpec, VisionSpec; "
        "from sdrpn.image import open_image; print(ModelSpec.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "sdrpn.method.spec\n"
    assert "DeprecationWarning: sdrpn.spec is sdrpn.method.spec now" in done.stderr
