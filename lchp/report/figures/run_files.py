"""What belongs to a run of the records: its config, its stage 1, its metrics."""

from pathlib import Path
from typing import Any

import pandas as pd

from lchp import runs
from lchp.config import FIELDS, TrainConfig, override
from lchp.errors import RunError
from lchp.runs import stage1_folder


def config_of(row: pd.Series) -> TrainConfig:
    """The config of a row of `Records.runs`, with what fields that its record lacks meant when it was written."""
    return override(TrainConfig(), {name: row[name] for name in FIELDS})


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of both stages, stage 1's first. Raises RunError where there are none."""
    first = stage1_folder(run)
    lines = ([] if first == run else runs.read_metrics(first)) + runs.read_metrics(run)
    if not lines:
        raise RunError(f"{run / runs.METRICS}: no epoch in it")
    return lines
