"""Statistics of the inputs of every matrix of the LLM, the RPN and the gate: second moments and largest values.

Layers run in order, all prompts through one layer before the next is loaded, only as far as statistics are requested;
one layer is in memory at a time. S tokens of a prompt, D width, K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdrpn.checkpoint import Checkpoint
from sdrpn.errors import RunFailed
from sdrpn.host.progress import Advance, unseen
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import tensor_from_array
from sdrpn.model.layers import DecoderLayer, RmsNorm

__all__ = ["CalibrationRows", "LayerInputs"]


# Matrices that share their inputs -> the one whose inputs are recorded.
_GATHERED_AT = {"q": "attention.q", "k": "attention.q", "v": "attention.q", "o": "attention.o"} | {
    "gate": "mlp.gate",
    "up": "mlp.gate",
    "down": "mlp.down",
}


@dataclass(frozen=True, eq=False)
class CalibrationRows:
    """What one prompt gives to the first layer."""

    embeds: Tensor  # (S,D) float32
    positions: Tensor  # (1,S) or (1,S,d/2), as `sdrpn.model.layers` takes them
    deepstack: tuple[Tensor, ...] = ()  # (S,D) each: feature j is added after layer j


class LayerInputs:
    """Input statistics by the canonical name of a matrix: implements `sdrpn.export.quantized_weights.Calibration`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Sequence[CalibrationRows],
        digest: str,
        *,
        device: str = "cpu",
        moments: bool = True,
        advance: Advance = unseen,
    ) -> None:
        """Start before the first layer.

        Args:
            prompts: what each of them gives to the first layer
            digest: the digest of the prompts
            moments: False: only the largest values are needed, which costs much less
            advance: called with (layers done, layers in all)
        """
        self.digest = digest
        spec = checkpoint.spec
        self._checkpoint, self._device, self._moments = checkpoint, device, moments
        self._positions = [prompt.positions for prompt in prompts]
        embeds = [prompt.embeds for prompt in prompts]
        self._llm = _Stack(checkpoint, "llm.layers", spec.llm.layers, embeds, self._positions, device, moments)
        self._llm.deepstack = [prompt.deepstack for prompt in prompts]
        self._above: dict[str, _Stack] = {}  # of the RPN and of the gate, on the taps
        self._taps: list[Tensor] = []
        self._largest: dict[str, float] = {}  # by part, layer and matrix
        self._done, self._total = 0, spec.llm.layers + sum(_whole_layers(spec).values())
        self._advance = advance

    @torch.inference_mode()
    def second_moment(self, name: str, /) -> NDArray[np.float32]:
        """(K,K) float32: the mean of x x^T over the rows x that the matrix `name` is multiplied with.

        Raises: RunFailed for a layer below one that was requested before
        """
        found = self._inputs_of(name).mean
        array: NDArray[np.float32] = found.cpu().numpy()
        return array

    @torch.inference_mode()
    def largest(self, name: str, /) -> float:
        """The largest absolute value among these inputs, of any layer at any time."""
        key = _key(name)
        if key not in self._largest:
            found = self._inputs_of(name).largest  # runs the layers up to this one, and records it
            self._largest.setdefault(key, found)
        return self._largest[key]

    def _inputs_of(self, name: str) -> _Inputs:
        if name == "llm.head.weight":
            self._run_llm(self._llm.layers)
            return self._normed(self._llm.hidden, "llm.norm.weight")
        part, _, number, *rest = name.split(".")
        layer, matrix = int(number), _GATHERED_AT[rest[1]]
        if part == "llm":
            self._run_llm(layer + 1)
            return self._llm.inputs(layer)[matrix]
        above = self._run_above(part, layer + 1)
        if layer < above.layers:
            return above.inputs(layer)[matrix]
        # The input of the score layer passes through the RPN's norm, where there is one, then its own.
        rpn = self._checkpoint.spec.rpn
        outer = ["rpn.norm.weight"] if rpn is not None and rpn.outer_norm else []
        return self._normed(above.hidden, *outer, f"rpn.layers.{layer}.input_norm.weight")

    def _run_llm(self, until: int) -> None:
        tap = self._checkpoint.spec.tap_layer
        if self._llm.done < tap <= until:
            self._run(self._llm, tap)
            self._taps = list(self._llm.hidden) if self._checkpoint.spec.rpn is not None else []
        self._run(self._llm, until)

    def _run_above(self, part: str, until: int) -> _Stack:
        """The whole layers of "rpn" or "gate"."""
        if part not in self._above:
            self._run_llm(self._checkpoint.spec.tap_layer)
            whole = _whole_layers(self._checkpoint.spec)[part]
            self._above[part] = _Stack(
                self._checkpoint, f"{part}.layers", whole, self._taps, self._positions, self._device, self._moments
            )
        stack = self._above[part]
        self._run(stack, min(until, stack.layers))
        return stack

    def _run(self, stack: _Stack, until: int) -> None:
        while stack.done < until:
            stack.run_next()
            for matrix, inputs in stack.inputs(stack.done - 1).items():
                self._largest[f"{stack.prefix}.{stack.done - 1}.{matrix}"] = inputs.largest
            self._done += 1
            self._advance(self._done, self._total)

    def _normed(self, hidden: Sequence[Tensor], *norms: str) -> _Inputs:
        llm, inputs = self._checkpoint.spec.llm, _Inputs(self._moments)
        scales = [tensor_from_array(self._checkpoint.read(name), torch.float32).to(self._device) for name in norms]
        for rows in hidden:
            x = rows.to(self._device)
            for scale in scales:
                norm = RmsNorm(llm.width, llm.rms_norm_eps)
                norm.weight = nn.Parameter(scale, requires_grad=False)
                x = norm(x)
            inputs.add(x)
        return inputs


class _Inputs:
    """Running statistics of a matrix's inputs: the largest value and, where needed, the mean of x x^T."""

    def __init__(self, moments: bool) -> None:
        self.largest = 0.0
        self._moments = moments
        self._sum: Tensor | None = None
        self._rows = 0

    def add(self, x: Tensor) -> None:
        """Add inputs x (..., K)."""
        rows = x.flatten(0, -2).float()
        self.largest = max(self.largest, float(rows.abs().max()))
        if self._moments:
            product = rows.T @ rows
            self._sum = product if self._sum is None else self._sum.add_(product)
            self._rows += len(rows)

    @property
    def mean(self) -> Tensor:
        """(K,K)."""
        assert self._sum is not None
        return self._sum / self._rows


class _Stack:
    """Decoder layers that run one after the other over all prompts, which are kept in host memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prefix: str,
        layers: int,
        hidden: Sequence[Tensor],
        positions: Sequence[Tensor],
        device: str,
        moments: bool,
    ) -> None:
        self.prefix, self.layers, self.done = prefix, layers, 0
        self.hidden, self._positions = list(hidden), positions
        self.deepstack: Sequence[Sequence[Tensor]] = ()  # by prompt: what is added after the first layers
        self._checkpoint, self._device, self._moments = checkpoint, device, moments
        self._inputs: dict[str, _Inputs] = {}

    def inputs(self, layer: int) -> dict[str, _Inputs]:
        """The input statistics of the layer that ran last."""
        if layer != self.done - 1:
            raise RunFailed(
                f"the inputs of {self.prefix}.{layer} were requested after {self.prefix}.{self.done - 1} ran; "
                "expected layers in order"
            )
        return self._inputs

    def run_next(self) -> None:
        """Run all prompts through the next layer."""
        layer = self._load(self.done)
        self._inputs = {name: _Inputs(self._moments) for name in dict.fromkeys(_GATHERED_AT.values())}
        hooks = [
            layer.get_submodule(name).register_forward_pre_hook(_adding_to(inputs))
            for name, inputs in self._inputs.items()
        ]
        for number, rows in enumerate(self.hidden):
            positions = self._positions[number].to(self._device)
            done = layer(rows.to(self._device)[None], positions)[0].cpu()
            features = self.deepstack[number] if self.deepstack else ()
            self.hidden[number] = done + features[self.done] if self.done < len(features) else done
        for hook in hooks:
            hook.remove()
        self.done += 1

    def _load(self, number: int) -> DecoderLayer:
        with torch.device("meta"):
            layer = DecoderLayer(self._checkpoint.spec.llm)
        state = {
            key: tensor_from_array(self._checkpoint.read(f"{self.prefix}.{number}.{key}"), torch.float32)
            for key in layer.state_dict()
        }
        layer.load_state_dict(state, assign=True)
        layer.eval().requires_grad_(False)
        return layer.to(self._device)


def _whole_layers(spec: ModelSpec) -> dict[str, int]:
    """The layers of RPN and gate that have all their matrices."""
    return {} if spec.rpn is None else {"rpn": spec.rpn.layers - 1, "gate": spec.rpn.gate_layers}


def _adding_to(inputs: _Inputs) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.add(given[0])

    return hook


def _key(name: str) -> str:
    """The key of matrices that share their inputs: llm.layers.3.attention.k.weight -> llm.layers.3.attention.q."""
    words = name.split(".")
    if name == "llm.head.weight":
        return name
    return f"{words[0]}.layers.{words[2]}.{_GATHERED_AT[words[-2]]}"
