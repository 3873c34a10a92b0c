"""A sweep's cells, and the trainings they need: each different one once."""

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lchp.compared import epochs_after_stage1, stage1_of
from lchp.config import DataConfig, EvaluationConfig, TrainConfig, flatten, from_dict, override, to_dict, to_flat
from lchp.data import fingerprint, load
from lchp.devices import resolve_device, resolve_precision
from lchp.errors import ConfigError
from lchp.runs import digest
from lchp.train import INITIALIZATION, initialization_identity, refinement_identity

Overrides = dict[str, Any]
"""Dotted field name -> value, over the sweep's base config."""

MAX_CELLS = 10_000
"""Cells of a sweep, and trials of a search: all are made and recorded before the first is trained, at 1 ms each."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep varies: `cells` are overrides of `base`; each runs for each of `seeds`. `name` names its records."""

    name: str
    base: TrainConfig
    cells: Sequence[Overrides]
    seeds: Sequence[int] = (0,)


@dataclass(frozen=True)
class Cell:
    """One config of a sweep (`base` with `overrides`), the keys of its two results, and the fingerprint of the data set
    that these were made of."""

    base: TrainConfig
    overrides: Overrides
    config: TrainConfig
    stage1: str
    stage2: str
    data: str


@dataclass(frozen=True)
class Job:
    """One training: stage 1, or stage 2 from the stage-1 result `source`; without a source (no sharing) stage 2 trains
    its own stage 1 first. `config` is complete; `data`: the fingerprint of the data set that its key was made of."""

    stage: int
    key: str
    config: TrainConfig
    source: str | None = None
    data: str | None = None

    @property
    def name(self) -> str:
        """Unique among a sweep's jobs; the name of its work folder."""
        return f"stage{self.stage}-{self.key}"

    @property
    def epochs(self) -> int:
        """Epochs to train, over both stages where it trains both."""
        return sum(self.trainings.values())

    def finished_epochs(self, stage: str, epoch: int) -> int:
        """Epochs that are done when `stage` has finished its `epoch`."""
        names = list(self.trainings)
        return epoch + sum(self.trainings[name] for name in names[: names.index(stage)])

    @property
    def trainings(self) -> dict[str, int]:
        """Epochs of each training, by the name under which metrics.jsonl has it, in order."""
        first = {INITIALIZATION: self.config.initialization.epochs}
        if self.stage == 1:
            return first
        return (first if self.source is None else {}) | epochs_after_stage1(self.config)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a trial's config."""
        return {
            "name": self.name,
            "stage": self.stage,
            "key": self.key,
            "source": self.source,
            "data": self.data,
            "config": to_dict(self.config),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Job":
        """The inverse of `to_dict`."""
        return Job(values["stage"], values["key"], from_dict(values["config"]), values["source"], values["data"])


def grid(axes: Mapping[str, Iterable[Any]]) -> list[Overrides]:
    """Every combination of the values of each dotted field, the last field varying fastest.

    Raises ConfigError for more than MAX_CELLS of them.
    """
    # what has no length is counted by taking it out, which may never end
    lists = [v if isinstance(v, Sized) else list(itertools.islice(v, MAX_CELLS + 1)) for v in axes.values()]
    _require_few("the grid", *map(_length, lists))
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*lists)]


def expand(sweep: Sweep) -> list[Cell]:
    """The cells with their configs and keys, one for each different config, seed by seed.

    Raises ConfigError for an override that does not fit and for more than MAX_CELLS, DataError where the data cannot
    be read.
    """
    _require_few(f"sweep {sweep.name}: cells x --seeds", _length(sweep.cells), _length(sweep.seeds))
    cells: dict[str, Cell] = {}
    for seed in sweep.seeds:
        for overrides in sweep.cells:
            cell = make_cell(replace(sweep.base, seed=seed), overrides)
            cells.setdefault(cell.stage2, cell)
    return list(cells.values())


def _require_few(what: str, *factors: int) -> None:
    number = math.prod(factors)
    if number > MAX_CELLS:
        said = " x ".join(map(str, factors))
        raise ConfigError(
            f"{what}: {said} = {number} cells, expected at most {MAX_CELLS}; take fewer, or several sweeps"
        )


def _length(values: Sized) -> int:
    try:
        return len(values)
    except OverflowError:  # a range of more than any list can hold
        return sys.maxsize


def make_cell(base: TrainConfig, overrides: Overrides) -> Cell:
    """One cell. Raises ConfigError for an override that does not fit."""
    config = override(base, overrides)
    read = {name: to_flat(config)[name] for name in flatten(overrides)}  # numpy's numbers and paths are plain there
    data = data_fingerprint(config.data)
    # a record depends on what was asked to be measured, too
    measured = replace(config.evaluation, batch_size=EvaluationConfig().batch_size)
    second = digest([refinement_identity(config, data), asdict(measured)])
    return Cell(base, read, config, initialization_identity(config, data), second, data)


def jobs_of(cells: Sequence[Cell], *, share: bool = True) -> dict[str, Job]:
    """The trainings that cells need, by name, stage 1 first."""
    first = [Job(1, c.stage1, stage1_of(c.config), data=c.data) for c in cells] if share else []
    second = [Job(2, c.stage2, c.config, c.stage1 if share else None, c.data) for c in cells]
    jobs: dict[str, Job] = {}
    for job in (*first, *second):
        jobs.setdefault(job.name, job)
    return jobs


def pinned(config: TrainConfig, *, gpu: bool) -> TrainConfig:
    """`config` with nothing left to the machine that a trial lands on: device, precision, threads, absolute paths."""
    device = config.device if config.device != "auto" else ("cuda" if gpu else "cpu")
    precision = config.precision
    if precision == "auto":
        # where this machine has no such GPU (a cluster's head node), the GPUs are taken to compute in bf16
        import torch

        there = device == "cpu" or torch.cuda.is_available()
        precision = resolve_precision("auto", resolve_device(device)) if there else "bf16"
    data, model = config.data, config.model
    return replace(
        config,
        data=replace(data, root=_absolute(data.root), cache=_absolute_cache(data.cache)),
        model=replace(model, weights_dir=_absolute(model.weights_dir)),
        device=device,
        precision=precision,
        threads=config.threads or 1,
    )


def data_fingerprint(data: DataConfig) -> str:
    """Fingerprint of the data set of a config (read once; of its images, those that have changed since they were)."""
    return _fingerprint(data.name, data.root, data.skip_bad, data.cache)


@cache
def _fingerprint(name: Any, root: str | None, skip_bad: bool, cache_: str) -> str:
    return fingerprint(load(DataConfig(name=name, root=root, skip_bad=skip_bad)), cache_)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _absolute_cache(cache_: str) -> str:
    return cache_ if cache_ in ("auto", "off") else str(Path(cache_).expanduser().absolute())
