"""A model as OpenVINO compiled it for a device: once, or for each set of extents where a device takes fixed ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import openvino

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.host.interrupt import signals_held
from sdrpn.host.threads import usable_cores
from sdrpn.runtime.backends.openvino_device import OpenVinoDevice
from sdrpn.runtime.backends.openvino_steps import MOST_SEQUENCES, ConstantProduct, StepCaches, StepModel

__all__ = ["CompiledGraph", "CompiledRequest"]

# A question has prefills of a few lengths, and steps of one; each compiled model may hold its own weights.
_MOST_EXTENTS = 8


@dataclass
class CompiledRequest:
    """A request, and the step whose buffers are its tensors."""

    request: openvino.InferRequest
    inputs: frozenset[str]  # their names
    caches: StepCaches | None = None  # of a step, where these are no inputs
    bound: object = None

    @classmethod
    def of(cls, compiled: Any, caches: StepCaches | None = None) -> CompiledRequest:
        """A request of a compiled model."""
        names = frozenset(name for port in compiled.inputs for name in port.get_names())
        return cls(compiled.create_infer_request(), names, caches)


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
            self._requests[()] = CompiledRequest.of(compiled)
        self._steps: StepModel | None = None
        self._step_requests: dict[int, CompiledRequest] = {}

    def add_steps(self, native: ModuleType, products: Sequence[ConstantProduct]) -> None:
        """Run single rows in a model of their own, which `self.model` becomes: see `StepModel`."""
        types = {port.get_any_name(): port.get_element_type().get_type_name() for port in self.inputs}
        # The library takes more threads than there are cores, the native module does not.
        threads = min(int(self._options["INFERENCE_NUM_THREADS"]), usable_cores())
        with signals_held():
            self._steps = StepModel(native, self.model, products, self._graph, types, threads)

    @property
    def step_bytes(self) -> int | None:
        """What a decode step reads of matrices that it has of its own."""
        return None if self._steps is None else self._steps.nbytes

    def request(self, extents: Mapping[str, int]) -> CompiledRequest:
        """The request for these extents of dynamic dimensions, which are compiled where a device needs it."""
        if self._steps is not None and extents.get("sequence") == 1 and extents["batch"] <= MOST_SEQUENCES:
            return self._step_request(self._steps, extents["batch"])
        if not self._device.fixed_extents:
            return self._requests[()]
        key = tuple(sorted(extents.items()))
        if key not in self._requests:
            compiled = self._core.compile_model(self._fixed(extents), self._device.name, self._options)
            self._requests[key] = CompiledRequest.of(compiled)
            while len(self._requests) > _MOST_EXTENTS:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key]

    def _step_request(self, steps: StepModel, batch: int) -> CompiledRequest:
        if batch not in self._step_requests:
            with signals_held():  # the library asks our operators for shapes, and drops what is raised there
                compiled = steps.compile(self._core, self._device.name, self._options, batch)
            self._step_requests[batch] = CompiledRequest.of(compiled, steps.caches)
        return self._step_requests[batch]

    def _fixed(self, extents: Mapping[str, int]) -> openvino.Model:
        model = self.model.clone()
        dims = {tensor.name: tensor.dims for tensor in self._graph.inputs}
        shapes = {}
        for value in model.inputs:
            (name,) = (name for name in value.get_names() if name in dims)
            shapes[name] = openvino.PartialShape([extents[dim] if isinstance(dim, str) else dim for dim in dims[name]])
        model.reshape(shapes)
        return model
