"""The unit for systemd and the Dockerfiles: linted where the linters are, and their commands are understood."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn.cli.main import build_parser
from sdrpn.engines import read_targets

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest installs it there
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "examples" / "systemd" / "sdrpn.service"
DROP_INS = {"gpu": ["gpu.conf"], "network": ["network.conf"], "all": ["gpu.conf", "network.conf"]}
DOCKERFILES = sorted(
    set((ROOT / "examples" / "docker").glob("Dockerfile.*")) - set((ROOT / "examples").rglob("*.dockerignore"))
)
files = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


def program(name: str) -> str:
    """A linter on the path or beside this Python; without it the test is skipped."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def settings(path: Path) -> list[tuple[str, str]]:
    """(name, value) of every line of a unit."""
    lines = path.read_text("utf-8").splitlines()
    return [
        (name, value)
        for line in lines
        if not line.startswith("#") and "=" in line
        for name, value in [line.split("=", 1)]
    ]


@pytest.fixture(params=["alone", *DROP_INS])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit with a command that is here, alone or with drop-ins."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text("utf-8").replace("/opt/sdrpn/bin/sdrpn", sys.executable), "utf-8")
    for name in DROP_INS.get(request.param, ()):
        (tmp_path / f"{UNIT.name}.d").mkdir(exist_ok=True)
        shutil.copy(UNIT.with_name(name), tmp_path / f"{UNIT.name}.d")
    return path


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program("systemd-analyze"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_the_unit(unit: Path) -> None:
    done = analyze("verify", "--man=no", unit)
    if "Failed to" in done.stderr and "manager" in done.stderr:
        pytest.skip(done.stderr)  # no systemd to ask, as in some containers
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_hardened(unit: Path) -> None:
    """At most 2.0 of 10; a unit without any of it has 9.6."""
    done = analyze("security", "--offline=yes", "--no-pager", "--threshold=20", unit)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze cannot check units offline")
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_the_unit_is_watched() -> None:
    found = dict(settings(UNIT))
    assert (found["Type"], found["NotifyAccess"], found["Restart"]) == ("notify", "main", "on-failure")
    assert int(found["WatchdogSec"]) > 0


@pytest.mark.parametrize("drop_ins", [[], ["network.conf"]], ids=["alone", "network"])
def test_the_command_of_the_unit_is_understood(drop_ins: list[str]) -> None:
    found = [pair for name in (UNIT.name, *drop_ins) for pair in settings(UNIT.with_name(name))]
    environment = dict(shlex.split(value)[0].split("=", 1) for name, value in found if name == "Environment")
    command = dict(found)["ExecStart"].replace("${SDRPN_BUNDLE}", environment["SDRPN_BUNDLE"])
    arguments = shlex.split(command.replace("$SDRPN_OPTIONS", environment["SDRPN_OPTIONS"]))
    assert build_parser().read(arguments[1:]).verb == "serve"


def test_there_is_a_file_for_every_device() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda", "Dockerfile.l4t"]


@files
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    done = subprocess.run([program("hadolint"), dockerfile], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(name, rest) of every instruction, continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(name, rest) for line in lines for name, _, rest in [line.partition(" ")]]


@files
def test_an_image_runs_as_a_user_without_rights(dockerfile: Path) -> None:
    """With a number, so that Kubernetes knows it; from a second stage, which has no compiler."""
    found = instructions(dockerfile)
    last_stage = found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]
    assert sum(name == "FROM" for name, _ in found) == 2
    assert [rest for name, rest in last_stage if name == "USER"] == ["10001"]
    assert any(name == "HEALTHCHECK" and "/readyz" in rest for name, rest in last_stage)
    assert not any("g++" in rest for _, rest in last_stage)


@files
def test_the_commands_of_an_image_are_understood(dockerfile: Path) -> None:
    found = dict(instructions(dockerfile))
    assert found["ENTRYPOINT"] == '["sdrpn"]'
    commands = [re.findall(r'"([^"]+)"', found["CMD"])]
    image = f"sdrpn:{dockerfile.suffix[1:]}"
    for line in dockerfile.read_text("utf-8").splitlines():
        if line.startswith("#") and f" {image} " in line and "docker run" in line:
            commands.append(shlex.split(line.partition(f" {image} ")[2]))
    for arguments in commands:
        args = build_parser().read(arguments)
        assert args.verb in ("serve", "build")
        assert getattr(args, "target", None) in (None, *read_targets())


@files
def test_a_build_sees_all_that_it_needs_and_no_more(dockerfile: Path) -> None:
    lines = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines
    seen = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = {project["project"]["readme"], "CMakeLists.txt", "pyproject.toml"}
    needed |= {name.partition("/")[0] for name in project["project"]["license-files"]}
    needed |= set(project["tool"]["scikit-build"]["wheel"]["packages"].values())
    assert seen == needed


@files
def test_the_extras_of_an_image_exist(dockerfile: Path) -> None:
    extras = dict(rest.partition("=")[::2] for name, rest in instructions(dockerfile) if name == "ARG")["EXTRAS"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
