"""From a bundle's graph in ONNX to a model of OpenVINO: the same arithmetic, with attention over caches in pages.

OpenVINO reads every operator of the dialect `fused` but TensorScatter. Where an attention follows one, both become a
paged attention, which appends the new rows to its caches in place and attends to the rows in use only. Another cache
keeps its operator; the model then returns the new rows instead of the whole cache.

B sequences, S new rows of each, H heads, H_kv of them for keys, d channels of a head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset15 as ops
from openvino.frontend.onnx import ConversionExtension

from sdrpn.errors import BadBundle, RunFailed
from sdrpn.host.partial import remove_partial, temporary_beside
from sdrpn.host.working_folder import NoFolderOfItsOwn, run_in_folder
from sdrpn.runtime.backends.external_data import graph_with_real_files

__all__ = [
    "CacheUse",
    "PageTable",
    "PagedAttention",
    "code_block",
    "drop_unused_inputs",
    "new_core",
    "paged_attentions",
    "read_onnx",
    "return_rows",
    "use_pages",
]

_UPDATE, _ATTENTION, _RESULT = "ScatterElementsUpdate", "ScaledDotProductAttention", "Result"
_PAGED = "PagedAttentionExtension"
_ROWS_AXIS = 2  # of heads and caches (B,heads,rows,d)
_CACHE_INPUTS, _WINDOW_INPUT = slice(3, 5), 10  # of a paged attention; queries, keys and values come first


class PageTable:
    """Names of the inputs that say where the rows of each sequence are; see PagedAttention of OpenVINO."""

    PAST = "past_lens"  # i32 (B,): rows that are in the caches
    BEGINS = "subsequence_begins"  # i32 (B+1,): the first new row of each sequence among all new rows
    BLOCKS = "block_indices"  # i32 (N,): the blocks of all sequences, one after the other
    BLOCK_BEGINS = "block_indices_begins"  # i32 (B+1,): the first of these that is a sequence's own
    LONGEST = "max_context_len"  # i32 (): the most rows of a sequence, with the new ones


@dataclass(frozen=True)
class CacheUse:
    """How a model uses the caches of its graph, by the names of the graph's inputs."""

    paged: frozenset[str]  # read and written in place, in pages
    returned: Mapping[str, str]  # cache -> the output that holds its new rows


@dataclass(frozen=True)
class PagedAttention:
    """One attention over caches in pages."""

    node: Any
    rows: tuple[openvino.Output, ...]  # queries (B*S,H*d), new keys and values (B*S,H_kv*d)
    caches: tuple[str, str]  # of keys and values, by the names of the graph's inputs
    width: int  # channels of a head
    window: int  # how many rows each row sees, itself included; 0: all before it


def new_core() -> openvino.Core:
    """OpenVINO with what its ONNX reader lacks."""
    core = openvino.Core()
    core.add_extension(ConversionExtension("TensorScatter", _update))
    core.add_extension(ConversionExtension("Attention", _attention))
    return core


def read_onnx(core: openvino.Core, content: bytes, folder: Path) -> openvino.Model:
    """A graph whose weights are in files; their names are relative to `folder`, and links may lead out of it.

    OpenVINO takes weights from below the working folder alone, or the folder of a graph's file.
    Raises: RunFailed where threads have no working folders, as in a container, and no file can be written
    """
    real, root = graph_with_real_files(content, folder) or (content, Path(os.path.realpath(folder)))
    try:
        return run_in_folder(root, lambda: core.read_model(real))
    except NoFolderOfItsOwn as error:
        return _read_beside(core, real, root, error)


def _read_beside(core: openvino.Core, content: bytes, root: Path, obstacle: NoFolderOfItsOwn) -> openvino.Model:
    """As `read_onnx`, from a file that lies in `root` for a moment."""
    path = temporary_beside(root / "graph.onnx")
    try:
        path.write_bytes(content)
    except OSError as error:
        remove_partial(path)
        raise RunFailed(
            f"{obstacle}; instead a file is written there for a moment, which failed ({error.strerror}): make it "
            "writable, or use a copy of the bundle without links"
        ) from error
    try:
        return core.read_model(path)
    finally:
        remove_partial(path)


def use_pages(model: openvino.Model, name: str) -> CacheUse:
    """Let the attentions of a model use caches in pages, in place; the other caches return their new rows.

    Raises: BadBundle for an attention over caches in another form
    """
    paged: set[str] = set()
    table: _Table | None = None
    for node in _of_type(model, _ATTENTION):
        keys, values = (_before_repetition(node.input_value(index).get_node()) for index in (1, 2))
        if _UPDATE not in (keys.get_type_name(), values.get_type_name()):
            continue
        if keys.get_type_name() != values.get_type_name():
            raise BadBundle(f"the {name} graph attends to keys and values of different kinds; export the bundle again")
        table = table or _Table.added(model)
        paged |= _replace(model, node, keys, values, table)
    returned = dict(_return_rows(model, paged))
    drop_unused_inputs(model)
    model.validate_nodes_and_infer_types()
    return CacheUse(frozenset(paged), returned)


def paged_attentions(model: openvino.Model) -> list[PagedAttention]:
    """What `use_pages` has put into a model."""
    found = []
    for node in _of_type(model, _PAGED):
        keys, values = (value.get_node().get_friendly_name() for value in node.input_values()[_CACHE_INPUTS])
        rows = tuple(node.input_values()[: _CACHE_INPUTS.start])
        window = int(node.input_value(_WINDOW_INPUT).get_node().get_data())
        found.append(
            PagedAttention(node, rows, (keys, values), int(node.get_rt_info()["k_head_size"].astype(int)), window)
        )
    return found


def return_rows(model: openvino.Model) -> CacheUse:
    """Let a model return the new rows of every cache, which it gets as it is at each step."""
    returned = dict(_return_rows(model, set()))
    drop_unused_inputs(model)
    model.validate_nodes_and_infer_types()
    return CacheUse(frozenset(), returned)


def code_block(model: openvino.Model) -> int | None:
    """The fewest rows of a matrix in 4 bits that share a scale; None: there is no such matrix."""
    blocks = []
    for node in _of_type(model, "Constant"):
        if node.get_element_type() not in (openvino.Type.i4, openvino.Type.u4):
            continue
        for target in node.output(0).get_target_inputs():
            shape = target.get_node().get_output_partial_shape(0)  # (blocks,rows,columns)
            if target.get_node().get_type_name() == "Reshape" and shape.rank.get_length() == 3:
                blocks.append(int(shape[1].get_length()))
    return min(blocks, default=None)


# Operators that the reader lacks, or reads in a form that is slow ----------------------------------------------------


def _update(node: Any) -> list[openvino.Output]:
    """TensorScatter: rows (B,H_kv,S,d) from `start` (B,) on; `_replace` or `_return_rows` find it."""
    cache, rows, start = (node.get_input(index) for index in range(3))
    shape = ops.shape_of(rows)
    count = ops.gather(shape, _ints(_ROWS_AXIS), _ints(0))
    offsets = ops.range(_ints(0), count, _ints(1), "i64")
    first = ops.unsqueeze(start, _ints([1, 2, 3]))  # (B,1,1,1)
    places = ops.broadcast(ops.add(first, ops.unsqueeze(offsets, _ints([1]))), shape)
    return [ops.scatter_elements_update(cache, places, rows, _ints(_ROWS_AXIS)).output(0)]


def _attention(node: Any) -> list[openvino.Output]:
    """Attention without caches of its own, and perhaps with a mask: (B,H,S,d) with keys and values (B,H_kv,N,d)."""
    query, keys, values, *mask = (node.get_input(index) for index in range(node.get_input_size()))
    heads, kv_heads = _size(query, 1), _size(keys, 1)
    if heads != kv_heads:  # this operator takes as many: `_replace` looks for the caches before them
        keys, values = (_repeated(each, heads // kv_heads) for each in (keys, values))
    return [ops.scaled_dot_product_attention(query, keys, values, *mask).output(0)]


def _repeated(rows: openvino.Output, group: int) -> openvino.Output:
    """(B,H_kv,N,d) -> (B,H,N,d), each head `group` times."""
    apart = ops.tile(ops.unsqueeze(rows, _ints(2)), _ints([1, 1, group, 1, 1]))
    together = _ints([0, _size(rows, 1) * group, -1, _size(rows, 3)])
    return ops.reshape(apart, together, special_zero=True).output(0)


# Attention in pages ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """The inputs of `PageTable` in a model."""

    past: openvino.Node
    begins: openvino.Node
    blocks: openvino.Node
    block_begins: openvino.Node
    longest: openvino.Node

    @classmethod
    def added(cls, model: openvino.Model) -> _Table:
        """Declare them."""
        lists = (PageTable.PAST, PageTable.BEGINS, PageTable.BLOCKS, PageTable.BLOCK_BEGINS)
        inputs = [_input(name, openvino.PartialShape([-1])) for name in lists]
        inputs.append(_input(PageTable.LONGEST, openvino.PartialShape([])))
        model.add_parameters(inputs)
        return cls(*inputs)


def _input(name: str, shape: openvino.PartialShape, dtype: Any = openvino.Type.i32) -> Any:
    parameter = openvino.op.Parameter(dtype, shape)
    parameter.set_friendly_name(name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _replace(model: openvino.Model, attention: Any, keys: Any, values: Any, table: _Table) -> set[str]:
    """Put a paged attention in the place of one over updated caches; their names."""
    query, updates = attention.input_value(0), (keys, values)
    heads, width, kv_heads = _size(query, 1), _size(query, 3), _size(keys.output(0), 1)
    caches = [update.input_value(0).get_node() for update in updates]
    names = [cache.get_friendly_name() for cache in caches]
    pages = []
    for name, cache in zip(names, caches, strict=True):
        model.remove_parameter(cache)
        # The plugin decides on type and shape: (blocks,H_kv,32,d) on a CPU.
        pages.append(_input(name, openvino.PartialShape.dynamic(4), openvino.Type.dynamic))
    model.add_parameters(pages)
    new_rows = updates[0].input_value(2)
    shape = ops.shape_of(new_rows)  # (B,H_kv,S,d)
    batch, rows = (ops.gather(shape, _ints([axis]), _ints(0)) for axis in (0, _ROWS_AXIS))
    only_row = _is_one_row(query, new_rows)
    if only_row:  # of the row that `last_index` names; the attention takes a query for each new row
        everywhere = ops.concat([batch, _ints([heads]), rows, _ints([width])], 0)
        query = ops.broadcast(query, everywhere).output(0)
    paged = _paged_attention(
        [_flat(query, heads, width), *(_flat(update.input_value(2), kv_heads, width) for update in updates)],
        pages,
        table,
        width,
        _window(attention),
    )
    for key, value in (("k", kv_heads), ("v", kv_heads)):
        paged.get_rt_info()[f"num_{key}_heads"] = value
        paged.get_rt_info()[f"{key}_head_size"] = width
    result = ops.reshape(paged.output(0), ops.concat([batch, rows, _ints([heads, width])], 0), special_zero=False)
    if only_row:
        column = ops.unsqueeze(_parameter(model, "last_index"), _ints(1))
        result = ops.unsqueeze(ops.gather_nd(result, column, batch_dims=1), _ints(1))  # (B,1,H,d)
    attention.output(0).replace(ops.transpose(result, _ints([0, 2, 1, 3])).output(0))
    for update in updates:
        _drop_results(model, update)
    return set(names)


def _paged_attention(rows: list[Any], pages: list[Any], table: _Table, width: int, window: int) -> Any:
    """The operator: rows (B*S,heads*d) of queries, keys and values. What it could do besides is left out."""
    no_ints, no_floats, no_bytes = (_values([], dtype) for dtype in (np.int32, np.float32, np.uint8))
    nothing = _values(0, np.int32)
    inputs = [
        *rows,
        *pages,
        table.past,
        table.begins,
        table.blocks,
        table.block_begins,
        _values(width**-0.5, np.float32),
        _values(window, np.int32),
        no_floats,  # slopes of ALiBi
        table.longest,
        no_ints,  # windows over which scores are summed up
        no_ints,  # rotation of cached keys: blocks, angles, table
        ops.constant(np.zeros((0, 0), np.int32)),
        ops.constant(np.zeros((0, 0), np.float32)),
        no_floats,  # sparse attention: thresholds, block, stride
        _values(64, np.int32),
        _values(8, np.int32),
        no_floats,  # sinks
        nothing,  # eviction: start, sizes, blocks and where they begin
        no_ints,
        no_ints,
        no_ints,
        no_ints,  # types of tokens
        no_bytes,  # a mask among new rows, and where it begins
        no_ints,
    ]
    return openvino.op._PagedAttentionExtension([_output(value) for value in inputs])


def _before_repetition(node: Any) -> Any:
    """The node whose heads `_repeated` repeats, or the node itself."""
    above = node
    for kind in ("Reshape", "Tile", "Unsqueeze"):
        if above.get_type_name() != kind:
            return node
        above = above.input_value(0).get_node()
    return above


def _flat(heads: openvino.Output, count: int, width: int) -> Any:
    """(B,heads,S,d) -> (B*S,heads*d)."""
    return ops.reshape(ops.transpose(heads, _ints([0, 2, 1, 3])), _ints([-1, count * width]), special_zero=False)


def _is_one_row(query: openvino.Output, new_rows: openvino.Output) -> bool:
    return bool(query.get_partial_shape()[_ROWS_AXIS].is_static and new_rows.get_partial_shape()[_ROWS_AXIS].is_dynamic)


def _window(attention: Any) -> int:
    """How many rows each row sees, itself included, by the mask of the dialect `fused`; 0: all before it."""
    mask = attention.input_value(3).get_node()
    if mask.get_type_name() == "LessEqual":
        return 0
    behind = mask.input_value(1).get_node().input_value(1).get_node()  # of And, Greater: a subtraction
    return int(behind.input_value(1).get_node().get_data())


# Other caches --------------------------------------------------------------------------------------------------------


def _return_rows(model: openvino.Model, paged: set[str]) -> Iterator[tuple[str, str]]:
    """Return the new rows of each cache that stays as it is, instead of the updated cache; cache and output."""
    for update in _of_type(model, _UPDATE):
        cache = update.input_value(0).get_node().get_friendly_name()
        if cache in paged:
            continue
        (name,) = {name for name in update.output(0).get_names() if name != cache} or {f"{cache}_out"}
        _drop_results(model, update)
        update.output(0).get_tensor().set_names(set())
        rows = update.input_value(2)
        rows.get_tensor().set_names({name})
        model.add_results([ops.result(rows)])
        yield cache, name


# Parts of a model ----------------------------------------------------------------------------------------------------


def _of_type(model: openvino.Model, name: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == name]


def _drop_results(model: openvino.Model, node: Any) -> None:
    """The outputs of a model that a node computes."""
    for target in list(node.output(0).get_target_inputs()):
        if target.get_node().get_type_name() == _RESULT:
            model.remove_result(target.get_node())


def drop_unused_inputs(model: openvino.Model) -> None:
    """Inputs that no output depends on any more."""
    needed, ahead = set[str](), list(model.get_results())
    while ahead:
        for port in ahead.pop().inputs():
            node = port.get_source_output().get_node()
            if node.get_name() not in needed:
                needed.add(node.get_name())
                ahead.append(node)
    for parameter in list(model.get_parameters()):
        if parameter.get_name() not in needed:
            model.remove_parameter(parameter)


def _parameter(model: openvino.Model, name: str) -> Any:
    return next(each for each in model.get_parameters() if name in each.output(0).get_names())


def _size(value: openvino.Output, axis: int) -> int:
    return int(value.get_partial_shape()[axis].get_length())


def _output(value: Any) -> openvino.Output:
    return value if isinstance(value, openvino.Output) else value.output(0)


def _ints(values: Any) -> Any:
    return _values(values, np.int64)


def _values(values: Any, dtype: Any) -> Any:
    return ops.constant(np.array(values, dtype))
