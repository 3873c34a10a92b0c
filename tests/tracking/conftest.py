"""MLflow's SQLite database, which takes seconds to make: one for all tests."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def mlflow_client(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    client = pytest.importorskip("mlflow", reason="no mlflow: pip install mlflow-skinny").MlflowClient(mlflow_uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return client
