"""LLaMA's massive activations: one channel of the first token's residual stream is thousands of times the rest.

fp16 ends at 65504 and its squares at 255, so whatever carries the stream has to be fp32. ONNX Runtime's CPU kernels
may hide an overflow (they compute much of fp16 in fp32), so every fp16 value inside the graphs is looked at, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, shape_inference
from safetensors.numpy import load_file, save_file

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import SdRpnModel, model_from_checkpoint
from sdrpn.model.layers import KvCache
from tests.export.graph_runner import Array, Feeds, GraphRunner
from tests.tolerances import MASSIVE_LOGITS_ABS, MASSIVE_SCORES_ABS

FP16_MAX = 65504.0
BOS, BEFORE, AFTER = 1, (1, 5, 6, 7), (8, 9, 10, 11, 12)
MARK, MASSIVE, UNIT = 5, 9, 7  # a channel that only BOS has, the one that explodes, and the MLP unit that makes it so
NEW_TOKENS, CACHE_LENGTH = 8, 48

# What each trunk layer adds to the channel: layer -> (the channel it reacts to, the value).
PLANTED = {
    "3000": {1: (MARK, 3_000.0)},
    "30000": {1: (MARK, 30_000.0)},
    "60000 twice": {0: (MARK, 60_000.0), 1: (MASSIVE, 60_000.0)},  # the sum is beyond fp16
}


@dataclass
class Massive:
    """A model with a massive activation, in PyTorch and exported as fp16 (and fused-fp32)."""

    model: SdRpnModel
    bundle: Path
    value: float


@pytest.fixture(scope="module", params=PLANTED)
def massive(request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Massive:
    folder = tmp_path_factory.mktemp("massive")
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    write_random_checkpoint(checkpoint, tiny_spec, seed=0)  # its best tokens lead by 0.1 at least
    clear_channels(checkpoint)
    for layer, (reads, value) in PLANTED[request.param].items():
        plant(checkpoint, layer, reads, value)
    for options in (ExportOptions("fp16"), ExportOptions("fp16", "primitive"), ExportOptions()):
        export_bundle(checkpoint, bundle, options)
    return Massive(load(checkpoint), bundle, sum(value for _, value in PLANTED[request.param].values()))


def clear_channels(checkpoint: Path) -> None:
    """Nothing but BOS has anything in the two channels, as far as the second layer."""
    tensors = load_file(checkpoint / "model.safetensors")
    channels = [MARK, MASSIVE]
    tensors["model.embed_tokens.weight"][:, channels] = 0
    tensors["model.embed_tokens.weight"][BOS, MARK] = 6
    written = ["model.mm_projector.2.weight", "model.mm_projector.2.bias"]
    for layer in (0, 1):
        written += [f"model.layers.{layer}.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")]
    for name in written:
        tensors[name][channels] = 0
    save_file(tensors, checkpoint / "model.safetensors")


def plant(checkpoint: Path, layer: int, reads: int, value: float) -> None:
    """Let one MLP unit of the layer react to a channel and add `value` to the massive one, for BOS alone."""
    tensors = load_file(checkpoint / "model.safetensors")
    mlp = f"model.layers.{layer}.mlp"
    for part in ("gate_proj", "up_proj"):
        tensors[f"{mlp}.{part}.weight"][UNIT] = 0
        tensors[f"{mlp}.{part}.weight"][UNIT, reads] = 3
    tensors[f"{mlp}.down_proj.weight"][:, UNIT] = 0
    tensors[f"{mlp}.down_proj.weight"][MASSIVE, UNIT] = 1
    save_file(tensors, checkpoint / "model.safetensors")
    added = streams(load(checkpoint), torch.tensor([BEFORE]))
    gain = added[layer + 1][0, 0, MASSIVE] - added[layer][0, 0, MASSIVE]
    tensors[f"{mlp}.down_proj.weight"][MASSIVE, UNIT] = value / float(gain)
    save_file(tensors, checkpoint / "model.safetensors")


def load(checkpoint: Path) -> SdRpnModel:
    with open_checkpoint(checkpoint) as opened:
        return model_from_checkpoint(opened)


@torch.inference_mode()
def streams(model: SdRpnModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream before each layer of the trunk, and after the last."""
    x = model.embed(ids)
    found = [x]
    for layer in model.trunk.layers:
        found.append(layer(found[-1], torch.arange(ids.shape[1])[None]))
    return found


def pixels() -> Array:
    return np.random.default_rng(4).standard_normal((1, 3, 56, 56)).astype(np.float32)


class Exact:
    """The same steps in PyTorch, fp32."""

    def __init__(self, model: SdRpnModel) -> None:
        self.model = model
        self.caches = {"trunk": KvCache(), "tail": KvCache()}

    @torch.inference_mode()
    def prompt(self) -> torch.Tensor:
        before, after = (self.model.embed(torch.tensor([ids])) for ids in (BEFORE, AFTER))
        return torch.cat((before, self.model.vision(torch.from_numpy(pixels())), after), dim=1)

    @torch.inference_mode()
    def step(self, embeds: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tap, logits)."""
        positions = torch.arange(start, start + embeds.shape[1])[None]
        tap = self.model.trunk(embeds, positions, self.caches["trunk"])
        return tap, self.model.tail(tap, positions, self.caches["tail"])[0]

    @torch.inference_mode()
    def answer(self) -> tuple[list[int], Array]:
        """Token ids, and the logits that they were chosen from."""
        embeds, start, ids, rows = self.prompt(), 0, list[int](), list[torch.Tensor]()
        for _ in range(NEW_TOKENS):
            _, logits = self.step(embeds, start)
            rows.append(logits)
            ids.append(int(logits.argmax()))
            start += embeds.shape[1]
            embeds = self.model.embed(torch.tensor([ids[-1:]]))
        return ids, torch.stack(rows).numpy()


def embedding_table(runner: GraphRunner) -> Array:
    table = np.fromfile(runner.bundle.file(runner.variant.embedding), runner.variant.embedding_dtype)
    return table.reshape(-1, runner.spec.llm.width).astype(np.float32)


def prompt(runner: GraphRunner) -> Array:
    table = embedding_table(runner)
    image = runner.call("vision", {"pixel_values": pixels()})["image_embeds"]
    return np.concatenate([table[None, list(BEFORE)], image, table[None, list(AFTER)]], axis=1)


def answer(runner: GraphRunner) -> tuple[list[int], Array]:
    caches = {name: runner.caches(name, CACHE_LENGTH) for name in ("trunk", "tail")}
    table, embeds, start = embedding_table(runner), prompt(runner), 0
    ids, rows = list[int](), list[Array]()
    for _ in range(NEW_TOKENS):
        tap = runner.run("trunk", embeds, caches["trunk"], start)["tap"]
        rows.append(runner.run("tail", tap, caches["tail"], start)["logits"][0])
        ids.append(int(rows[-1].argmax()))
        start += embeds.shape[1]
        embeds = table[None, ids[-1:]]
    return ids, np.stack(rows)


def test_the_model_has_a_massive_activation(massive: Massive) -> None:
    exact = Exact(massive.model)
    tap, _ = exact.step(exact.prompt(), 0)
    assert tap[0, 0, MASSIVE] == pytest.approx(massive.value, rel=0.02)
    assert tap.abs().flatten().topk(2).values[1] < massive.value / 100  # nothing else comes near it


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
def test_fp16_gives_the_same_answer(massive: Massive, dialect: str) -> None:
    expected_ids, expected = Exact(massive.model).answer()
    best = np.sort(expected, axis=1)[:, -2:]
    ids, found = answer(GraphRunner(massive.bundle, f"{dialect}-fp16"))
    difference = np.abs(found - expected).max()
    message = f"logits differ by {difference:.2e}, best and second best by {(best[:, 1] - best[:, 0]).min():.2e}"
    assert ids == expected_ids, message
    assert difference <= MASSIVE_LOGITS_ABS, message


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
def test_fp16_gives_the_same_scores(massive: Massive, dialect: str) -> None:
    exact = Exact(massive.model)
    tap, _ = exact.step(exact.prompt(), 0)
    assert massive.model.rpn is not None
    with torch.inference_mode():
        expected = massive.model.rpn(tap, torch.arange(tap.shape[1])[None]).numpy()
    runner = GraphRunner(massive.bundle, f"{dialect}-fp16")
    results = runner.run("rpn", tap.numpy(), runner.caches("rpn", CACHE_LENGTH), 0)
    found = runner.scores(results, 0, tap.shape[1])[..., : tap.shape[1]]
    difference = np.abs(found - expected).max()
    assert difference <= MASSIVE_SCORES_ABS, f"scores differ by {difference:.2e}"


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
@pytest.mark.parametrize("graph", ["trunk", "rpn", "tail"])
def test_no_fp16_value_overflows_and_the_stream_is_fp32(massive: Massive, graph: str, dialect: str) -> None:
    runner = GraphRunner(massive.bundle, f"{dialect}-fp16")
    values, dtypes = every_value(runner, graph, feeds(runner, graph))
    half = {name: value for name, value in values.items() if dtypes[name] == TensorProto.FLOAT16}
    assert len(half) > 15
    for name, value in half.items():
        assert np.isfinite(value).all(), f"{name} overflows"
    stream = {name: value for name, value in values.items() if name == "tap" or name.endswith(".hidden")}
    assert stream
    assert {dtypes[name] for name in stream} == {TensorProto.FLOAT}
    # The tail's last layer goes on with the row that is asked for, which is not that of BOS.
    largest = max(float(np.abs(value).max()) for value in stream.values() if value.shape[1] > 1)
    assert largest == pytest.approx(massive.value, rel=0.05)


@pytest.mark.parametrize("graph", ["trunk", "rpn", "tail"])
def test_what_is_fp16_would_fit_without_the_help_of_any_kernel(massive: Massive, graph: str) -> None:
    """The same products in the fp32 graph, whose values no kernel can have cut off."""
    runner = GraphRunner(massive.bundle, "fused-fp32")
    values, _ = every_value(runner, graph, feeds(runner, graph))
    products = ("qkv", "o", "gate_up", "gated", "down", "head", "q", "k", "v")
    found = {name: value for name, value in values.items() if name.rsplit(".", 1)[-1] in products}
    assert len(found) >= 8
    worst = max(found, key=lambda name: float(np.abs(found[name]).max()))
    assert np.abs(found[worst]).max() < FP16_MAX, f"{worst} reaches {np.abs(found[worst]).max():.0f}"


def feeds(runner: GraphRunner, graph: str) -> Feeds:
    """The prompt, as this graph gets it."""
    hidden = prompt(runner)
    if graph != "trunk":
        hidden = runner.run("trunk", hidden, runner.caches("trunk", CACHE_LENGTH), 0)["tap"]
    rows = hidden.shape[1]
    values: Feeds = {**runner.rows(graph, np.arange(rows)[None]), "write_index": np.zeros(1, np.int64)}
    values |= {"inputs_embeds": hidden} if graph == "trunk" else {"tap": hidden, "last_index": np.array([rows - 1])}
    return values | runner.caches(graph, CACHE_LENGTH)


def every_value(runner: GraphRunner, graph: str, values: Feeds) -> tuple[Feeds, dict[str, int]]:
    """All floating-point values inside a graph, and their types; nothing is fused away."""
    path = runner.bundle.file(runner.graph(graph).file)
    model = onnx.load(path, load_external_data=False)
    inferred = shape_inference.infer_shapes(model).graph
    dtypes = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    outputs = {value.name for value in model.graph.output}
    inside = {name: kind for name, kind in dtypes.items() if kind in (TensorProto.FLOAT, TensorProto.FLOAT16)}
    for name, kind in inside.items():
        if name not in outputs:
            model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    opened = path.with_suffix(".opened.onnx")  # beside the weights
    onnx.save(model, opened)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(opened, options, ["CPUExecutionProvider"])
    names = [name for name in inside if name not in values]
    return dict(zip(names, session.run(names, values), strict=True)), inside
