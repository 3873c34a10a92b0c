"""--track mlflow, with the real client and a real store: its SQLite database."""

import logging
from pathlib import Path
from typing import Any

import pytest

from lchp import TrainConfig
from lchp.config import to_flat
from lchp.evaluation.predictions import read_predictions
from lchp.files import runs
from lchp.tracking.feed import history
from lchp.training.run import train


def runs_of(client: Any, experiment: str) -> list[Any]:
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def points(client: Any, run: Any, folder: Path) -> dict[tuple[str, int], float]:
    """Every point of every curve over epochs; fails where one is there twice."""
    found: dict[tuple[str, int], float] = {}
    for name in {name for name, _ in expected(folder)}:
        for point in client.get_metric_history(run.info.run_id, name):
            assert (name, point.step) not in found
            found[name, point.step] = point.value
    return found


def expected(run: Path) -> dict[tuple[str, int], float]:
    return {
        (f"{line['stage']}/{name}", line["epoch"]): value
        for line in history(run)
        for name, value in line.items()
        if name not in ("stage", "epoch", "epochs")
    }


def test_a_run_that_is_resumed_is_one_run_with_all_of_it(
    mlflow_client: Any, squares_config: TrainConfig, squares_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mine"
    train(squares_config, output=output, stage="init", track=["mlflow"])
    (run,) = runs_of(mlflow_client, tmp_path.name)
    assert run.info.status == "FINISHED"
    assert points(mlflow_client, run, output) == expected(output)
    train(squares_config, output=output, resume=True, track=["mlflow"])
    (run,) = runs_of(mlflow_client, tmp_path.name)
    assert (run.info.run_name, run.info.status, run.data.tags["method"]) == ("mine", "FINISHED", "LCHP")
    assert run.info.run_id == runs.read_json(output / runs.TRACKERS / "mlflow.json")["run"]
    assert run.data.params.keys() == to_flat(squares_config).keys()
    assert run.data.params["initialization.delta"] == str(squares_config.initialization.delta)
    assert points(mlflow_client, run, output) == expected(output)
    gt_known = runs.read_summary(output)["results"]["lchp_r"]["center_crop"]["gt_known"]
    assert run.data.metrics["results/lchp_r/center_crop/gt_known"] == gt_known
    names = {artifact.path for artifact in mlflow_client.list_artifacts(run.info.run_id)}
    assert names >= {runs.CONFIG, runs.METRICS, runs.SUMMARY, runs.ENVIRONMENT}
    images = [a.path for a in mlflow_client.list_artifacts(run.info.run_id, "images") if a.path.endswith(".png")]
    assert [sum(stage in path for path in images) for stage in ("initialization", "regression", "refinement")] == [
        1
    ] * 3
    # and no digit is another
    assert read_predictions(output).equals(read_predictions(squares_run))
    assert runs.read_summary(output) == runs.read_summary(squares_run)
    assert runs.read_config(output) == squares_config


def test_a_server_that_refuses_is_one_warning_and_gets_all_when_the_run_is_resumed(
    mlflow_client: Any,
    mlflow_uri: str,
    squares_config: TrainConfig,
    squares_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "mine"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        train(squares_config, output=output, track=["mlflow"])
    (record,) = caplog.records
    assert record.getMessage().startswith("--track mlflow: ")
    assert "127.0.0.1" in record.getMessage()
    assert read_predictions(output).equals(read_predictions(squares_run))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    train(squares_config, output=output, resume=True, track=["mlflow"])
    (run,) = runs_of(mlflow_client, tmp_path.name)
    assert points(mlflow_client, run, output) == expected(output)
