"""A sweep's cells, and the trainings they need: each different one once."""

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lchp.config import DataConfig, TrainConfig, flatten, from_dict, override, to_dict, to_flat, values_text
from lchp.data import fingerprint, load
from lchp.errors import ConfigError
from lchp.system.devices import resolve_device, resolve_precision
from lchp.training.chain import KINDS, Chain, Kind, Link, chain_of, method_of
from lchp.training.context import held_out_images
from lchp.training.map_boxes import require_every_class

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

    def __post_init__(self) -> None:
        for name, such in (("cells", "grid(...) gives"), ("seeds", "range(3)")):
            values = getattr(self, name)
            if not isinstance(values, Iterable):
                raise ConfigError(f"{name} = {values!r}: expected a list, as {such}")
            object.__setattr__(self, name, _counted(values))


@dataclass(frozen=True)
class Cell:
    """One config of a sweep: `base` with `overrides`; `chain`: its links, whose keys are of the data set's content."""

    base: TrainConfig
    overrides: Overrides
    chain: Chain

    @property
    def config(self) -> TrainConfig:
        """The complete config."""
        return self.chain.config

    @property
    def key(self) -> str:
        """Hash of the cell's result and of what is recorded of it."""
        return self.chain.record

    def job_name(self, share: bool) -> str:
        """The name of the job whose result is the cell's; share: whether links are trained by jobs of their own."""
        return f"{self.chain.last.kind}-{self.key}{'' if share else '-alone'}"


@dataclass(frozen=True)
class Job:
    """One link, or (`alone`) a whole chain: what is trained, and under which key it is published.

    kind, key: of the result; config: complete; data: the fingerprint of the data set that the key was made of; sources:
    kind -> key of the results that are taken; alone: every link of the chain is trained here, nothing is taken.
    """

    kind: Kind
    key: str
    config: TrainConfig
    data: str
    sources: Mapping[Kind, str]
    alone: bool = False

    @property
    def name(self) -> str:
        """Unique among a sweep's jobs; the name of its work folder."""
        return f"{self.kind}-{self.key}{'-alone' if self.alone else ''}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs whose results it takes."""
        return tuple(f"{kind}-{key}" for kind, key in self.sources.items())

    @cached_property
    def chain(self) -> Chain:
        """Its links, those that it takes included."""
        return chain_of(self.config, self.data, last=self.kind)

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The links that it trains."""
        return tuple(link for link in self.chain if link.kind not in self.sources)

    @cached_property
    def epochs(self) -> int:
        """Epochs to train, over all of its links."""
        return sum(self.trainings.values())

    def finished_epochs(self, stage: str, epoch: int) -> int:
        """Epochs that are done when the link named `stage` in metrics.jsonl has finished its `epoch`."""
        names = [link.stage for link in self.links]
        before = self.links[: names.index(stage)]
        return epoch - self.links[len(before)].first + sum(link.epochs - link.first for link in before)

    @cached_property
    def trainings(self) -> dict[str, int]:
        """Epochs of each link, by its name in metrics.jsonl, in order."""
        return {link.stage: link.epochs - link.first for link in self.links}

    @cached_property
    def cost(self) -> int:
        """Forward passes of one network per image."""
        return sum(link.cost for link in self.links)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a trial's config."""
        return {**asdict(replace(self, config=TrainConfig())), "name": self.name, "config": to_dict(self.config)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Job":
        """The inverse of `to_dict`."""
        fields: dict[str, Any] = {name: value for name, value in values.items() if name != "name"}
        return Job(**{**fields, "config": from_dict(values["config"])})


def grid(axes: Mapping[str, Iterable[Any]]) -> list[Overrides]:
    """Every combination of the values of each dotted field, the last field varying fastest.

    Raises ConfigError for more than MAX_CELLS of them.
    """
    lists = [_counted(values) for values in axes.values()]
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
            cells.setdefault(cell.key, cell)
    return list(cells.values())


def _require_few(what: str, *factors: int) -> None:
    number = math.prod(factors)
    if number > MAX_CELLS:
        said = " x ".join(map(str, factors))
        raise ConfigError(
            f"{what}: {said} = {number} cells, expected at most {MAX_CELLS}; take fewer, or several sweeps"
        )


def _counted(values: Iterable[Any]) -> Any:
    """Values that have a length. What has none is counted by taking it out, which may never end."""
    return values if isinstance(values, Sized) else list(itertools.islice(values, MAX_CELLS + 1))


def _length(values: Sized) -> int:
    try:
        return len(values)
    except OverflowError:  # a range of more than any list can hold
        return sys.maxsize


def make_cell(base: TrainConfig, overrides: Overrides) -> Cell:
    """One cell. Raises ConfigError for an override that does not fit, and DataError for data that its method cannot
    take: else a link late in the chain would fail by them."""
    config = override(base, overrides)
    if (found := method_of(config)).boxes == "ddt":
        labels, image_ids, names = _training_images(config.data.name, config.data.root, config.data.skip_bad)
        if config.data.validation:
            labels = labels[~held_out_images(image_ids, config.data.validation, config.seed)]
        require_every_class(found, labels, names)
    read = {name: to_flat(config)[name] for name in flatten(overrides)}  # numpy's numbers and paths are plain there
    return Cell(base, read, chain_of(config, data_fingerprint(config.data)))


def jobs_of(
    cells: Sequence[Cell], *, share: bool = True, stored: Callable[[Chain], Chain | None] = lambda _chain: None
) -> dict[str, Job]:
    """The jobs that cells need, by name, what others need first: each different link once; without `share` one for each
    cell, which trains all. stored(chain): the chain of a result in the store whose last link is that chain's, whatever
    is recorded of it."""
    if not share:
        alone = (Job(c.chain.last.kind, c.key, c.config, c.chain.data, {}, alone=True) for c in cells)
        return {job.name: job for job in alone}
    kept = {link.key for cell in cells if cell.config.evaluation.kept_by_tau for link in cell.chain}
    holders: dict[str, Chain] = {}  # a link's key -> whose result has it: what is recorded of it differs between cells
    for cell in cells:
        for link in cell.chain.links[:-1]:
            if link.key not in holders:
                holders[link.key] = _shared(cell.chain, link, kept_boxes=link.key in kept)
    for cell in cells:
        holders.setdefault(cell.chain.last.key, cell.chain)
    holders = {key: stored(chain) or chain for key, chain in holders.items()}
    jobs: dict[str, Job] = {}
    for chain in (*(cell.chain for cell in cells), *holders.values()):
        sources: dict[Kind, str] = {
            link.kind: holders[link.key].record for link in chain if holders[link.key].record != chain.record
        }
        job = Job(chain.last.kind, chain.record, chain.config, chain.data, sources)
        jobs.setdefault(job.name, job)
    order = sorted(jobs.values(), key=lambda job: (KINDS.index(job.kind), len(job.sources)))
    return {job.name: job for job in order}


def _shared(chain: Chain, link: Link, *, kept_boxes: bool) -> Chain:
    """The chain up to a link that cells share. kept_boxes: one of them asks for the boxes of LCHP-I that tau keeps,
    which take a pass over the training images."""
    shared = chain.until(link.kind)
    if kept_boxes or link.kind != "localizer":
        return shared
    return shared.recorded_as(override(shared.config, {"evaluation.kept_by_tau": False}))


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
        model=replace(
            model,
            weights_dir=_absolute(model.weights_dir),
            classifier_weights=_absolute(model.classifier_weights),
            classifier_classes=_absolute(model.classifier_classes),
        ),
        method=replace(config.method, boxes=_absolute(config.method.boxes)),
        device=device,
        precision=precision,
        threads=config.threads or 1,
    )


def data_fingerprint(data: DataConfig) -> str:
    """Fingerprint of the data set of a config (read once; of its images, those that have changed since they were)."""
    return _fingerprint(data.name, data.root, data.skip_bad, data.cache)


@cache
def _training_images(name: Any, root: str | None, skip_bad: bool) -> tuple[np.ndarray, Sequence[str], Sequence[str]]:
    """The class and the id of each training image of a data set, and the names of the classes."""
    dataset = load(DataConfig(name=name, root=root, skip_bad=skip_bad))
    return dataset.train.labels, dataset.train.image_ids, dataset.class_names


@cache
def _fingerprint(name: Any, root: str | None, skip_bad: bool, cache_: str) -> str:
    return fingerprint(load(DataConfig(name=name, root=root, skip_bad=skip_bad)), cache_)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _absolute_cache(cache_: str) -> str:
    return cache_ if cache_ in ("auto", "off") else str(Path(cache_).expanduser().absolute())


def overrides_text(overrides: dict[str, Any]) -> str:
    """Overrides as text: `delta 0.6, tau 0.9`."""
    return values_text(overrides) or "base"
