"""Submitting a command of fmcortex to Kubernetes as a RayJob, which KubeRay runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.rayjob import KubernetesJob, render
from fmcortex.errors import FmcortexError

#: Of KubeRay's custom resource.
RAY_JOB = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}


def submit(
    job: KubernetesJob,
    config: dict[str, Any],
    command: list[str] | None = None,
    template: str | Path | None = None,
) -> str:
    """Submit a command of fmcortex.

    Args:
        job, config, command, template: as `cluster.rayjob.render`.

    Returns:
        The name of the RayJob.

    Raises:
        ConfigError: as `cluster.rayjob.render`.
        FmcortexError: the `kubernetes` package or a kubeconfig is missing, or the cluster refuses
            the job; nothing of it is left there.
    """
    config_map, ray_job = render(job, config, command, template)
    where = {"name": job.name, "namespace": job.namespace}
    with _api(job.context) as (core, custom):
        # Strict: by default the API server drops fields that it does not know.
        strict = {"namespace": job.namespace, "field_validation": "Strict"}
        with _explained(f"configmap {job.name}", job.namespace):
            core.create_namespaced_config_map(body=config_map, **strict)
        try:
            with _explained(f"rayjob {job.name}", job.namespace):
                made = custom.create_namespaced_custom_object(body=ray_job, **RAY_JOB, **strict)
                dropped = missing_fields(ray_job, made)
                if dropped:  # by a server that is too old to be strict
                    custom.delete_namespaced_custom_object(**RAY_JOB, **where)
                    raise FmcortexError(
                        f"rayjob {job.name}: this cluster's KubeRay does not know "
                        f"{', '.join(dropped)}; upgrade it"
                    )
                owner = {key: made[key] for key in ("apiVersion", "kind")} | {
                    key: made["metadata"][key] for key in ("name", "uid")
                }
                # With this, Kubernetes removes the ConfigMap together with the job.
                owned = {"metadata": {"ownerReferences": [owner]}}
                core.patch_namespaced_config_map(body=owned, **where)
        except FmcortexError:
            with _explained(f"configmap {job.name}", job.namespace):
                core.delete_namespaced_config_map(**where)
            raise
    return job.name


def missing_fields(sent: Any, got: Any, path: str = "") -> list[str]:
    """The paths at which `got` lacks or changes what is in `sent`; more in `got` is no matter."""
    if isinstance(sent, dict) and isinstance(got, dict):
        return [
            lost
            for key, value in sent.items()
            for lost in missing_fields(value, got.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(sent, list) and isinstance(got, list) and len(sent) == len(got):
        return [
            lost
            for index, (one, other) in enumerate(zip(sent, got, strict=True))
            for lost in missing_fields(one, other, f"{path}[{index}]")
        ]
    return [] if sent == got else [path]


def status(name: str, namespace: str = "default", context: str | None = None) -> str:
    """What KubeRay says of a job, such as Initializing, Running, Complete or Failed: why.

    Raises:
        FmcortexError: there is no such job, or the cluster cannot be asked.
    """
    with _api(context) as (_, custom), _explained(f"rayjob {name}", namespace):
        found = custom.get_namespaced_custom_object(**RAY_JOB, namespace=namespace, name=name)
    told = found.get("status") or {}
    state = told.get("jobDeploymentStatus") or "Submitted"
    return f"{state}: {told['message']}" if told.get("message") else str(state)


def cancel(name: str, namespace: str = "default", context: str | None = None) -> None:
    """Delete a job, with its Ray cluster and its ConfigMap.

    Raises:
        FmcortexError: there is no such job, or the cluster refuses.
    """
    with _api(context) as (_, custom), _explained(f"rayjob {name}", namespace):
        custom.delete_namespaced_custom_object(
            **RAY_JOB, namespace=namespace, name=name, propagation_policy="Background"
        )


@contextmanager
def _api(context: str | None) -> Iterator[tuple[Any, Any]]:
    """The core and the custom API of the cluster that the kubeconfig, or the own pod, names."""
    try:
        import kubernetes
    except ImportError as error:
        raise FmcortexError(
            "the kubernetes package is missing: pip install -e '.[kubernetes]' in the checkout"
        ) from error
    configuration = kubernetes.client.Configuration()
    try:
        try:
            kubernetes.config.load_kube_config(
                config_file=os.environ.get("KUBECONFIG") or None,
                context=context,
                client_configuration=configuration,
            )
        except kubernetes.config.ConfigException:
            if context:
                raise
            kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException as error:
        raise FmcortexError(
            f"no access to a Kubernetes cluster ({error}); set KUBECONFIG or make ~/.kube/config"
        ) from error
    configuration.retries = 0  # a refused connection is for the user to judge
    with kubernetes.client.ApiClient(configuration) as client:
        yield kubernetes.client.CoreV1Api(client), kubernetes.client.CustomObjectsApi(client)


@contextmanager
def _explained(what: str, namespace: str) -> Iterator[None]:
    """Turn the client's errors of the block into one line each."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise FmcortexError(f"{what}: {_reason(error, namespace)}") from error
    except HTTPError as error:
        # urllib3 wraps the reason in the addresses of its objects.
        why = str(getattr(error, "reason", error)).rpartition(": ")[2]
        raise FmcortexError(f"{what}: cannot reach the Kubernetes API server: {why}") from error


def _reason(error: Any, namespace: str) -> str:
    try:
        message = " ".join(str(json.loads(error.body)["message"]).split())
    except (TypeError, ValueError, KeyError):
        message = ""
    if error.status == 401:
        return "the Kubernetes API server does not accept your credentials"
    if error.status == 403:
        return f"you are not allowed to do this in namespace {namespace}: {message}"
    if error.status == 404 and not message:
        # An API that there is not is answered in plain text.
        return "KubeRay is not installed in this cluster (it has no ray.io/v1 RayJob)"
    if error.status == 409:
        return "exists already; choose another name, or delete that job first"
    return message or f"the Kubernetes API server answered {error.status} {error.reason}"
