"""A repository for Triton: its configuration by Triton's own schema, and its model through a stand-in for Triton."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadBundle, BadInput
from sdrpn.families.look_settings import LookSettings
from sdrpn.host.links import allowing_links
from sdrpn.method.policy import OWN
from sdrpn.runtime import Session
from sdrpn.workflows.triton_repository import TritonRequest, write_triton_repository
from tests.families.qwen.bundles import qwen_bundle
from tests.runtime import triton_stand_in as triton

text_format = pytest.importorskip("google.protobuf.text_format")
json_format = pytest.importorskip("google.protobuf.json_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
QUESTION = "what is the code on the yellow tag ?"


def read_config(folder: Path) -> dict[str, Any]:
    """Refuses what Triton's schema does not have."""
    message = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "street-codes"
    write_triton_repository(TritonRequest("demo", path, max_batch=2))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Any]:
    with loaded(folder) as found:
        yield found


@contextmanager
def loaded(folder: Path) -> Iterator[Any]:
    """The class of `model.py`, loaded as Triton does it."""
    sys.modules["triton_python_backend_utils"] = triton
    try:
        spec = importlib.util.spec_from_file_location("street_codes_model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.TritonPythonModel()
        found.initialize(triton.arguments(folder, read_config(folder)))
        yield found
        found.finalize()
    finally:
        sys.modules.pop("triton_python_backend_utils", None)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def text(content: bytes) -> np.ndarray[Any, Any]:
    return np.array([content], object)


def tensors(**changes: Any) -> dict[str, Any]:
    given = {"image": text(picture()), "question": text(QUESTION.encode()), "max_new_tokens": np.array([5], np.int32)}
    return {name: value for name, value in (given | changes).items() if value is not None}


def executed(model: Any, folder: Path, *requests: dict[str, Any], cancelled_after: int | None = None) -> list[Any]:
    config = read_config(folder)
    made = [triton.InferenceRequest(each, config, cancelled_after) for each in requests]
    assert asyncio.run(model.execute(made)) is None
    assert all(request.sender.final for request in made)
    return [request.sender.responses for request in made]


def test_the_configuration(folder: Path) -> None:
    config = read_config(folder)
    assert (config["name"], config["backend"]) == ("street-codes", "python")
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert "dynamic_batching" not in config
    assert config.get("max_batch_size", 0) == 0
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]


def test_the_warm_up_request_is_answered(model: Any, folder: Path) -> None:
    """Its files hold a tensor as the protocol has it."""
    (sample,) = read_config(folder)["model_warmup"]
    given = {}
    for name, each in sample["inputs"].items():
        content = (folder / "warmup" / each["input_data_file"]).read_bytes()
        assert int.from_bytes(content[:4], "little") == len(content) - 4
        given[name] = text(content[4:])
    ((response,),) = executed(model, folder, given)
    assert response.error is None


def test_answers_are_those_of_a_session(model: Any, folder: Path) -> None:
    with Session.open("demo", backend="onnxruntime") as session:
        expected = session.answer(picture(), QUESTION, max_new_tokens=5)
    streamed, whole = executed(model, folder, tensors(stream=np.array([True])), tensors())
    assert len(whole) == 1
    assert whole[0].value("text")[0].decode() == expected.text
    assert tuple(whole[0].value("token_ids")) == expected.token_ids
    assert whole[0].value("finish_reason")[0].decode() == expected.finish_reason
    np.testing.assert_allclose(whole[0].value("boxes_xyxy_px"), np.reshape(expected.boxes_xyxy_px, (-1, 4)), rtol=1e-6)
    assert len(streamed) > 1
    assert "".join(response.value("text")[0].decode() for response in streamed) == expected.text
    assert [response.value("finish_reason")[0] for response in streamed[:-1]] == [b""] * (len(streamed) - 1)
    assert tuple(streamed[-1].value("token_ids")) == expected.token_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": text(b"no picture")}, "picture"),
        ({"question": None}, "input question is missing"),
        ({"question": text(b"\xff")}, "question is not UTF-8 text"),
        ({"question": np.array([b"a", b"b"], object)}, "input question has 2 elements; expected one"),
        ({"max_new_tokens": np.array([0], np.int32)}, "max_new_tokens"),
        ({"image_tokens": np.array([9], np.int32)}, "input image_tokens has 1 elements; expected 2 elements"),
        ({"image_tokens": np.array([4, 24], np.int32)}, "this model turns every picture into 144 tokens"),
        ({"preset": text(b"document")}, "the preset 'document' is for Qwen2.5-VL and Qwen3-VL"),
        ({"threshold": np.array([2.0], np.float32)}, "threshold"),
    ],
)
def test_errors_are_the_requests_own(model: Any, folder: Path, changes: dict[str, Any], message: str) -> None:
    ((failed,), (answered,)) = executed(model, folder, tensors(**changes), tensors())
    assert failed.error.code == triton.TritonError.INVALID_ARG
    assert message in failed.error.text
    assert answered.error is None


def test_a_budget_and_a_preset(tmp_path: Path) -> None:
    folder, bundle = tmp_path / "qwen", qwen_bundle("q-zoom-3", tmp_path)
    write_triton_repository(TritonRequest(bundle, folder))
    budget = {"image_tokens": np.array([4, 24], np.int32), "preset": text(b"reading")}
    with loaded(folder) as model, Session.open(bundle) as session:
        (answered,), (refused,), (usual,) = executed(
            model, folder, tensors(**budget), tensors(preset=text(b"poem")), tensors()
        )
        look = LookSettings(OWN, "reading", (4, 24)).settled(session.spec)
        expected = session.answer(picture(), QUESTION, roi=look.roi, max_new_tokens=5, image_tokens=(4, 24))
        own = session.answer(picture(), QUESTION, max_new_tokens=5)
    assert "the preset 'poem' is unknown; expected one of" in refused.error.text
    assert tuple(answered.value("token_ids")) == expected.token_ids != own.token_ids
    assert tuple(usual.value("token_ids")) == own.token_ids


def test_a_cancelled_request_ends(model: Any, folder: Path) -> None:
    (responses,) = executed(model, folder, tensors(stream=np.array([True])), cancelled_after=1)
    assert len(responses) == 1


def test_what_clients_send(model: Any, folder: Path) -> None:
    """The payload of Triton's own client (KServe v2), decoded as the protocol says."""
    grpc = pytest.importorskip("tritonclient.grpc")
    utils = pytest.importorskip("tritonclient.utils")
    decoded = {}
    types = {each["name"]: each["data_type"] for each in read_config(folder)["input"]}
    kserve = {"TYPE_STRING": "BYTES", "TYPE_INT32": "INT32", "TYPE_FP32": "FP32", "TYPE_BOOL": "BOOL"}
    for name, values in tensors(threshold=np.array([0.3], np.float32)).items():
        sent = grpc.InferInput(name, values.shape, kserve[types[name]])
        sent.set_data_from_numpy(values)
        raw = sent._get_content()
        is_text = types[name] == "TYPE_STRING"
        decoded[name] = utils.deserialize_bytes_tensor(raw) if is_text else np.frombuffer(raw, values.dtype)
    ((response,),) = executed(model, folder, decoded)
    assert response.error is None


def test_what_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match="target l4 is a GPU's; expected the kind gpu with it"):
        TritonRequest("demo", tmp_path / "m", target="l4")
    with pytest.raises(BadInput, match=r"has no tokenizer\.json"):
        write_triton_repository(TritonRequest(tiny_bundle, tmp_path / "m"))
    assert list(tmp_path.iterdir()) == []


def test_without_a_copy(tmp_path: Path) -> None:
    write_triton_repository(TritonRequest("demo", tmp_path / "m", copy=False))
    config = read_config(tmp_path / "m")
    assert Path(config["parameters"]["bundle"]["string_value"]).is_absolute()
    assert not (tmp_path / "m" / "bundle").exists()


def test_linked_folders_are_copied(tmp_path: Path) -> None:
    """Such as engines on another disk."""
    bundle, out = tmp_path / "bundle", tmp_path / "m"
    shutil.copytree(bundle_path("demo"), bundle)
    (bundle / "weights").rename(tmp_path / "disk")
    (bundle / "weights").symlink_to(tmp_path / "disk")
    with pytest.raises(BadBundle, match="weights is a link that leaves"):
        write_triton_repository(TritonRequest(bundle, out))
    assert not out.exists()
    with allowing_links([tmp_path / "disk"]):
        made = write_triton_repository(TritonRequest(bundle, out))
    weights = out / "bundle" / "weights"
    assert not weights.is_symlink()
    assert {path.name for path in weights.iterdir()} == {path.name for path in (tmp_path / "disk").iterdir()}
    assert made.size_bytes == sum(path.stat().st_size for path in (out / "bundle").rglob("*") if path.is_file())
