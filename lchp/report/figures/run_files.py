"""What belongs to a run of the records: its config, its stage 1, its metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lchp import runs
from lchp.config import TrainConfig, field_types, override
from lchp.errors import RunError
from lchp.runs import ENVIRONMENT


def config_of(row: pd.Series) -> TrainConfig:
    """The config of a row of `Records.runs`, with what fields that its record lacks meant when it was written."""
    values = {name: v.item() if isinstance(v := row[name], np.generic) else v for name in field_types()}
    return override(TrainConfig(), values)


def stage1_folder(run: Path) -> Path:
    """The run folder of a run's stage 1: its own, or the one that a run of stage 2 alone started from.

    environment.json names that by the path it had. A sweep's storage may have been moved since: the stage 1 in the same
    storage comes first.
    """
    stage1 = runs.read_json(run / ENVIRONMENT).get("stage1")
    if stage1 is None:
        return run
    there = Path(stage1["checkpoint"]).parents[1]
    beside = run.absolute().parents[1] / "stage1" / there.name
    return beside if beside.is_dir() else there


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of both stages, stage 1's first. Raises RunError where there are none."""
    first = stage1_folder(run)
    lines = ([] if first == run else runs.read_metrics(first)) + runs.read_metrics(run)
    if not lines:
        raise RunError(f"{run / runs.METRICS}: no epoch in it")
    return lines
