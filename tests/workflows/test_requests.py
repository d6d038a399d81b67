"""What a workflow is asked for: values of other types are refused where a request is made."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import sdrpn.workflows
from sdrpn.engines import BuildOptions
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions
from sdrpn.host.field_types import CheckedFields
from sdrpn.runtime import EngineOptions, Sampling
from sdrpn.runtime.checkup.groups import CheckupRequest
from sdrpn.train.options import TrainOptions
from sdrpn.workflows.export import ExportRequest
from sdrpn.workflows.look import LookRequest
from sdrpn.workflows.memory_plan import PlanRequest
from sdrpn.workflows.question import AskRequest
from sdrpn.workflows.serve import ServeRequest


def requests() -> list[type[Any]]:
    """Every dataclass of the workflows that is named like one."""
    modules = [
        importlib.import_module(f"sdrpn.workflows.{m.name}") for m in pkgutil.iter_modules(sdrpn.workflows.__path__)
    ]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    own = [kind for kind in found if kind.__module__.startswith(sdrpn.workflows.__name__)]
    return [kind for kind in own if dataclasses.is_dataclass(kind) and kind.__name__.endswith("Request")]


def test_every_request_checks_its_fields() -> None:
    assert {LookRequest, AskRequest, ExportRequest, PlanRequest} <= set(requests())
    assert [kind.__name__ for kind in requests() if not issubclass(kind, CheckedFields)] == []


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (LookRequest, ("demo", "a.jpg", ["what ?"], {"stdin": 3}), "stdin is 3; expected a function or None"),
        (
            LookRequest,
            ("demo", "a.jpg", ["what ?"], {"engine_options": {}}),
            r"engine_options is \{\}; expected EngineOpt",
        ),
        (LookRequest, ("demo", "a.jpg", ["what ?"], {"backend": None}), "backend is None; expected a text"),
        (LookRequest, ("demo", "a.jpg", ["what ?"], {"threads": "2"}), "threads is '2'; expected an integer or None"),
        (AskRequest, ("demo", 3, "what ?", {}), "image is 3; expected a path, a text or bytes"),
        (AskRequest, ("demo", "a.jpg", 3, {}), "question is 3; expected a text"),
        (AskRequest, ("demo", "a.jpg", "what ?", {"sampling": 0.5}), r"sampling is 0\.5; expected Sampling"),
        (
            AskRequest,
            ("demo", "a.jpg", "what ?", {"max_new_tokens": True}),
            "max_new_tokens is True; expected an integer",
        ),
        (PlanRequest, ("demo", {"contexts": "1024"}), "contexts is '1024'; expected a list, each an integer"),
        (ServeRequest, ("demo", {"otlp_endpoint": "foo"}), "otlp_endpoint is 'foo'; expected one such as http"),
        (ServeRequest, ("demo", {"name": " "}), "name is empty"),
        (ServeRequest, ("demo", {"allow_origin": ("*",)}), r"allow_origin is '\*'; expected the origin of one page"),
        (ServeRequest, ("demo", {"allow_origin": ("https://a.org/",)}), "allow_origin is 'https://a.org/'; expected"),
        (ServeRequest, ("demo", {"max_queue": 0}), "max_queue is 0; expected more than 0"),
        (ServeRequest, ("demo", {"max_connections": 10**8}), "max_connections is 100,000,000; .* at most 65,536"),
        (ServeRequest, ("demo", {"timeout_s": float("inf")}), "timeout_s is inf; expected more than 0, and at most"),
        (ServeRequest, ("demo", {"stuck_after_s": float("nan")}), "stuck_after_s is nan; expected more than 0"),
        (PlanRequest, ("demo", {"parts": "rpn"}), "parts is 'rpn'; expected 'all' or 'look'"),
        (ExportRequest, ("folder", Path("out"), {}), "checkpoint is 'folder'; expected CheckpointParts"),
        (CheckupRequest, ({"gpu": "0"},), "gpu is '0'; expected an integer"),
        (EngineOptions, ({"cuda_graph": 1},), "cuda_graph is 1; expected True or False"),
        (Sampling, ({"temperature": "warm"},), "temperature is 'warm'; expected a number"),
        (BuildOptions, ({"graphs": "trunk"},), "graphs is 'trunk'; expected a list, each a text or None"),
        (TrainOptions, ({"loss": "mse"},), "loss is 'mse'; expected 'bce' or 'focal'"),
        (ExportOptions, ({"block": "32"},), "block is '32'; expected an integer"),
    ],
)
def test_values_of_other_types(kind: type[Any], given: tuple[Any, ...], message: str) -> None:
    *arguments, options = given
    with pytest.raises(BadInput, match=f"^{message}"):
        kind(*arguments, **options)
