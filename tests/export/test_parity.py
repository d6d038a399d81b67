"""Every graph equals the PyTorch module that it was written after: same random weights, same inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.method.spec import ModelSpec, RopeScaling, RpnSpec
from sdrpn.model.base import SdRpnModel, model_from_checkpoint
from tests.export.graph_runner import Array, GraphRunner
from tests.tolerances import PARITY_ABS, PARITY_FP16_ABS

DIALECTS = ("fused", "primitive")


def with_llm(spec: ModelSpec, **changes: object) -> ModelSpec:
    return dataclasses.replace(spec, llm=dataclasses.replace(spec.llm, **changes))  # type: ignore[arg-type]


def with_vision(spec: ModelSpec, **changes: object) -> ModelSpec:
    return dataclasses.replace(spec, vision=dataclasses.replace(clip_of(spec), **changes))  # type: ignore[arg-type]


MODELS: dict[str, Callable[[ModelSpec], ModelSpec]] = {
    "as many key heads": lambda spec: spec,
    "shared key heads": lambda spec: with_llm(spec, kv_heads=2),
    "one key head, heads wider than the model": lambda spec: with_llm(spec, kv_heads=1, head_dim=24),
    "linear rope": lambda spec: with_llm(spec, rope_scaling=RopeScaling("linear", 3.0)),
    "llama3 rope": lambda spec: with_llm(
        spec, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_context=64), rope_theta=5e5
    ),
    "tied, other theta and eps": lambda spec: with_llm(spec, tied_embeddings=True, rope_theta=777.0, rms_norm_eps=1e-3),
    "last hidden state, exact GELU": lambda spec: with_vision(spec, select_layer=-1, activation="gelu", heads=4),
    "longest RPN, short tail": lambda spec: dataclasses.replace(spec, tap_layer=1, rpn=RpnSpec(3)),
    "RPN of one layer, tail of one layer": lambda spec: dataclasses.replace(spec, tap_layer=3, rpn=RpnSpec(1)),
    "one dot product over the width": lambda spec: dataclasses.replace(spec, rpn=RpnSpec(2, multi_head=False)),
}


class Case:
    """A model in PyTorch, and its bundle."""

    def __init__(self, spec: ModelSpec, folder: Path, precisions: tuple[str, ...] = ("fp32",)) -> None:
        write_random_checkpoint(folder / "checkpoint", spec, seed=3)
        for dialect in DIALECTS:
            for precision in precisions:
                export_bundle(
                    folder / "checkpoint",
                    folder / "bundle",
                    ExportOptions(precision, dialect),  # type: ignore[arg-type]
                )
        with open_checkpoint(folder / "checkpoint") as checkpoint:
            self.spec = checkpoint.spec
            self.model: SdRpnModel = model_from_checkpoint(checkpoint)
        self.bundle = folder / "bundle"

    def embeds(self, rows: int, batch: int = 1) -> Array:
        """(B,S,D) of the size that tokens have."""
        return np.random.default_rng(rows).standard_normal((batch, rows, self.spec.llm.width)).astype(np.float32)

    def torch_trunk(self, embeds: Array) -> Array:
        with torch.inference_mode():
            tap: Array = self.model.trunk(torch.from_numpy(embeds), order(embeds)).numpy()
        return tap

    def torch_tail(self, tap: Array, last: list[int] | None = None) -> Array:
        index = None if last is None else torch.tensor(last)
        with torch.inference_mode():
            logits: Array = self.model.tail(torch.from_numpy(tap), order(tap), last_index=index).numpy()
        return logits

    def torch_scores(self, tap: Array, last: list[int] | None = None) -> Array:
        assert self.model.rpn is not None
        index = None if last is None else torch.tensor(last)
        with torch.inference_mode():
            scores: Array = self.model.rpn(torch.from_numpy(tap), order(tap), index).numpy()
        return scores


def order(hidden: Array) -> torch.Tensor:
    return torch.arange(hidden.shape[1]).expand(hidden.shape[:2])


@pytest.fixture(scope="module", params=MODELS)
def any_model(request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(MODELS[request.param](tiny_spec), tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module", params=["as many key heads", "shared key heads"])
def model(request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(MODELS[request.param](tiny_spec), tmp_path_factory.mktemp("parity"), ("fp32", "fp16"))


@pytest.fixture(params=DIALECTS)
def runner(request: pytest.FixtureRequest, model: Case) -> GraphRunner:
    return GraphRunner(model.bundle, f"{request.param}-fp32")


def assert_close(what: str, found: Array, expected: Array, tolerance: float = PARITY_ABS) -> None:
    assert found.shape == expected.shape, what
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max()
    assert difference <= tolerance, f"{what} differ by {difference:.2e}, values up to {np.abs(expected).max():.1f}"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_graph_equals_its_module(any_model: Case, dialect: str) -> None:
    model, runner = any_model, GraphRunner(any_model.bundle, f"{dialect}-fp32")
    rows, length = 21, 40
    pixels = np.random.default_rng(0).standard_normal((2, 3, 56, 56)).astype(np.float32)
    with torch.inference_mode():
        expected = model.model.vision(torch.from_numpy(pixels)).numpy()
    assert_close("image_embeds", runner.call("vision", {"pixel_values": pixels})["image_embeds"], expected)

    embeds = model.embeds(rows)
    tap = model.torch_trunk(embeds)
    assert_close("taps", runner.run("trunk", embeds, runner.caches("trunk", length), 0)["tap"], tap)
    assert_close("logits", runner.run("tail", tap, runner.caches("tail", length), 0)["logits"], model.torch_tail(tap))
    results = runner.run("rpn", tap, runner.caches("rpn", length), 0)
    assert_close("scores", runner.scores(results, 0, rows)[..., :rows], model.torch_scores(tap))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_fp16_stays_near(model: Case, dialect: str) -> None:
    runner = GraphRunner(model.bundle, f"{dialect}-fp16")
    embeds = model.embeds(21)
    tap = model.torch_trunk(embeds)
    found = runner.run("trunk", embeds, runner.caches("trunk", 30), 0)["tap"]
    assert_close("taps", found, tap, PARITY_FP16_ABS)
    found = runner.run("tail", tap, runner.caches("tail", 30), 0)["logits"]
    assert_close("logits", found, model.torch_tail(tap), PARITY_FP16_ABS)
    results = runner.run("rpn", tap, runner.caches("rpn", 30), 0)
    assert_close("scores", runner.scores(results, 0, 21)[..., :21], model.torch_scores(tap), PARITY_FP16_ABS)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 56, 56)).astype(np.float32)
    with torch.inference_mode():
        expected = model.model.vision(torch.from_numpy(pixels)).numpy()
    assert_close(
        "image_embeds", runner.call("vision", {"pixel_values": pixels})["image_embeds"], expected, PARITY_FP16_ABS
    )


@pytest.mark.parametrize("cuts", [[13], [1, 2, 3], [20], list(range(1, 21))], ids=["two", "ones first", "step", "all"])
def test_chunks_equal_one_piece(model: Case, runner: GraphRunner, cuts: list[int]) -> None:
    """Prefill in pieces and decoding by single tokens are the same thing."""
    embeds = model.embeds(21)
    tap = model.torch_trunk(embeds)
    bounds = list(zip([0, *cuts], [*cuts, 21], strict=True))
    caches = {name: runner.caches(name, 24) for name in ("trunk", "tail", "rpn")}
    for start, stop in bounds:
        found = runner.run("trunk", embeds[:, start:stop], caches["trunk"], start)["tap"]
        assert_close(f"taps {start} to {stop}", found, tap[:, start:stop])
        logits = runner.run("tail", tap[:, start:stop], caches["tail"], start)["logits"]
        assert_close(f"logits at {stop - 1}", logits, model.torch_tail(tap[:, :stop]))
        results = runner.run("rpn", tap[:, start:stop], caches["rpn"], start)
        scores = runner.scores(results, start, stop - start)[..., :stop]
        assert_close(f"scores at {stop - 1}", scores, model.torch_scores(tap[:, :stop]))


def test_going_back_overwrites(model: Case, runner: GraphRunner) -> None:
    """The second pass puts other tokens after the same prefix; what the first left there must not be seen."""
    first, second, prefix = model.embeds(21), model.embeds(22), 8
    second[:, :prefix] = first[:, :prefix]
    caches = {name: runner.caches(name, 64) for name in ("trunk", "tail")}
    runner.run("trunk", first, caches["trunk"], 0)
    runner.run("tail", model.torch_trunk(first), caches["tail"], 0)
    expected = model.torch_trunk(second)
    for stop in (12, 22):  # shorter than what lies there, and longer
        found = runner.run("trunk", second[:, prefix:stop], caches["trunk"], prefix)["tap"]
        assert_close("taps", found, expected[:, prefix:stop])
        logits = runner.run("tail", expected[:, prefix:stop], caches["tail"], prefix)["logits"]
        assert_close("logits", logits, model.torch_tail(expected[:, :stop]))


@pytest.mark.parametrize("fill", [1.0, 1e4])
@pytest.mark.parametrize("length", [21, 22, 64, 250])
def test_stale_rows_behind_are_never_seen(model: Case, runner: GraphRunner, length: int, fill: float) -> None:
    embeds = model.embeds(21)
    tap = model.torch_trunk(embeds)
    found = runner.run("trunk", embeds, runner.caches("trunk", length, fill=fill), 0)["tap"]
    assert_close("taps", found, tap)
    found = runner.run("tail", tap, runner.caches("tail", length, fill=fill), 0)["logits"]
    assert_close("logits", found, model.torch_tail(tap))
    results = runner.run("rpn", tap, runner.caches("rpn", length, fill=fill), 0)
    assert_close("scores", runner.scores(results, 0, 21)[..., :21], model.torch_scores(tap))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_stale_rows_are_never_seen_in_fp16(model: Case, dialect: str) -> None:
    """Keys and values as large as an earlier request may have left them."""
    runner = GraphRunner(model.bundle, f"{dialect}-fp16")
    embeds = model.embeds(21)
    clean = runner.run("trunk", embeds, runner.caches("trunk", 64), 0)["tap"]
    found = runner.run("trunk", embeds, runner.caches("trunk", 64, fill=100.0), 0)["tap"]
    assert_close("taps", found, clean)


@pytest.mark.parametrize("last", range(5))
def test_the_row_that_is_asked_for(model: Case, runner: GraphRunner, last: int) -> None:
    """The tail's last layer computes only this row; it equals the row of the whole layer."""
    tap = model.torch_trunk(model.embeds(5))
    with torch.inference_mode():
        hidden = model.model.tail.hidden(torch.from_numpy(tap), order(tap))[:, last]
        expected = model.model.tail.head(model.model.tail.norm(hidden)).numpy()
    found = runner.run("tail", tap, runner.caches("tail", 9), 0, last)["logits"]
    assert_close("logits", found, expected)
    results = runner.run("rpn", tap, runner.caches("rpn", 9), 0, last)
    # The row may not see later ones in the whole layers, but is scored against them.
    scores = runner.scores(results, 0, 5)[..., :5]
    assert_close("scores", scores, model.torch_scores(tap, [last]))


@pytest.mark.parametrize("padding_rows", ["counting on", "zero", "last"])
def test_a_ragged_batch_equals_its_rows_one_by_one(model: Case, runner: GraphRunner, padding_rows: str) -> None:
    """Two requests of 17 and 9 rows after 5 and 11 cached ones; the padding holds anything."""
    counts, starts, length = [17, 9], np.array([5, 11]), 40
    rows = max(counts)
    sequences = [model.embeds(start + count)[0] for start, count in zip(starts, counts, strict=True)]
    taps = [model.torch_trunk(sequence[None])[0] for sequence in sequences]

    def batched(name: str) -> tuple[Array, dict[str, Array]]:
        """The rows that are new, padded with noise, and caches in which the earlier ones lie."""
        source = sequences if name == "trunk" else taps
        hidden = 50 * model.embeds(rows, batch=2)
        caches = runner.caches(name, length, batch=2, fill=10.0)
        for entry, (start, count) in enumerate(zip(starts, counts, strict=True)):
            hidden[entry, :count] = source[entry][start : start + count]
            alone = runner.caches(name, length)
            runner.run(name, source[entry][None, :start], alone, 0)
            for cache in caches:
                caches[cache][entry, :, :start] = alone[cache][0, :, :start]
        return hidden, caches

    last = np.array(counts) - 1
    row_index = starts[:, None] + np.arange(rows)
    padding = np.arange(rows) > last[:, None]
    if padding_rows != "counting on":
        row_index[padding] = 0 if padding_rows == "zero" else model.spec.llm.max_context - 1
    for name in ("trunk", "tail", "rpn"):
        hidden, caches = batched(name)
        feeds = {**runner.rows(name, row_index), "write_index": starts, **caches}
        feeds |= {"inputs_embeds": hidden} if name == "trunk" else {"tap": hidden, "last_index": last}
        results = runner.call(name, feeds)
        for entry, (start, count) in enumerate(zip(starts, counts, strict=True)):
            stop = start + count
            whole = taps[entry][None, :stop]
            if name == "trunk":
                assert_close(f"taps of request {entry}", results["tap"][entry, :count], whole[0, start:])
            elif name == "tail":
                assert_close(f"logits of request {entry}", results["logits"][[entry]], model.torch_tail(whole))
            else:
                scores = runner.scores(dict(results), starts, rows)[[entry], :, :stop]
                assert_close(f"scores of request {entry}", scores, model.torch_scores(whole))


def test_positions_up_to_the_last_of_the_context(model: Case, runner: GraphRunner) -> None:
    limit = model.spec.llm.max_context
    embeds = model.embeds(limit)
    found = runner.run("trunk", embeds, runner.caches("trunk", limit), 0)["tap"]
    assert_close("taps", found, model.torch_trunk(embeds))
