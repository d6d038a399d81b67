"""A model as OpenVINO compiled it for a device: once, or for each set of extents where a device takes fixed ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openvino

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.runtime.backends.openvino_device import OpenVinoDevice

__all__ = ["CompiledGraph", "CompiledRequest"]

# A question has prefills of a few lengths, and steps of one; each compiled model may hold its own weights.
_MOST_EXTENTS = 8


@dataclass
class CompiledRequest:
    """A request, and the step whose buffers are its tensors."""

    request: openvino.InferRequest
    bound: object = None


class CompiledGraph:
    """A model and its requests, one for all extents or one for each."""

    def __init__(
        self,
        core: openvino.Core,
        model: openvino.Model,
        graph: GraphInfo,
        device: OpenVinoDevice,
        options: Mapping[str, Any],
    ) -> None:
        self.model = model
        self._core, self._graph, self._device, self._options = core, graph, device, dict(options)
        self._requests: OrderedDict[tuple[tuple[str, int], ...], CompiledRequest] = OrderedDict()
        if device.fixed_extents:
            self.inputs: Sequence[Any] = model.inputs
        else:
            compiled = core.compile_model(model, device.name, self._options)
            self.inputs = compiled.inputs  # caches in pages have their type from here on
            self._requests[()] = CompiledRequest(compiled.create_infer_request())

    def request(self, extents: Mapping[str, int]) -> CompiledRequest:
        """The request for these extents of dynamic dimensions, which are compiled where a device needs it."""
        if not self._device.fixed_extents:
            return self._requests[()]
        key = tuple(sorted(extents.items()))
        if key not in self._requests:
            compiled = self._core.compile_model(self._fixed(extents), self._device.name, self._options)
            self._requests[key] = CompiledRequest(compiled.create_infer_request())
            while len(self._requests) > _MOST_EXTENTS:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key]

    def _fixed(self, extents: Mapping[str, int]) -> openvino.Model:
        model = self.model.clone()
        dims = {tensor.name: tensor.dims for tensor in self._graph.inputs}
        shapes = {}
        for value in model.inputs:
            (name,) = (name for name in value.get_names() if name in dims)
            shapes[name] = openvino.PartialShape([extents[dim] if isinstance(dim, str) else dim for dim in dims[name]])
        model.reshape(shapes)
        return model
