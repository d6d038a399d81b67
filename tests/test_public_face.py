"""`import sdrpn`: the names that it hands on, what they cost, and where a checkout finds its own rooms."""

from __future__ import annotations

import ast
import os
import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sdrpn
from sdrpn import errors
from tests.sources import FACE, ROOT, imports_of, modules

# What a program may rely on. A name that is added here is documented in docs/python.md.
NAMES = {
    "Answer",
    "BenchBundle",
    "BenchReference",
    "BuildOptions",
    "CalibrationData",
    "CheckpointParts",
    "GateLabelRequest",
    "GateOptions",
    "GateTrainingRequest",
    "HeadsRequest",
    "LookRequest",
    "ReadOptions",
    "Tracker",
    "look_stream",
    "Look",
    "ProposalRequest",
    "QuantizeRequest",
    "Region",
    "RelabelRequest",
    "RoiChange",
    "RoiPolicy",
    "Session",
    "TeacherRequest",
    "TrainOptions",
    "Turn",
    "__version__",
    "bench_bundle",
    "build_engines",
    "check_device",
    "diagnose_machine",
    "evaluate_model",
    "export_bundle",
    "find_heads",
    "inspect_bundle",
    "inspect_engines",
    "label_gate",
    "label_questions",
    "measure_rounding",
    "optimize_bundle",
    "plan_memory",
    "relabel_questions",
    "run_demo",
    "train_gate",
    "train_rpn",
    "verify_bundle",
    *errors.__all__,
    "InstallRequest",
    "PackRequest",
    "TritonRequest",
    "install_release",
    "list_releases",
    "pack_release",
    "roll_back_release",
    "sign_release",
    "verify_release",
    "write_triton_repository",
}


def python(*arguments: str, folder: Path, isolated: bool = False) -> str:
    """What Python prints, started in a folder, with or without the packages that are installed for it."""
    options = ("-S",) if isolated else ()
    command = [sys.executable, *options, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list() -> None:
    assert set(sdrpn.__all__) == NAMES
    assert list(sdrpn.__all__) == sorted(sdrpn.__all__)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_there_and_has_a_docstring(name: str) -> None:
    value = getattr(sdrpn, name)
    assert name in dir(sdrpn)
    assert name == "__version__" or (value.__name__ == name and value.__doc__)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'sdrpn' has no attribute 'Sesion'"):
        sdrpn.Sesion  # type: ignore[attr-defined]  # noqa: B018


def test_help_has_a_line_for_each() -> None:
    page = pydoc.plain(pydoc.render_doc(sdrpn))
    assert {name for name in NAMES if re.search(rf"^ +{name} +\S.+$", page, re.MULTILINE)} == NAMES - {"__version__"}


def test_type_checkers_read_what_is_imported() -> None:
    """The block that they read, and the table by which a name is found."""
    told = {imported.name for imported in imports_of(FACE) if imported.for_types}
    homes = {name: sdrpn._HOMES.get(name, "sdrpn.errors") for name in NAMES - {"__version__"}}
    assert {f"{home}.{name}" for name, home in homes.items()} == told - set(modules())


def test_importing_it_loads_no_library_and_no_other_room() -> None:
    # `os` is there in every Python that was started without -S.
    code = "import os, sys; before = set(sys.modules); import sdrpn; print(sorted(set(sys.modules) - before))"
    assert ast.literal_eval(python("-c", code, folder=ROOT, isolated=True)) == ["__future__", "sdrpn"]


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_onnxruntime_sends_nothing_unless_somebody_wants_it(given: str | None, kept: str, tmp_path: Path) -> None:
    """It keeps an identifier in the home before it does: there is none."""
    script = "import sdrpn, os, onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    home = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    home |= {"HOME": str(tmp_path)} | ({} if given is None else {"ORT_DISABLE_TELEMETRY": given})
    done = subprocess.run([sys.executable, "-c", script], env=home, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{kept}\n", "")
    if given is None:
        assert not list(tmp_path.rglob("*"))


def test_python_m_is_the_command() -> None:
    assert python("-m", "sdrpn", "--version", folder=ROOT) == f"sdrpn {sdrpn.__version__}\n"


class TestCheckout:
    """Python started in the root of a checkout, with nothing of this project installed."""

    def test_it_has_its_stages(self) -> None:
        code = (
            "import sdrpn.export.options, sdrpn.engines.options, sdrpn.host.sizes\n"
            "print(sdrpn.__file__, sdrpn.engines.__path__, sep='|')"
        )
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        code = f"import sys; sys.path += {libraries}\n{code}"
        file, engines = python("-c", code, folder=ROOT, isolated=True).strip().split("|")
        assert (file, ast.literal_eval(engines)) == (str(ROOT / "sdrpn/__init__.py"), [str(ROOT / "engines")])

    def test_folders_of_others_beside_an_installed_package_are_not_taken(self, tmp_path: Path) -> None:
        package = copied(tmp_path, "sdrpn")
        for name in ("export", "engines", "runtime"):
            copied(package, name)
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise ImportError('somebody else')\n")
        assert stages_above(tmp_path) == []

    def test_one_folder_of_that_name_is_not_enough(self, tmp_path: Path) -> None:
        copied(tmp_path, "sdrpn")
        copied(tmp_path, "runtime")
        assert stages_above(tmp_path) == []

    def test_all_three_are(self, tmp_path: Path) -> None:
        for name in ("sdrpn", "export", "engines", "runtime"):
            copied(tmp_path, name)
        assert stages_above(tmp_path) == [str(tmp_path)]


def copied(folder: Path, name: str) -> Path:
    """The first files of a package, which is all that says what it is."""
    (folder / name).mkdir()
    for path in (ROOT / name).glob("*.py"):
        shutil.copy(path, folder / name)
    return folder / name


def stages_above(folder: Path) -> list[str]:
    """What the package in `folder` adds to its own path."""
    code = "import sdrpn; print(sdrpn.__path__[1:])"
    found: list[str] = ast.literal_eval(python("-c", code, folder=folder, isolated=True))
    return found
