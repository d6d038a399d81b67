"""In place of Triton: the module that its Python backend gives to a model, by the rules that its README states.

A response sender sends any number of responses, the last call has the final flag, and nothing follows it. `execute` of
a decoupled model returns None. Inputs and outputs have the names, types and dims of the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
NUMPY_TYPES = {"TYPE_STRING": np.object_, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_}


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.text, self.code = message, code


class Tensor:
    def __init__(self, name: str, values: np.ndarray[Any, Any]) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._values


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors, self.error = output_tensors, error

    def value(self, name: str) -> Any:
        (found,) = (tensor.as_numpy() for tensor in self.tensors if tensor.name() == name)
        return found


class Sender:
    def __init__(self, config: Mapping[str, Any], cancelled_after: int | None) -> None:
        self._outputs = {output["name"]: output for output in config["output"]}
        self.responses: list[InferenceResponse] = []
        self.final, self._asked, self._cancelled_after = False, 0, cancelled_after

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.final, "a response after the final one"
        self.final = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        assert response is not None or self.final, "neither a response nor the final flag"
        if response is None:
            return
        for tensor in response.tensors:
            output, values = self._outputs[tensor.name()], tensor.as_numpy()
            assert values.dtype == NUMPY_TYPES[output["data_type"]], tensor.name()
            dims = [int(dim) for dim in output["dims"]]
            assert len(dims) == values.ndim
            assert all(want in (-1, has) for want, has in zip(dims, values.shape, strict=True)), tensor.name()
        self.responses.append(response)

    def is_cancelled(self) -> bool:
        self._asked += 1
        return self._cancelled_after is not None and self._asked > self._cancelled_after


class InferenceRequest:
    def __init__(
        self, tensors: Mapping[str, Any], config: Mapping[str, Any], cancelled_after: int | None = None
    ) -> None:
        inputs = {each["name"]: each for each in config["input"]}
        for name, values in tensors.items():
            assert values.dtype == NUMPY_TYPES[inputs[name]["data_type"]], name
        self.tensors, self.sender = tensors, Sender(config, cancelled_after)

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    values = request.tensors.get(name)
    return None if values is None else Tensor(name, values)


def arguments(repository: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What Triton passes to `initialize`."""
    return {
        "model_config": json.dumps(config),
        "model_repository": str(repository),
        "model_version": "1",
        "model_name": config["name"],
        "model_instance_name": f"{config['name']}_0",
        "model_instance_kind": config["instance_group"][0]["kind"].removeprefix("KIND_"),
        "model_instance_device_id": "0",
    }
