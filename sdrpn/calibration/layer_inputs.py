"""The inputs of every matrix of the LLM and the RPN, as second moments. One layer's weights are in memory at a time.

Layers are run in order, from below, all prompts through one before the next is read; what is asked for decides how far.
S tokens of a prompt, D width, K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdrpn.checkpoint import Checkpoint
from sdrpn.errors import RunFailed
from sdrpn.model.layers import DecoderLayer, RmsNorm
from sdrpn.model.llava import tensor_from_array

__all__ = ["LayerInputs"]

Advance = Callable[[int, int], None]
Moments = dict[str, Tensor]

# Matrices that multiply the same inputs -> the one whose inputs are gathered.
_GATHERED_AT = {"q": "attention.q", "k": "attention.q", "v": "attention.q", "o": "attention.o"} | {
    "gate": "mlp.gate",
    "up": "mlp.gate",
    "down": "mlp.down",
}


class LayerInputs:
    """Second moments of inputs by canonical names of matrices; what `sdrpn.export.weights.Calibration` asks for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        embeds: Sequence[Tensor],
        digest: str,
        *,
        device: str = "cpu",
        advance: Advance = lambda done, total: None,
    ) -> None:
        """Args: embeds: (S,D) of each prompt; digest: of these; advance: told (layers done, layers in all)."""
        self.digest = digest
        spec = checkpoint.spec
        self._checkpoint, self._device = checkpoint, device
        self._llm = _Stack(checkpoint, "llm.layers", spec.llm.layers, embeds, device)
        self._rpn: _Stack | None = None
        self._taps: list[Tensor] = []
        self._done, self._total = 0, spec.llm.layers + (spec.rpn.layers if spec.rpn is not None else 0)
        self._advance = advance

    @torch.inference_mode()
    def second_moment(self, name: str, /) -> NDArray[np.float32]:
        """(K,K) float32: the mean of x x^T over the rows x that the matrix `name` is multiplied with.

        Raises: RunFailed where a layer below one that was asked for before is asked for
        """
        if name == "llm.head.weight":
            self._run_llm(self._llm.layers)
            return _array(self._normed_moment(self._llm.hidden, "llm.norm.weight"))
        part, _, number, *rest = name.split(".")
        layer, matrix = int(number), _GATHERED_AT[rest[1]]
        if part == "llm":
            self._run_llm(layer + 1)
            return _array(self._llm.moments(layer)[matrix])
        return self._rpn_moment(layer, matrix)

    def _rpn_moment(self, layer: int, matrix: str) -> NDArray[np.float32]:
        spec = self._checkpoint.spec
        assert spec.rpn is not None
        if self._rpn is None:
            self._run_llm(spec.tap_layer)
            whole = spec.rpn.layers - 1
            self._rpn = _Stack(self._checkpoint, "rpn.layers", whole, self._taps, self._device)
        self._run(self._rpn, min(layer + 1, self._rpn.layers))
        if layer < self._rpn.layers:
            return _array(self._rpn.moments(layer)[matrix])
        # The score layer sees the RPN's norm, then its own.
        norms = "rpn.norm.weight", f"rpn.layers.{layer}.input_norm.weight"
        return _array(self._normed_moment(self._rpn.hidden, *norms))

    def _run_llm(self, until: int) -> None:
        tap = self._checkpoint.spec.tap_layer
        if self._llm.done < tap <= until:
            self._run(self._llm, tap)
            self._taps = list(self._llm.hidden) if self._checkpoint.spec.rpn is not None else []
        self._run(self._llm, until)

    def _run(self, stack: _Stack, until: int) -> None:
        while stack.done < until:
            stack.run_next()
            self._done += 1
            self._advance(self._done, self._total)

    def _normed_moment(self, hidden: Sequence[Tensor], *norms: str) -> Tensor:
        llm, moment = self._checkpoint.spec.llm, _Moment()
        scales = [tensor_from_array(self._checkpoint.read(name), torch.float32).to(self._device) for name in norms]
        for rows in hidden:
            x = rows.to(self._device)
            for scale in scales:
                norm = RmsNorm(llm.width, llm.rms_norm_eps)
                norm.weight = nn.Parameter(scale, requires_grad=False)
                x = norm(x)
            moment.add(x)
        return moment.mean


class _Moment:
    """A running mean of x x^T."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._rows = 0

    def add(self, x: Tensor) -> None:
        """x (..., K)."""
        rows = x.flatten(0, -2).float()
        product = rows.T @ rows
        self._sum = product if self._sum is None else self._sum.add_(product)
        self._rows += len(rows)

    @property
    def mean(self) -> Tensor:
        """(K,K)."""
        assert self._sum is not None
        return self._sum / self._rows


class _Stack:
    """Decoder layers, one after the other, over all prompts. Prompts wait in ordinary memory."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, layers: int, hidden: Sequence[Tensor], device: str) -> None:
        self.layers, self.done = layers, 0
        self.hidden = list(hidden)
        self._checkpoint, self._prefix, self._device = checkpoint, prefix, device
        self._moments: Moments = {}

    def moments(self, layer: int) -> Moments:
        """Those of the layer that ran last."""
        if layer != self.done - 1:
            raise RunFailed(
                f"the inputs of {self._prefix}.{layer} were asked for after {self._prefix}.{self.done - 1} ran; "
                "expected layers in order"
            )
        return self._moments

    def run_next(self) -> None:
        """All prompts through the next layer."""
        layer = self._load(self.done)
        gathered = {name: _Moment() for name in dict.fromkeys(_GATHERED_AT.values())}
        hooks = [
            layer.get_submodule(name).register_forward_pre_hook(_adding_to(moment)) for name, moment in gathered.items()
        ]
        for number, rows in enumerate(self.hidden):
            positions = torch.arange(len(rows), device=self._device)[None]
            self.hidden[number] = layer(rows.to(self._device)[None], positions)[0].cpu()
        for hook in hooks:
            hook.remove()
        self._moments = {name: moment.mean for name, moment in gathered.items()}
        self.done += 1

    def _load(self, number: int) -> DecoderLayer:
        with torch.device("meta"):
            layer = DecoderLayer(self._checkpoint.spec.llm)
        state = {
            key: tensor_from_array(self._checkpoint.read(f"{self._prefix}.{number}.{key}"), torch.float32)
            for key in layer.state_dict()
        }
        layer.load_state_dict(state, assign=True)
        layer.eval().requires_grad_(False)
        return layer.to(self._device)


def _adding_to(moment: _Moment) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        moment.add(inputs[0])

    return hook


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array
