"""Every name of TensorRT that the code uses exists in every release that it may meet: looked up in the real bindings.

Which names these are is read from the sources, whichever they are by then.
"""

from __future__ import annotations

import ast
import collections
import enum
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.numerics import TENSORRT_TYPES
from sdrpn.engines import read_targets
from tests.tensorrt_api.bindings import RELEASES, REQUIRED, RTX, Api, downloaded, read_api
from tests.tensorrt_api.names import Found, names_in

ROOT = Path(__file__).parents[2]
SOURCES = ("sdrpn", "export", "engines", "runtime")
# Attributes of these need no explanation.
ORDINARY = (
    str,
    bytes,
    list,
    dict,
    tuple,
    set,
    int,
    Path,
    collections.deque,
    io.BufferedReader,
    enum.Enum,
    BaseException,
    type(open),
)


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def names_the_library(tree: ast.Module) -> bool:
    """Has a variable `trt`, or an import of a module of TensorRT."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.arg)) and (node.id if isinstance(node, ast.Name) else node.arg) == "trt":
            return True
        if isinstance(node, ast.Import) and any(alias.name.startswith("tensorrt") for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt"):
            return True
    return False


FILES = [str(path) for path, tree in trees() if names_the_library(tree)]


@cache
def found(file: str, release: str) -> Found:
    return names_in(ROOT / file, read_api(release))


def test_the_library_is_named_behind_two_seams_only() -> None:
    """One that builds, one that runs; everything else goes through them."""
    assert sorted(FILES) == ["engines/flavour.py", "runtime/backends/tensorrt_library.py"]


@pytest.mark.parametrize("release", RELEASES)
def test_the_bindings_are_the_pinned_ones(release: str) -> None:
    api = read_api(release)
    assert release in (api.version, RTX)
    assert len(api.classes) > 150


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("file", FILES)
class TestNames:
    def test_every_name_exists(self, file: str, release: str) -> None:
        names = found(file, release)
        assert len(names.used) > 20, "the reader of sources sees nothing any more"
        assert [f"{file}:{use.line}: {use.owner} has no {use.name}" for use in sorted(names.missing)] == []

    def test_every_method_takes_so_many_arguments(self, file: str, release: str) -> None:
        assert found(file, release).miscounted == set()

    def test_classes_of_ours_have_all_that_tensorrt_calls(self, file: str, release: str) -> None:
        api = read_api(release)
        for subclass in found(file, release).subclasses:
            called = {name for name, facts in api.classes[subclass.base].items() if facts.get("own")}
            called -= {"api_language", "interface_info"}
            assert called <= subclass.methods, subclass.base


@pytest.mark.parametrize("file", FILES)
def test_nothing_of_tensorrt_goes_unrecognised(file: str) -> None:
    """An attribute that only TensorRT's classes have was looked up in one of them, in one release at least."""
    apis = [read_api(release) for release in RELEASES]
    theirs = {name for api in apis for attributes in api.classes.values() for name in attributes}
    ordinary = {name for attribute in ORDINARY for name in dir(attribute)} | field_names(file)
    unknown = set.intersection(*(found(file, api.release).unknown for api in apis))
    assert [f"{file}:{line}: {name}" for line, name in sorted(unknown) if name in theirs - ordinary] == []


def field_names(file: str) -> set[str]:
    """Fields of the classes that a file declares: no kind is followed there."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {
        statement.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def test_what_may_be_absent_exists_somewhere() -> None:
    """A `getattr` with a misspelt name would never find anything, without an error."""
    apis = [read_api(release) for release in RELEASES]
    for file in FILES:
        for use in {use for api in apis for use in found(file, api.release).asked_for}:
            owner = None if use.owner == "module" else use.owner
            assert any(api.has(owner, use.name) for api in apis if owner is None or owner in api.classes), use


@pytest.mark.parametrize("release", RELEASES)
def test_types_of_tensors_exist(release: str) -> None:
    assert set(TENSORRT_TYPES) <= set(read_api(release).classes["DataType"])


def test_capabilities_of_targets_exist() -> None:
    known = set(read_api(RTX).classes["ComputeCapability"])
    for target in read_targets().values():
        if target.flavour == "tensorrt-rtx":
            assert set(target.compute_capabilities) <= known, target.name


WRONG = """
def _module(flavour):
    return import_module(flavour)

class Engine:
    def __init__(self, engine, config):
        self._engine = engine
        config.progres_monitor = None

    @property
    def tensors(self):
        return [self._engine.get_tensor_nam(i) for i in range(self._engine.num_io_tensors)]

def build(flavour, request):
    trt = _module(flavour)
    log = _logger(trt)
    builder = trt.Builder(log)
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.WEIGHT_STREAMIN)
    network = builder.create_network(0, 1)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for kind, tensors in (("in", inputs), ("out", [])):
        for tensor in tensors:
            tensor.dtype.nam
    if request.flavour == "tensorrt-rtx":
        config.num_compute_capabilities = 1
    else:
        config.only_in_plain = 1
    if request.flavour != "tensorrt-rtx":
        return None
    Engine(trt.Runtime(log).deserialize_cuda_engine(b""), config)
    base = getattr(trt, "IStreamReaderV3", None)
    if base is None:
        return trt.IStreamReader0
    return base.anything

def _logger(trt):
    class Log(trt.ILogger):
        def write(self, severity, message):
            return severity <= trt.ILogger.EROR
    return Log()
"""


def test_the_reader_follows_what_the_sources_do(tmp_path: Path) -> None:
    """The same check on a source with a wrong name in every form: it can fail."""
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    names = names_in(path, read_api(RTX))
    assert {(use.owner, use.name) for use in names.missing} == {
        ("IBuilderConfig", "progres_monitor"),
        ("ICudaEngine", "get_tensor_nam"),
        ("BuilderFlag", "WEIGHT_STREAMIN"),
        ("DataType", "nam"),
        ("module", "IStreamReader0"),
        ("ILogger", "EROR"),
    }
    assert {call for _, call, _ in names.miscounted} == {"Builder.create_network"}
    assert ("IBuilderConfig", "num_compute_capabilities") in {(use.owner, use.name) for use in names.used}
    assert {use.name for use in names.asked_for} == {"IStreamReaderV3"}
    assert [subclass.methods for subclass in names.subclasses] == [frozenset({"write"})]


def test_and_takes_the_other_branch_for_the_other_flavour(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    plain = Api("10.0", "10.0", read_api(RTX).module, read_api(RTX).classes)
    missing = {(use.owner, use.name) for use in names_in(path, plain).missing}
    assert ("IBuilderConfig", "only_in_plain") in missing
    assert ("module", "IStreamReader0") not in missing  # after the return


class TestSetUp:
    def test_without_a_network_it_is_skipped_unless_it_is_required(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.delenv(REQUIRED, raising=False)
        with pytest.raises(pytest.skip.Exception, match=r"tensorrt-cu12-bindings==10.16.1.11 cannot be downloaded"):
            downloaded("tensorrt-cu12-bindings==10.16.1.11")
        monkeypatch.setenv(REQUIRED, "1")
        with pytest.raises(pytest.fail.Exception, match=f"{REQUIRED} is set"):
            downloaded("tensorrt-cu12-bindings==10.16.1.11")
        assert not list(tmp_path.rglob("*.whl"))


class TestFakes:
    """What the runner is tested on has nothing that the real libraries do not have."""

    def test_of_tensorrt(self) -> None:
        from tests.runtime import fake_tensorrt as fake

        classes = read_api(RTX).classes
        pairs = {
            "Runtime": fake.FakeRuntime,
            "ICudaEngine": fake.FakeEngine,
            "IExecutionContext": fake.FakeContext,
            "IRuntimeConfig": fake.FakeConfig,
            "IRuntimeCache": fake.FakeCache,
        }
        for name, value in pairs.items():
            assert {method for method in vars(value) if not method.startswith("_")} <= set(classes[name]), name
        assert {member.name for member in fake.DataType} <= set(classes["DataType"])

    def test_of_cuda(self) -> None:
        runtime = pytest.importorskip("cuda.bindings.runtime")
        from tests.runtime.fake_cuda import FakeCudart

        calls = [name for name in vars(FakeCudart) if name.startswith("cuda")]
        assert [name for name in calls if not hasattr(runtime, name)] == []


class TestCuda:
    def test_every_name_exists(self) -> None:
        """Names of cuda-python, which is installed."""
        runtime = pytest.importorskip("cuda.bindings.runtime")
        tree = ast.parse((ROOT / "runtime/backends/cuda.py").read_text(encoding="utf-8"))
        chains = [chain for node in ast.walk(tree) if (chain := api_chain(node)) is not None]
        assert len(chains) > 25
        for chain in chains:
            place: Any = runtime
            for name in chain:
                assert hasattr(place, name), ".".join(chain)
                place = getattr(place, name)


def api_chain(node: ast.AST) -> tuple[str, ...] | None:
    """`self._api.cudaMemcpyKind.cudaMemcpyDefault` -> its last two names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute) and node.attr != "_api":
        names.insert(0, node.attr)
        node = node.value
    return tuple(names) if names and isinstance(node, ast.Attribute) else None
