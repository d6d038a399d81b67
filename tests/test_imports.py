"""Who may import whom: read from the sources, and tried out with the heavy libraries refused.

The rules keep the runtime installable without torch, and the stages apart: what passes between them is a bundle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.sources import PACKAGES, ROOT, imports_in, modules, needs_of

STAGES = ("sdrpn.export", "sdrpn.engines", "sdrpn.runtime")
# The room that joins stages: whole jobs, without arguments or printing.
WORKFLOWS = "sdrpn.workflows"
# What belongs to the command line alone.
OF_THE_COMMAND_LINE = ("sdrpn.cli", "argparse", "argcomplete", "rich")
# What makes models and graphs; the runtime only runs them.
AUTHORING = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "ml_dtypes")
# What `sdrpn --help` does not need.
STARTUP_FREE = (*AUTHORING, "numpy", "onnxruntime", "PIL", "rich", "tokenizers", "jinja2")
# Names of TensorRT that build engines instead of running them.
TENSORRT_BUILDER = {"Builder", "OnnxParser", "NetworkDefinitionCreationFlag", "BuilderFlag"}


def stage_of(module: str) -> str | None:
    return next((stage for stage in STAGES if module == stage or module.startswith(f"{stage}.")), None)


def is_command_line(module: str) -> bool:
    """A verb, or what `python -m` runs."""
    return module.startswith("sdrpn.cli") or module.endswith("__main__")


def violations(importers: Iterator[str], *forbidden: str, at_import_only: bool = False) -> list[str]:
    return [
        f"{modules()[module].relative_to(ROOT)}:{imported.line} imports {imported.name}"
        for module in importers
        for imported in needs_of(module)
        if imported.is_of(*forbidden) and (imported.at_import or not at_import_only)
    ]


def reachable_from(package: str) -> set[str]:
    """The project's modules that those of `package` import, directly or not, in functions too."""
    todo = [module for module in modules() if module == package or module.startswith(f"{package}.")]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        # Importing a module runs the packages that it lies in.
        parents = [module.rpartition(".")[0]]
        todo += [name for name in (*parents, *(imported.name for imported in needs_of(module))) if name in modules()]
    return seen


class TestSources:
    def test_the_reader_of_imports_sees_all_forms(self) -> None:
        source = (
            "import a.b\n"
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import typed\n"
            "try:\n    import tried\nexcept ImportError:\n    pass\n"
            "class C:\n    import in_class\n    def f(self):\n        from in_function import x\n"
            "from . import sibling\nfrom ..up import y\n"
        )
        found = {
            (imported.name, imported.at_import)
            for imported in imports_in(ast.parse(source), "sdrpn.cli", at_import=True)
        }
        assert found >= {
            ("a.b", True),
            ("typed", False),
            ("tried", True),
            ("in_class", True),
            ("in_function", False),
            ("sdrpn.cli.sibling", True),
            ("sdrpn.up", True),
        }

    def test_every_package_has_modules(self) -> None:
        for package in PACKAGES.values():
            assert package in modules()

    def test_only_the_workflows_join_stages(self) -> None:
        others = (module for module in modules() if stage_of(module) is None and not module.startswith(WORKFLOWS))
        assert violations(others, *STAGES) == []

    def test_only_the_command_line_needs_the_workflows(self) -> None:
        below = (module for module in modules() if not is_command_line(module) and not module.startswith(WORKFLOWS))
        assert violations(below, WORKFLOWS, "sdrpn.cli") == []

    def test_the_workflows_know_no_command_line(self) -> None:
        own = (module for module in modules() if module.startswith(WORKFLOWS))
        assert violations(own, *OF_THE_COMMAND_LINE) == []

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stage_imports_no_other_stage(self, stage: str) -> None:
        own = (module for module in modules() if stage_of(module) == stage)
        assert violations(own, *(other for other in STAGES if other != stage), WORKFLOWS, "sdrpn.cli") == []

    def test_the_command_line_imports_stages_and_libraries_inside_verbs_only(self) -> None:
        verbs = (module for module in modules() if module.startswith("sdrpn.cli"))
        assert violations(verbs, *STAGES, *STARTUP_FREE, at_import_only=True) == []

    def test_the_runtime_reaches_nothing_that_makes_models(self) -> None:
        assert violations(iter(sorted(reachable_from("sdrpn.runtime"))), *AUTHORING) == []

    def test_the_runtime_builds_no_engines(self) -> None:
        named = [
            f"{modules()[module].relative_to(ROOT)}:{node.lineno} names {node.attr}"
            for module in sorted(reachable_from("sdrpn.runtime"))
            for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and node.attr in TENSORRT_BUILDER
        ]
        assert named == []

    def test_export_needs_torch_for_nothing(self) -> None:
        own = (module for module in modules() if stage_of(module) == "sdrpn.export")
        assert violations(own, "torch", at_import_only=True) == []


# Imports a package and all that lies in it with some libraries refused. Backends of libraries that are not installed
# here are allowed to say so.
IMPORT_ALL = """
import importlib, pkgutil, sys

package, refused = sys.argv[1], sys.argv[2].split(",")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ImportError(f"{name} is refused here")
        return None

sys.meta_path.insert(0, Refuse())
root = importlib.import_module(package)
for found in pkgutil.walk_packages(root.__path__, f"{package}."):
    try:
        importlib.import_module(found.name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("tensorrt", "tensorrt_rtx", "cuda", "torch_tensorrt"):
            raise
loaded = [name for name in refused if name in sys.modules]
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    ("package", "refused"),
    [
        ("sdrpn.runtime", AUTHORING),
        ("sdrpn.export", ("torch",)),
        ("sdrpn.cli", STARTUP_FREE),
        (WORKFLOWS, (*AUTHORING, "onnxruntime")),  # the base install has all names of the public face, a Jetson too
    ],
)
def test_a_package_imports_without(package: str, refused: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package, ",".join(refused)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
