"""Families by name, and that nothing above them knows a backbone."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from sdrpn.errors import BadInput
from sdrpn.families.registry import claiming_family, family_named, load_part, registered, spec_from_json
from tests.sources import imports_of, modules
from tests.tiny_models import tiny_spec

LLAVA = "sdrpn.families.llava"
# The part that it names on the export's side.
ITS_OWN = ("sdrpn.export.vision", LLAVA)
OTHER_FAMILIES = ("sdrpn.families.qwen.",)
# What only LLaVA-1.5 has: its tokens, its side in pixels, its name.
CONSTANTS = {576, 336, "llava"}


def above() -> list[str]:
    return [module for module in modules() if not module.startswith(ITS_OWN)]


def test_nothing_above_imports_a_family() -> None:
    named = [
        f"{module}: {imported.name}" for module in above() for imported in imports_of(module) if imported.is_of(LLAVA)
    ]
    assert named == []


def test_nothing_above_has_a_constant_of_one_backbone() -> None:
    found = [
        f"{module}:{node.lineno}: {node.value!r}"
        for module in above()
        if module not in ("sdrpn._moved", "sdrpn.families.registry") and not module.startswith(OTHER_FAMILIES)
        for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and not isinstance(node.value, (bool, bytes)) and node.value in CONSTANTS
    ]
    assert found == []


def test_a_family_loads_no_library_that_the_runtime_does_without() -> None:
    code = (
        "import sys; from sdrpn.families.registry import family_named; family_named('llava'); "
        "print([name for name in ('torch', 'onnx_ir', 'onnxscript', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_its_parts_are_where_it_says() -> None:
    family = family_named("llava")
    assert load_part(family.vision_author).weights is not None
    assert load_part(family.vision_module).__module__ == f"{LLAVA}.torch_vision"


def test_an_unknown_family_is_refused_in_a_line() -> None:
    value = {**tiny_spec().to_json(), "family": "qwen2_5_vl"}
    with pytest.raises(BadInput, match="the model family 'qwen2_5_vl' is unknown to this version; expected llava"):
        spec_from_json(value)


@pytest.mark.parametrize(("family", "message"), [(3, "family is 3; expected the name"), (None, "family is missing")])
def test_a_family_that_is_no_name(family: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        spec_from_json({**tiny_spec().to_json(), "family": family})


def test_a_family_is_known_while_it_is_registered() -> None:
    with registered("other", f"{LLAVA}.family:FAMILY"):
        assert family_named("other").name == "llava"
        with pytest.raises(BadInput, match="exists already"), registered("other", "a:b"):
            pass
    with pytest.raises(BadInput, match="unknown"):
        family_named("other")


@pytest.mark.parametrize(
    ("config", "claimed"),
    [({"model_type": "llava"}, True), ({"mm_vision_tower": "clip"}, True), ({"model_type": "qwen2_5_vl"}, False)],
)
def test_a_config_tells_its_family(config: dict[str, str], claimed: bool) -> None:
    family = claiming_family(config)
    assert (family is not None and family.name == "llava") is claimed
