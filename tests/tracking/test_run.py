"""What a run tells MLflow is there for others to read."""

from __future__ import annotations

from pathlib import Path

from fmcortex.config import load_config
from fmcortex.tracking.run import client, start_run


def test_secrets_of_urls_stay_out_of_the_store(tmp_path: Path) -> None:
    words = [
        "data.url=https://ann:HIDDEN@host/data?token=HIDDEN&part=1",
        f"output={tmp_path}/run",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow/mlflow.db",
    ]
    config = load_config(None, words)
    run = start_run(config, "pretrain", {"source": "s3://HIDDEN:HIDDEN@b/x"})
    run.end()
    told = client(run.uri).get_run(run.run_id).data
    assert told.params["data.url"] == "https://host/data?token=...&part=1"
    assert told.tags["source"] == "s3://b/x"
    files = [path for path in (tmp_path / "mlflow").rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files)
    assert not [path for path in files if b"HIDDEN" in path.read_bytes()]
    assert config.data.url == words[0].removeprefix("data.url=")
