"""The manifest as kubectl reads it; no cluster is needed to build it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster import rayjob

pytestmark = pytest.mark.system


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_builds_the_manifest(tmp_path: Path) -> None:
    shutil.copy(rayjob.TEMPLATE, tmp_path / "rayjob.yaml")
    (tmp_path / "kustomization.yaml").write_text("resources: [rayjob.yaml]\nnamespace: lab\n")
    built = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
    )
    config_map, ray_job = sorted(yaml.safe_load_all(built.stdout), key=lambda one: one["kind"])
    expected_map, expected_job = rayjob.read_template()
    assert config_map["data"] == expected_map["data"]
    assert ray_job["spec"] == expected_job["spec"]
    assert ray_job["metadata"]["namespace"] == "lab"
