"""MLflow, by its own client; MLFLOW_TRACKING_URI and the client's other settings say where the server is."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lchp import __version__
from lchp.config import TrainConfig, show, to_flat
from lchp.errors import ConfigError, reason
from lchp.tracking.feed import Ending, Picture, Subject, scalars

METRICS, PARAMS = 1000, 100
"""What a request may hold."""
STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def require() -> None:
    """Raises ConfigError where the library is missing."""
    # the client's own 7 tries take minutes each; what is missing is sent with the next epoch
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        import mlflow  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("--track mlflow needs its client: pip install mlflow-skinny, or mlflow") from None
    except Exception as error:
        raise ConfigError(f"--track mlflow: the library cannot be imported ({reason(error)})") from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table of a new database
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # and of every try


def reach(_place: Path, group: str) -> None:
    """Raises what the client raises where the server cannot be reached."""
    _experiment(_client(), group)


def open_run(subject: Subject, known: str | None) -> "MlflowRun":
    """The run `known`, where it is there, else a new one of the experiment $MLFLOW_EXPERIMENT_NAME, by default the
    sweep's name, or `lchp`."""
    client = _client()
    run = None if known is None else _known(client, known)
    if new := run is None:
        tags = {"lchp": __version__, **subject.tags} | ({} if subject.group is None else {"sweep": subject.group})
        run = client.create_run(_experiment(client, subject.group), run_name=subject.name, tags=tags)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
    there = MlflowRun(client, run.info.run_id, new)
    there.fields(subject.config, run.data.params)
    return there


def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


def _experiment(client: Any, group: str | None) -> str:
    """Its id. Two programs may make it at once."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or group or "lchp"
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return found.experiment_id


def _known(client: Any, run_id: str) -> Any:
    """A run; None where the server has none of that id, or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


class MlflowRun:
    """A run of MLflow."""

    def __init__(self, client: Any, run_id: str, new: bool) -> None:
        self.id, self.new, self._client = run_id, new, client

    def fields(self, config: TrainConfig, there: Mapping[str, str]) -> None:
        """The config as parameters, but those that are there: they cannot change, and the data may have moved."""
        from mlflow.entities import Param

        flat = {name: show(v) if isinstance(v, tuple) else str(v) for name, v in to_flat(config).items()}
        new = [Param(name, value) for name, value in flat.items() if name not in there]
        for i in range(0, len(new), PARAMS):
            self._client.log_batch(self.id, params=new[i : i + PARAMS])

    def epochs(self, lines: Sequence[Mapping[str, Any]], _before: int) -> None:
        """Metrics over the epochs of their link."""
        self._metrics([(name, value, line["epoch"]) for line in lines for name, value in scalars(line).items()])

    def picture(self, stage: str, picture: Picture, _before: int) -> None:
        """An image."""
        self._client.log_image(self.id, picture.pixels, key=f"{stage}/boxes", step=picture.epoch, synchronous=True)

    def summary(self, figures: Mapping[str, float], files: Sequence[Path]) -> None:
        """The figures as metrics, the files as artifacts."""
        self._metrics([(name, value, 0) for name, value in figures.items()])
        for file in files:
            self._client.log_artifact(self.id, str(file))

    def close(self, ending: Ending) -> None:
        """Sets its status."""
        self._client.set_terminated(self.id, STATUS[ending])

    def _metrics(self, values: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        found = [Metric(name, value, now, step) for name, value, step in values]
        for i in range(0, len(found), METRICS):
            self._client.log_batch(self.id, metrics=found[i : i + METRICS])
