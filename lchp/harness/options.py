"""How a sweep runs: where its results go, and what of the machine it takes."""

import math
from dataclasses import dataclass
from pathlib import Path

import tyro

from lchp.config import TrainConfig, plain
from lchp.errors import ConfigError
from lchp.files.remote import Remote, as_storage
from lchp.harness.store import Store
from lchp.tracking import TrackerName


@dataclass(frozen=True)
class Options:
    """How a sweep runs; none of it changes a result."""

    storage: Remote | Path = Path("results")
    """Folder of the store and of the sweeps' records, or its URL (s3://BUCKET/PREFIX), where nodes share no disk."""
    resume: bool = False
    """Go on with the sweep of this name; cells that are new are added."""
    gpus_per_trial: float | None = None
    """GPUs per worker, e.g. 0.5 for two on one; by default 1 where this machine has any, else 0."""
    workers_per_trial: int = 1
    """Workers that share one training (DDP)."""
    max_concurrent: int = 0
    """Trainings at once; 0: as many as fit."""
    max_failures: int = 2
    """How often a training is tried again when its worker dies; the count starts anew with every finished epoch."""
    address: str | None = None
    """Ray cluster to run on; $RAY_ADDRESS by default, else this machine."""
    nodes: int = 1
    """Nodes that the cluster must have; the sweep waits for them, five minutes at most."""
    share: bool = True
    """Train each link (classifier, localizer, ...) once for all cells that need the same."""
    track: tyro.conf.UseAppendAction[tuple[TrackerName, ...]] = ()
    """Tracker that gets a run for each finished cell; may be given several times."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "storage", as_storage(self.storage))  # a text will do
        object.__setattr__(self, "track", tuple(self.track))
        for name, least in (
            ("gpus_per_trial", 0),
            ("workers_per_trial", 1),
            ("max_concurrent", 0),
            ("max_failures", 0),
            ("nodes", 1),
        ):
            value = plain(getattr(self, name))
            object.__setattr__(self, name, value)
            if value is None and name == "gpus_per_trial":
                continue
            flag, whole = f"--{name.replace('_', '-')}", name != "gpus_per_trial"
            if not isinstance(value, int if whole else (int, float)):
                raise ConfigError(f"{flag} = {value!r}: expected a {'whole ' if whole else ''}number")
            if not math.isfinite(value) or value < least:
                raise ConfigError(f"{flag} = {value}: expected at least {least}")
        if self.workers_per_trial > 1 and self.gpus_per_trial is not None and 0 < self.gpus_per_trial < 1:
            raise ConfigError(
                f"--gpus-per-trial = {self.gpus_per_trial}: workers of one training need a GPU each; "
                "leave --workers-per-trial at 1 to share a GPU"
            )
        if self.gpus_per_trial is not None and self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ConfigError(
                f"--gpus-per-trial = {self.gpus_per_trial}: a share of one GPU, or a whole number of GPUs"
            )

    @property
    def remote(self) -> Remote | None:
        """The storage, where it is behind a URL."""
        return self.storage if isinstance(self.storage, Remote) else None

    @property
    def folder(self) -> Path:
        """The storage's folder, or this machine's mirror of it."""
        return self.storage.mirror("sweeps") if isinstance(self.storage, Remote) else self.storage.absolute()

    @property
    def store(self) -> Store:
        """The store of results, as the program that drives a sweep reads it."""
        return Store(self.folder, self.remote, light=self.remote is not None)


def gpus_per_worker(options: Options, base: TrainConfig) -> float:
    """GPUs per worker: what was asked for, or one where this machine has any and the config does not say cpu."""
    if options.gpus_per_trial is not None:
        return float(options.gpus_per_trial)
    if base.device == "cpu":
        return 0.0
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0
