"""Names of weight files inside ONNX graphs, against the onnx library."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdrpn.errors import BadBundle
from sdrpn.runtime.backends.external_data import external_files, graph_with_real_files, require_files, with_files


def external(name: str, file: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", file), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def nested_model() -> onnx.ModelProto:
    """External tensors in every place that a model can hold one."""
    inner = helper.make_graph([], "inner", [], [], [external("b", "inner.bin")])
    branch = helper.make_node("If", ["c"], ["o"], then_branch=inner)
    constant = helper.make_node("Constant", [], ["k"], value=external("k", "constant.bin"))
    sparse = onnx.SparseTensorProto(values=external("s", "sparse.bin"), dims=[4])
    weights = [external("a", "weights/ä.bin"), numpy_helper.from_array(np.arange(3.0), "inlined")]
    graph = helper.make_graph([branch, constant], "g", [], [], weights)
    graph.sparse_initializer.append(sparse)
    function = helper.make_function("own", "f", [], ["y"], [constant], [helper.make_opsetid("", 20)])
    function.node[0].attribute[0].t.external_data[0].value = "function.bin"
    return helper.make_model(graph, functions=[function])


FILES = {"weights/ä.bin", "inner.bin", "constant.bin", "sparse.bin", "function.bin"}


def test_all_files_are_found_wherever_they_are_named() -> None:
    assert external_files(nested_model().SerializeToString()) == FILES


def test_renamed_as_the_library_would_and_nothing_else_changes() -> None:
    model = nested_model()
    renamed = with_files(model.SerializeToString(), lambda name: f"/{'long' * 50}/{name}")
    assert external_files(renamed) == {f"/{'long' * 50}/{name}" for name in FILES}
    back = with_files(renamed, lambda name: name.split("/", 2)[2])
    assert onnx.load_from_string(back) == model


@pytest.mark.parametrize("name", ["*/_ORT_MEM_ADDR_/*", "./*/_ORT_MEM_ADDR_/*"])
def test_weights_at_an_address_in_memory(name: str) -> None:
    """A library would read what lies at their offset, even where a file of that name is listed."""
    content = helper.make_model(helper.make_graph([], "g", [], [], [external("a", name)])).SerializeToString()
    with pytest.raises(BadBundle, match=r"trunk.onnx takes weights from an address in memory \(_ORT_MEM_ADDR_\), not"):
        require_files(Path("trunk.onnx"), content, [name], "A Library")


def test_graphs_of_a_bundle(tiny_bundle: Path) -> None:
    for path in sorted(tiny_bundle.glob("*.onnx")):
        content = path.read_bytes()
        files = external_files(content)
        assert files
        assert all((tiny_bundle / file).is_file() for file in files)
        assert onnx.load_from_string(with_files(content, lambda name: name)) == onnx.load_from_string(content)


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\x05\x00", b"\xff" * 11, b"not a graph", b"\x0f"])
def test_what_is_no_model(content: bytes) -> None:
    with pytest.raises(BadBundle, match=r"is not an ONNX model \(.*\); export the bundle again"):
        external_files(content)


def test_graphs_in_graphs_without_end() -> None:
    content = b"location"  # what has no file is not read at all
    for _ in range(200):
        for number in (6, 5, 1):  # a graph in an attribute in a node in a graph
            content = with_length(number, content)
    with pytest.raises(BadBundle, match="nested too deeply"):
        external_files(with_length(7, content))


def with_length(number: int, content: bytes) -> bytes:
    length, digits = len(content), b""
    while length > 0x7F:
        digits += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + digits + bytes([length]) + content


class TestRealFiles:
    def test_nothing_to_do_without_links(self, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(b"12345678")
        graph = helper.make_model(helper.make_graph([], "g", [], [], [external("a", "w.bin")]))
        alias = tmp_path.parent / f"{tmp_path.name}-alias"
        alias.symlink_to(tmp_path)
        for folder in (tmp_path, alias, Path(os.path.relpath(tmp_path))):
            assert graph_with_real_files(graph.SerializeToString(), folder) is None

    def test_a_link_is_replaced_by_where_it_leads(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "disk" / "blob").write_bytes(b"12345678")
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "w.bin").symlink_to("../disk/blob")
        graph = helper.make_model(helper.make_graph([], "g", [], [], [external("a", "w.bin")]))
        found = graph_with_real_files(graph.SerializeToString(), tmp_path / "bundle")
        assert found is not None
        content, root = found
        (name,) = external_files(content)
        assert root / name == (tmp_path / "disk" / "blob").resolve()
