"""The Kubernetes launcher: its manifests against the schemas, its requests through the real client.

The API server is a stand-in (see `kubernetes_api`). KubeRay's schemas are not part of the project:
FMCORTEX_KUBERAY_SCHEMAS names a folder with `RayJob.v1.schema.json`, the OpenAPI schema of v1 in
KubeRay's published CRD, as JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from crd_schema import strict
from kubernetes_api import ApiServer, api_server
from pydantic import ValidationError

from cluster import kubernetes, rayjob
from cluster.rayjob import KubernetesJob
from fmcortex.config import load_config
from fmcortex.errors import ConfigError, FmcortexError

SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
OVERRIDES = ["output=s3://bucket/run", "data.url=s3://bucket/mice", "tracking.uri=http://mlflow"]

FULL = KubernetesJob(
    name="mice-300",
    namespace="lab",
    image="registry.example/fmcortex:1",
    nodes=4,
    gpus_per_node=2,
    cpus_per_node=16,
    memory="128Gi",
    shared_memory="16Gi",
    secret="bucket",
    volume_claim="disk",
    service_account="trainer",
    node_selector={"gpu": "h100"},
    variables={"OMP_NUM_THREADS": "2", "MLFLOW_TRACKING_URI": "http://mlflow"},
    retries=0,
    deadline_seconds=3600,
    ttl_seconds=0,
)
NO_GPU = KubernetesJob(nodes=1, gpus_per_node=0, cpus_per_node=2, memory="4Gi")


def config(*overrides: str) -> dict[str, Any]:
    """A run's settings, as the launcher gets them."""
    return load_config(None, [*OVERRIDES, *overrides]).model_dump(mode="json")


def documents(job: KubernetesJob | None) -> list[dict[str, Any]]:
    """The manifests of a job, or those of the file as it stands."""
    return rayjob.read_template() if job is None else rayjob.render(job, config())


ALL = pytest.mark.parametrize(
    "job", [None, KubernetesJob(), FULL, NO_GPU], ids=["as it stands", "defaults", "full", "no GPU"]
)


@pytest.fixture(scope="module")
def ray_job_schema() -> Any:
    folder = os.environ.get("FMCORTEX_KUBERAY_SCHEMAS")
    if not folder:
        pytest.skip("FMCORTEX_KUBERAY_SCHEMAS names no folder with RayJob.v1.schema.json")
    import jsonschema

    schema = strict(json.loads((Path(folder) / "RayJob.v1.schema.json").read_text()))
    # The API server knows an object's metadata; a CRD does not repeat its schema.
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


@ALL
def test_the_rayjob_is_as_kuberay_defines_it(
    job: KubernetesJob | None, ray_job_schema: Any
) -> None:
    _, ray_job = documents(job)
    errors = [f"{e.json_path}: {e.message[:200]}" for e in ray_job_schema.iter_errors(ray_job)]
    assert not errors


def test_the_schema_finds_mistakes(ray_job_schema: Any) -> None:
    def mistakes(change: str, value: Any) -> list[str]:
        _, ray_job = documents(None)
        node = ray_job["spec"]
        *path, last = change.split("/")
        for key in path:
            node = node[int(key) if key.isdigit() else key]
        node[last] = value
        return [error.json_path for error in ray_job_schema.iter_errors(ray_job)]

    assert mistakes("entryPoint", "x")
    assert mistakes("backoffLimit", "3")
    assert mistakes("rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0)
    assert mistakes("rayClusterSpec/workerGroupSpecs/0/template/spec/nodeSelectors", {})
    assert mistakes("rayClusterSpec/authOptions/mode", "password")
    assert not mistakes("rayClusterSpec/workerGroupSpecs/0/template/spec/hostNetwork", True)


@ALL
def test_what_the_schema_leaves_free(job: KubernetesJob | None) -> None:
    config_map, ray_job = documents(job)
    spec = ray_job["spec"]
    assert spec["submissionMode"] in SUBMISSION_MODES
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    head, worker = cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]
    for pod in (head, worker):
        (container,) = pod["containers"]
        for sizes in container["resources"].values():
            assert all(isinstance(size, str) for size in sizes.values())
        assert all(isinstance(one["value"], str) for one in container["env"])
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    (run,) = [volume for volume in head["volumes"] if volume["name"] == "run"]
    assert run["configMap"]["name"] == config_map["metadata"]["name"]
    # One worker a GPU, or one a pod.
    words = shlex.split(spec["entrypoint"])
    gpus = int(worker["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 1))
    assert words[words.index("--workers") + 1] == str(workers["replicas"] * gpus)
    assert words[:4] == ["fmcortex", "pretrain", "--config", "/etc/fmcortex/run.yaml"]


@ALL
def test_the_core_kinds_are_valid(job: KubernetesJob | None) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    config_map, ray_job = documents(job)
    cluster = ray_job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **one["template"]}
        for one in templates
    ]
    for document in [config_map, *pods]:
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_the_settings_of_the_file_are_a_run(tmp_path: Path) -> None:
    config_map, _ = rayjob.read_template()
    file = tmp_path / "run.yaml"
    file.write_text(config_map["data"]["run.yaml"])
    assert load_config(file).output.startswith("s3://")


def test_everything_asked_for_is_in_the_manifest(tmp_path: Path) -> None:
    command = ["pretrain", "--set", "data.minutes=1"]
    config_map, ray_job = rayjob.render(FULL, config("cluster.cpus_per_worker=4"), command)
    assert config_map["metadata"]["name"] == ray_job["metadata"]["name"] == "mice-300"
    assert ray_job["metadata"]["namespace"] == "lab"
    spec = ray_job["spec"]
    assert shlex.split(spec["entrypoint"]) == [
        *("fmcortex", "pretrain", "--config", "/etc/fmcortex/run.yaml", "--workers", "8"),
        *command[1:],
    ]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 3600)
    assert spec["ttlSecondsAfterFinished"] == 0
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example/fmcortex:1"
    sizes = {"memory": "128Gi", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": {"cpu": "16", **sizes}, "limits": sizes}
    assert workers["rayStartParams"]["num-cpus"] == "16"
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables["OMP_NUM_THREADS"] == "2"
    assert len(variables) == len(container["env"])
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["serviceAccountName"] == "trainer"
    # The run's settings arrive as they were, with GPUs asked for by number.
    file = tmp_path / "run.yaml"
    file.write_text(config_map["data"]["run.yaml"])
    sent = load_config(file)
    assert sent == load_config(
        None, [*OVERRIDES, "cluster.cpus_per_worker=4", "cluster.gpus_per_worker=1"]
    )


def test_a_sweep(tmp_path: Path) -> None:
    from fmcortex.config import validated
    from fmcortex.scaling.sweep import SweepConfig

    base = {"data": {"url": "s3://bucket/mice"}, "tracking": {"uri": "http://mlflow"}}
    asked = {"output": "s3://bucket/sweep", "mice": [1, 2], "base": base}
    sweep = validated(SweepConfig, asked, "sweep").model_dump(mode="json")
    config_map, ray_job = rayjob.render(FULL, sweep, ["sweep"])
    assert ray_job["spec"]["entrypoint"] == "fmcortex sweep /etc/fmcortex/run.yaml --workers 8"
    sent = validated(SweepConfig, yaml.safe_load(config_map["data"]["run.yaml"]), "sent")
    assert sent.base == {**base, "cluster": {"gpus_per_worker": 1}}
    base["data"]["url"] = "mice"
    with pytest.raises(ConfigError, match=r"^data.url: mice is a local folder"):
        rayjob.render(FULL, {**sweep, "base": base}, ["sweep"])


def test_the_printed_yaml_is_the_manifest() -> None:
    made = rayjob.render(FULL, config())
    text = rayjob.to_yaml(made)
    assert list(yaml.safe_load_all(text)) == made
    assert "  run.yaml: |\n    output: s3://bucket/run\n" in text


@pytest.mark.parametrize(
    ("overrides", "job", "message"),
    [
        (["output=runs/x"], KubernetesJob(), r"^output: runs/x is a local folder"),
        (["data.url=/data/mice"], KubernetesJob(), r"^data.url: /data/mice is a local folder"),
        (["data.url=/data/mice"], FULL, r"a folder below /mnt/fmcortex"),
        (["data.url=/mnt/fmcortex/../x"], FULL, r"^data.url"),
        (["tracking.uri="], KubernetesJob(), r"^tracking.uri: name an MLflow server"),
    ],
)
def test_what_could_only_fail_in_the_pods_is_refused(
    overrides: list[str], job: KubernetesJob, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rayjob.render(job, config(*overrides))


def test_a_shared_volume_will_do() -> None:
    rayjob.render(FULL, config("data.url=/mnt/fmcortex/mice", "output=/mnt/fmcortex/run"))


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "Mice"},
        {"name": "x" * 48},
        {"namespace": "a b"},
        {"memory": "lots"},
        {"memory": "1Gi\n"},
        {"nodes": 0},
        {"replicas": 1},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KubernetesJob.model_validate(settings)


def test_a_bad_template_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rayjob.yaml"
    monkeypatch.setattr(rayjob, "TEMPLATE", file)
    with pytest.raises(ConfigError, match="run from a checkout, or pass --template"):
        rayjob.read_template()
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        rayjob.read_template(file)
    file.write_text("kind: RayJob\n---\nkind: Pod\n")
    with pytest.raises(ConfigError, match="expected a ConfigMap and a RayJob"):
        rayjob.read_template(file)
    file.write_text("kind: ConfigMap\nmetadata: {}\n---\nkind: RayJob\nmetadata: {}\n")
    with pytest.raises(ConfigError, match="the manifest lacks 'spec'"):
        rayjob.render(KubernetesJob(), config(), template=file)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """The stand-in, and KUBECONFIG naming it."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with api_server(tmp_path / "kubeconfig") as running:
        yield running


def test_submit_status_cancel(server: ApiServer) -> None:
    assert kubernetes.submit(FULL, config()) == "mice-300"
    config_map = server.objects["lab", "configmaps", "mice-300"]
    ray_job = server.objects["lab", "rayjobs", "mice-300"]
    # Nothing that was meant was lost on the way.
    sent_map, sent_job = rayjob.render(FULL, config())
    assert config_map["data"] == sent_map["data"]
    assert not kubernetes.missing_fields(sent_job, ray_job)
    (owner,) = config_map["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "name": "mice-300",
        "uid": ray_job["metadata"]["uid"],
    }
    assert kubernetes.status("mice-300", "lab") == "Submitted"
    ray_job["status"] = {"jobDeploymentStatus": "Failed", "message": "no such bucket"}
    assert kubernetes.status("mice-300", "lab") == "Failed: no such bucket"
    with pytest.raises(FmcortexError, match=r"^configmap mice-300: exists already; choose another"):
        kubernetes.submit(FULL, config())
    kubernetes.cancel("mice-300", "lab")
    assert ("lab", "rayjobs", "mice-300") not in server.objects
    assert server.requests[-1][2] == {"propagationPolicy": ["Background"]}
    with pytest.raises(FmcortexError, match=r'^rayjob mice-300: rayjobs "mice-300" not found'):
        kubernetes.status("mice-300", "lab")


def test_a_refused_job_leaves_nothing(server: ApiServer) -> None:
    def refused(message: str) -> None:
        with pytest.raises(FmcortexError, match=message):
            kubernetes.submit(FULL, config())
        assert not server.objects

    server.unknown = {"backoffLimit"}
    refused(r'^rayjob mice-300: strict decoding error: unknown field "spec.backoffLimit"')
    server.strict = False
    refused(r"^rayjob mice-300: this cluster's KubeRay does not know spec.backoffLimit; upgrade")
    server.kinds = {"configmaps"}
    refused(r"^rayjob mice-300: KubeRay is not installed in this cluster")
    server.kinds, server.forbidden = {"configmaps", "rayjobs"}, {"rayjobs"}
    refused(r"^rayjob mice-300: you are not allowed to do this in namespace lab: rayjobs is")
    server.forbidden, server.namespaces = set(), {"default"}
    refused(r'^configmap mice-300: namespaces "lab" not found')
    server.signed_in = False
    refused(r"^configmap mice-300: the Kubernetes API server does not accept your credentials")


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    with api_server(file):
        pass  # ended again: nobody listens
    with pytest.raises(FmcortexError, match=r"cannot reach the Kubernetes API server: .*refused"):
        kubernetes.status("x")
    with pytest.raises(FmcortexError, match=r"no access to a Kubernetes cluster .*set KUBECONFIG"):
        kubernetes.status("x", context="elsewhere")
    file.unlink()
    with pytest.raises(FmcortexError, match=r"no access to a Kubernetes cluster .*set KUBECONFIG"):
        kubernetes.cancel("x")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(FmcortexError, match=r"pip install -e '\.\[kubernetes\]'"):
        kubernetes.status("x")
