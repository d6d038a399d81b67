"""The manifests of examples/kubernetes: valid by the schemas of Kubernetes, and true of the server."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from sdrpn.cli.main import build_parser
from sdrpn.workflows.memory_plan import plan_memory
from tests.sources import ROOT

validator = pytest.importorskip("kubernetes_validate")
FOLDER = ROOT / "examples" / "kubernetes"
# The oldest that is still common, and the newest that the checker has.
VERSIONS = ("1.30", "1.35")


def rendered(*options: str) -> list[dict[str, Any]]:
    command = [
        sys.executable,
        str(FOLDER / "render.py"),
        "demo",
        "--image",
        "sdrpn:1",
        "--archive",
        "a.sdrpn",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=[(), ("--target", "l4")], ids=["cpu", "gpu"])
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(*request.param)


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_accept_them(manifests: list[dict[str, Any]], version: str) -> None:
    kinds = {manifest["kind"] for manifest in manifests}
    assert kinds >= {"Deployment", "Service", "PersistentVolumeClaim", "HorizontalPodAutoscaler"}
    for manifest in manifests:
        validator.validate(manifest, version, strict=True)


def test_the_checker_sees_mistakes(manifests: list[dict[str, Any]]) -> None:
    broken = of_kind(manifests, "Deployment")
    container = broken["spec"]["template"]["spec"]["containers"][0]
    broken = {**broken, "spec": {**broken["spec"], "replica": 1}}
    assert container
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, VERSIONS[0], strict=True)


def test_selectors_meet_the_pods(manifests: list[dict[str, Any]]) -> None:
    labels = of_kind(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind(manifests, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(manifests, "Service")["spec"]["selector"] == labels
    assert of_kind(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


def test_every_volume_is_mounted_and_there(manifests: list[dict[str, Any]]) -> None:
    spec = pod(manifests)
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounted = {
        mount["name"]
        for part in ("containers", "initContainers")
        for container in spec[part]
        for mount in container["volumeMounts"]
    }
    assert mounted == volumes
    claim = of_kind(manifests, "PersistentVolumeClaim")["metadata"]["name"]
    assert any(volume.get("persistentVolumeClaim", {}).get("claimName") == claim for volume in spec["volumes"])


def test_the_command_line_understands_the_arguments(manifests: list[dict[str, Any]]) -> None:
    for part in ("containers", "initContainers"):
        for container in pod(manifests)[part]:
            build_parser().read(container["args"])


def test_probes_ask_what_the_server_has(manifests: list[dict[str, Any]]) -> None:
    from sdrpn.runtime.server import app

    (container,) = pod(manifests)["containers"]
    source = (ROOT / "runtime" / "server" / "app.py").read_text()
    assert app
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert f'"{get["path"]}"' in source
        assert get["port"] == container["ports"][0]["name"]


def test_the_autoscaler_uses_what_the_server_counts(manifests: list[dict[str, Any]]) -> None:
    rules = yaml.safe_load((FOLDER / "adapter.yaml").read_text())["rules"]["custom"]
    given = {rule["name"]["as"]: re.search(r'__name__="([^"]+)"', rule["seriesQuery"]) for rule in rules}
    metrics = [
        metric["pods"]["metric"]["name"] for metric in of_kind(manifests, "HorizontalPodAutoscaler")["spec"]["metrics"]
    ]
    assert set(metrics) <= set(given)
    counted = (ROOT / "runtime" / "server" / "metrics.py").read_text()
    for found in given.values():
        assert found is not None
        assert found.group(1) in counted


def test_memory_is_what_plan_says() -> None:
    (container,) = pod(rendered("--max-batch", "2"))["containers"]
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    planned = plan_memory("demo", batch=2).needs.total_bytes
    assert planned < memory < planned + 2_000_000_000
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


def test_a_gpu_is_asked_for() -> None:
    spec = pod(rendered("--target", "l4"))
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in pod(rendered())["containers"][0]["resources"]["limits"]


def test_pods_have_no_rights(manifests: list[dict[str, Any]]) -> None:
    """What the Pod Security Standard "restricted" asks for."""
    spec = pod(manifests)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in (*spec["containers"], *spec["initContainers"]):
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
