"""Passwords stay out of what is submitted, and the refusal does not repeat them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.rayjob import KubernetesJob, render, to_yaml
from cluster.secrets import refuse_secret_words
from cluster.slurm import SlurmJob
from cluster.slurm import render as slurm_script
from fmcortex.config import load_config
from fmcortex.errors import ConfigError, has_secret
from fmcortex.model.sizes import preset
from fmcortex.training.checkpoint import CheckpointManifest, write_manifest

SECRETS = (
    "http://me:hunter2@mlflow:5000",
    "postgresql://me:hunter2@db/mlflow",
    "https://host/data?X-Amz-Signature=hunter2",
    "https://host/data?part=1&api_key=hunter2",
)
PLAIN = (
    "http://mlflow:5000",
    "s3://bucket/runs",
    "https://me@host/x",
    "sqlite:////a/b.db",
    "a:b@c",
)


@pytest.mark.parametrize("url", SECRETS)
def test_secrets_in_urls(url: str) -> None:
    assert has_secret(url)
    assert has_secret(f"tracking.uri={url}")


@pytest.mark.parametrize("url", PLAIN)
def test_urls_without_secrets(url: str) -> None:
    assert not has_secret(url)


def config(**fields: str) -> dict[str, Any]:
    given = {"output": "s3://b/run", "data.url": "s3://b/m", "tracking.uri": "http://mlflow:5000"}
    words = [f"{key}={value}" for key, value in {**given, **fields}.items()]
    return load_config(None, words).model_dump(mode="json")


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("field", ["tracking.uri", "data.url"])
def test_kubernetes_refuses_them(field: str, url: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: has a password or key .* Secret") as caught:
        render(KubernetesJob(), config(**{field: url}))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    base = {"output": "s3://b/run", "base": config(**{field: url})}
    with pytest.raises(ConfigError, match=rf"base.{field}: has a password"):
        render(KubernetesJob(), base, ["sweep"])
    with pytest.raises(ConfigError, match=rf"{field}: has a password"):
        render(KubernetesJob(), config(), ["pretrain", "--set", f"{field}={url}"])


def test_variables_with_secrets_are_refused() -> None:
    for name, value in (
        ("MLFLOW_TRACKING_PASSWORD", "hunter2"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("HF_TOKEN", "hunter2"),
        ("MLFLOW_TRACKING_URI", SECRETS[0]),
    ):
        variables = {name: value}
        for make in (
            lambda: render(KubernetesJob(variables=variables), config()),  # noqa: B023
            lambda: slurm_script(SlurmJob(variables=variables), ["pretrain"]),  # noqa: B023
        ):
            with pytest.raises(ConfigError, match=f"variables.{name}: has a password") as caught:
                make()
            assert "hunter2" not in str(caught.value)
    fine = {"OMP_NUM_THREADS": "4", "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token"}
    assert "/var/run/token" in to_yaml(render(KubernetesJob(variables=fine), config()))
    assert "/var/run/token" in slurm_script(SlurmJob(variables=fine), ["pretrain"])


def test_a_store_with_a_password_is_named_in_a_secret() -> None:
    given = config(**{"tracking.uri": ""})
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI in a Secret"):
        render(KubernetesJob(), given)
    shown = to_yaml(render(KubernetesJob(secret="mine"), given))
    assert "name: mine" in shown


@pytest.mark.parametrize("url", SECRETS)
def test_slurm_refuses_them(url: str) -> None:
    for words, field in (
        (["--set", f"tracking.uri={url}"], "tracking.uri"),
        (["--output", url], "--output"),
        ([f"--output={url}"], "--output"),
    ):
        with pytest.raises(ConfigError, match=f"^{field}: has a password or key") as caught:
            slurm_script(SlurmJob(), ["pretrain", *words])
        assert "hunter2" not in str(caught.value)
    refuse_secret_words(["pretrain", "--output", *PLAIN], "x", "y")


def test_checkpoints_do_not_have_the_stores_password(tmp_path: Path) -> None:
    manifest = CheckpointManifest(
        step=1,
        model=preset("tiny"),
        units={},
        files={},
        config=config(**{"tracking.uri": SECRETS[0]}),
    )
    write_manifest(str(tmp_path), manifest)
    content = (tmp_path / "manifest.json").read_text()
    assert "hunter2" not in content
    assert json.loads(content)["config"]["tracking"]["uri"] == "http://mlflow:5000"
