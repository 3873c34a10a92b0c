"""What belongs to a run of the records: its config, its stage 1, its metrics."""

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from lchp.config import FIELDS, TrainConfig, override
from lchp.errors import RunError
from lchp.files import runs
from lchp.files.runs import KINDS, STAGES, link_folders


def config_of(row: pd.Series) -> TrainConfig:
    """The config of a row of `Records.runs`, with what fields that its record lacks meant when it was written."""
    return override(TrainConfig(), {name: row[name] for name in FIELDS})


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of all links, in their order. Raises RunError where there are none."""
    of_stage: dict[str, list[dict[str, Any]]] = {}
    earlier = dict.fromkeys(folder for folder in link_folders(run, KINDS).values() if folder != run)
    for folder in (*earlier, run):  # what a run trained itself stands in the place of what it began from had
        lines = sorted(runs.read_metrics(folder), key=itemgetter("stage"))
        of_stage |= {stage: list(group) for stage, group in groupby(lines, itemgetter("stage"))}
    lines = [line for stage in STAGES.values() for line in of_stage.get(stage, ())]
    if not lines:
        raise RunError(f"{run / runs.METRICS}: no epoch in it")
    return lines
