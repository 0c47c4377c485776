"""The manifests of a job on Kubernetes: a RayJob, and a ConfigMap with the run's settings."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cluster.secrets import refuse_secret_variables, refuse_secret_words, refuse_secrets
from fmcortex import storage, yaml_text
from fmcortex.errors import ConfigError

#: The manifest, which lies beside the packages in a checkout.
TEMPLATE = Path(__file__).resolve().parent.parent / "k8s" / "rayjob.yaml"
#: Where a shared volume is mounted.
MOUNT = "/mnt/fmcortex"

_CONFIG_FILE = "/etc/fmcortex/run.yaml"
_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
_QUANTITY = r"^\d+(\.\d+)?([KMGTPE]i?|[mk])?$"


class KubernetesJob(BaseModel):
    """What to ask Kubernetes for; what is None is left as it is in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # KubeRay refuses longer names, as it appends to them.
    name: str = Field("fmcortex-pretrain", pattern=_LABEL, max_length=47, description="its name")
    namespace: str = Field("default", pattern=_LABEL, max_length=63)
    context: str | None = Field(None, description="of the kubeconfig; null for the current one")
    image: str | None = Field(None, min_length=1, description="image with fmcortex and Ray")
    nodes: int | None = Field(None, ge=1, le=65_536, description="worker pods")
    gpus_per_node: int | None = Field(None, ge=0, le=1024, description="GPUs of a worker pod")
    cpus_per_node: int | None = Field(None, ge=1, le=4096, description="CPUs of a worker pod")
    memory: str | None = Field(None, pattern=_QUANTITY, description="of a worker pod, as 512Gi")
    shared_memory: str | None = Field(None, pattern=_QUANTITY, description="/dev/shm of a worker")
    secret: str | None = Field(
        None, pattern=_LABEL, description="Secret with the object store's credentials as variables"
    )
    volume_claim: str | None = Field(
        None, pattern=_LABEL, description=f"shared volume claim, to be mounted at {MOUNT}"
    )
    service_account: str | None = Field(None, pattern=_LABEL, description="of the pods")
    node_selector: dict[str, str] = Field(default_factory=dict, description="of the worker pods")
    variables: dict[str, str] = Field(default_factory=dict, description="environment of the pods")
    retries: int | None = Field(
        None, ge=0, le=1000, description="of the whole job, each on a new cluster"
    )
    deadline_seconds: int | None = Field(
        None, ge=1, lt=1 << 31, description="time limit of the whole job"
    )
    ttl_seconds: int | None = Field(
        None, ge=0, lt=1 << 31, description="how long pods stay after the end"
    )


def read_template(template: str | Path | None = None) -> list[dict[str, Any]]:
    """The manifest that jobs are made from: a ConfigMap with the run's settings, and a RayJob.

    Args:
        template: another one than the project's.

    Raises:
        ConfigError: it cannot be read, or does not hold these two.
    """
    path = Path(template) if template else TEMPLATE
    try:
        documents = yaml_text.load_all(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        hint = "" if template else "; run from a checkout, or pass --template"
        raise ConfigError(f"{path}: cannot read the manifest{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {yaml_text.problem(error)}") from error
    kinds = [one.get("kind") if isinstance(one, dict) else None for one in documents]
    if sorted(map(str, kinds)) != ["ConfigMap", "RayJob"]:
        raise ConfigError(f"{path}: expected a ConfigMap and a RayJob, found {kinds}")
    # Aliases of the YAML would be one object in several places.
    return [json.loads(json.dumps(one)) for one in documents]


def render(
    job: KubernetesJob,
    config: dict[str, Any],
    command: list[str] | None = None,
    template: str | Path | None = None,
) -> list[dict[str, Any]]:
    """The manifests of a job.

    Args:
        job: what to ask Kubernetes for.
        config: of the run, as `RunConfig.model_dump(mode="json")`, or of the sweep; the command's
            configuration file.
        command: of fmcortex, with further arguments: ["pretrain"], also if None, or ["sweep"].
        template: another manifest than the project's.

    Returns:
        The ConfigMap and the RayJob.

    Raises:
        ConfigError: the template does not do, the pods could not reach what `config` names, or a
            password is in it.
    """
    command = command or ["pretrain"]
    advice = (
        "leave it out, and put MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or the store's own variables into a Secret "
        "(--job secret=NAME)"
    )
    refuse_secrets(config, "the ConfigMap", advice)
    refuse_secret_variables(job.variables, "the RayJob", advice)
    refuse_secret_words(command, "the RayJob", advice)
    _check_urls(job, config)
    documents = read_template(template)
    config_map = next(one for one in documents if one["kind"] == "ConfigMap")
    ray_job = next(one for one in documents if one["kind"] == "RayJob")
    try:
        _fill(job, config_map, ray_job, config, command)
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{template or TEMPLATE}: the manifest lacks {error}") from error
    return [config_map, ray_job]


def _check_urls(job: KubernetesJob, config: dict[str, Any]) -> None:
    """Refuse what could only fail in the pods: folders that no other pod sees, no MLflow server."""
    run = _run_of(config)
    urls = {"output": config.get("output"), "data.url": _section(run, "data").get("url")}
    for field, url in urls.items():
        if not isinstance(url, str) or not url or not storage.is_local(url):
            continue
        path = os.path.normpath(url)
        if not job.volume_claim or not path.startswith(f"{MOUNT}/"):
            raise ConfigError(
                f"{field}: {url} is a local folder, which pods do not share; name an object store, "
                f"or a volume claim and a folder below {MOUNT}"
            )
    remote = isinstance(config.get("output"), str) and not storage.is_local(config["output"])
    told = _section(run, "tracking").get("uri") or "MLFLOW_TRACKING_URI" in job.variables
    # A Secret may have it; that is the place for one with a password.
    if remote and not told and not job.secret:
        raise ConfigError(
            "tracking.uri: name an MLflow server, as the output is in object storage; one with a "
            "password as MLFLOW_TRACKING_URI in a Secret (--job secret=NAME)"
        )


def _run_of(config: dict[str, Any]) -> dict[str, Any]:
    """The run's part of a configuration: that of a sweep has it in `base`."""
    base = config.get("base")
    return base if isinstance(base, dict) else config


def _section(run: dict[str, Any], name: str) -> dict[str, Any]:
    section = run.get(name)
    return section if isinstance(section, dict) else {}


def _fill(
    job: KubernetesJob,
    config_map: dict[str, Any],
    ray_job: dict[str, Any],
    config: dict[str, Any],
    command: list[str],
) -> None:
    for one in (config_map, ray_job):
        one["metadata"] |= {"name": job.name, "namespace": job.namespace}
    spec = ray_job["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    head_pod, pod = cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]
    for volume in head_pod["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = job.name
    for one in (head_pod, pod):
        _fill_pod(job, one)
    limits = {
        "backoffLimit": job.retries,
        "activeDeadlineSeconds": job.deadline_seconds,
        "ttlSecondsAfterFinished": job.ttl_seconds,
    }
    spec |= {key: value for key, value in limits.items() if value is not None}
    if job.nodes:
        workers |= dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), job.nodes)
    gpus = _fill_worker(job, workers, pod)
    run = _run_of(config)
    if gpus and _section(run, "cluster").get("gpus_per_worker") is None:
        # Not left to how many GPUs have joined at the moment when the command looks.
        run = {**run, "cluster": {**_section(run, "cluster"), "gpus_per_worker": 1}}
        config = {**config, "base": run} if "base" in config else run
    config_map["data"] = {"run.yaml": yaml.safe_dump(config, sort_keys=False)}
    words = ["fmcortex", command[0]]
    words += [_CONFIG_FILE] if command[0] == "sweep" else ["--config", _CONFIG_FILE]
    if not any(word == "--workers" or word.startswith("--workers=") for word in command):
        words += ["--workers", str(workers["replicas"] * max(gpus, 1))]
    spec["entrypoint"] = shlex.join(words + command[1:])


def _fill_pod(job: KubernetesJob, pod: dict[str, Any]) -> None:
    container = pod["containers"][0]
    if job.image:
        container["image"] = job.image
    if job.secret:
        # Named by the user, so its absence is an error.
        container["envFrom"] = [{"secretRef": {"name": job.secret}}]
    names = set(job.variables)
    container["env"] = [one for one in container.get("env", []) if one["name"] not in names] + [
        {"name": name, "value": value} for name, value in job.variables.items()
    ]
    if job.service_account:
        pod["serviceAccountName"] = job.service_account
    if job.volume_claim:
        claim = {"claimName": job.volume_claim}
        pod["volumes"].append({"name": "shared", "persistentVolumeClaim": claim})
        container["volumeMounts"].append({"name": "shared", "mountPath": MOUNT})


def _fill_worker(job: KubernetesJob, workers: dict[str, Any], pod: dict[str, Any]) -> int:
    """Set the size of a worker pod; returns its GPUs."""
    resources = pod["containers"][0]["resources"]
    requests, limits = resources["requests"], resources["limits"]
    if job.cpus_per_node:
        requests["cpu"] = workers["rayStartParams"]["num-cpus"] = str(job.cpus_per_node)
    if job.memory:
        requests["memory"] = limits["memory"] = job.memory
    for sizes in (requests, limits):
        if job.gpus_per_node:
            sizes["nvidia.com/gpu"] = str(job.gpus_per_node)
        elif job.gpus_per_node == 0:
            sizes.pop("nvidia.com/gpu", None)
    if job.shared_memory:
        for volume in pod["volumes"]:
            if volume["name"] == "shm":
                volume["emptyDir"]["sizeLimit"] = job.shared_memory
    if job.node_selector:
        pod["nodeSelector"] = dict(job.node_selector)
    return int(limits.get("nvidia.com/gpu", 0))


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, so that the run's settings stay readable."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """The manifests as one YAML file, for `kubectl apply -f -`."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, explicit_start=True)
