"""A sweep's record.

STORAGE/sweeps/NAME/sweep.json lists the cells with their overrides, keys, states and run folders (relative to STORAGE),
so that whatever reads results needs no Ray. It and the store are all that --resume looks at; Ray's own state is thrown
away, so a grid may change between two starts, and no kill can leave it half-written.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lchp import __version__
from lchp.config import TrainConfig, to_dict
from lchp.errors import RunError
from lchp.files import runs
from lchp.files.runs import SWEEP
from lchp.files.schema import SWEEP_VERSIONS
from lchp.harness import places
from lchp.harness.cells import Cell
from lchp.harness.plan import Plan
from lchp.harness.schedule import Reason
from lchp.training.chain import label


@dataclass(frozen=True)
class Outcome:
    """One cell after a sweep. `run`: its run folder, `summary`: what it measured; None unless `state` is `done`.
    `error`, `reason`: why it failed, for people and for programs."""

    cell: Cell
    state: str
    error: str | None
    reason: Reason | None
    run: Path | None
    summary: dict[str, Any] | None

    @property
    def seed(self) -> int:
        """Of the cell's config."""
        return self.cell.config.seed


@contextlib.contextmanager
def recorded(plan: Plan) -> Iterator[None]:
    """Writes sweep.json before and after the block. Of a new sweep that ends before any training began (a cluster that
    cannot be joined, say) none is left, so that the same command can be given again."""
    new = not (plan.folder / SWEEP).exists()
    write_record(plan)
    try:
        yield
    except BaseException:
        if not new or any(p.attempts for p in plan.schedule.jobs.values()):
            write_record(plan)
        else:
            if plan.claim is not None:
                plan.claim.check()
            (plan.folder / SWEEP).unlink(missing_ok=True)
            if plan.store.remote is not None:
                with contextlib.suppress(RunError):  # what ended the sweep is to be said
                    places.send(plan.folder, plan.store.remote)
        raise
    write_record(plan)


def write_record(plan: Plan) -> None:
    """Writes sweep.json. Raises RunError, also where the sweep's folder is no longer the one that was claimed."""
    if plan.claim is not None:
        plan.claim.check()
    bases: dict[TrainConfig, int] = {}
    cells = []
    for outcome in outcomes_of(plan, summaries=False):
        cell = outcome.cell
        cells.append(
            {
                "overrides": cell.overrides,
                "seed": cell.config.seed,
                "method": label(cell.config),
                "base": bases.setdefault(cell.base, len(bases)),
                "key": cell.key,
                "links": {cell.chain.last.kind: cell.key, **plan.schedule.jobs[plan.job_of(cell)].job.sources},
                "state": outcome.state,
                "error": outcome.error,
                "reason": outcome.reason,
                "job": plan.job_of(cell),
                "run": str(plan.store.path(cell.chain.last.kind, cell.key).relative_to(plan.store.storage)),
            }
        )
    jobs = {
        name: {
            "state": p.state,
            "found": p.found,
            "error": p.error,
            "reason": p.reason,
            "attempts": p.attempts,
            **p.facts,
        }
        for name, p in plan.schedule.jobs.items()
    }
    record = {
        "version": SWEEP_VERSIONS[-1],
        "lchp": __version__,
        "name": plan.sweep.name,
        "command": sys.argv,
        "created": plan.created,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "options": {**asdict(plan.options), "storage": str(plan.options.storage)},
        "bases": [to_dict(base) for base in bases],
        "timing": None if plan.timing is None else asdict(plan.timing),
        "cells": cells,
        "jobs": jobs,
    }
    runs.write_json(plan.folder / SWEEP, record, parents=plan.claim is None)
    if plan.store.remote is not None:
        places.send(plan.folder, plan.store.remote)


def outcomes_of(plan: Plan, *, summaries: bool = True) -> list[Outcome]:
    """The cells as they stand."""
    out = []
    for cell in plan.cells:
        progress = plan.schedule.jobs[plan.job_of(cell)]
        path = plan.store.path(cell.chain.last.kind, cell.key) if progress.state == "done" else None
        summary, state, error, reason = None, progress.state, progress.error, progress.reason
        if summaries and path is not None:
            try:
                plan.store.fetched(cell.chain.last.kind, cell.key)
                summary = {**runs.read_summary(path)}
            except RunError as fault:  # damaged since it was published
                path, state, error, reason = None, "failed", str(fault), "error"
        out.append(Outcome(cell, state, error, reason, path, summary))
    return out
