"""What a sweep prints: its plan before, and its cells after. The paper's tables proper are made from the records."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from tabulate import tabulate

from lchp.config import PLACES, TrainConfig, show, to_flat
from lchp.data import read
from lchp.data.cache import shown_bytes
from lchp.errors import LchpError, RunError
from lchp.evaluation.metrics import METRICS, RESULTS, TITLES, Metric
from lchp.files import runs
from lchp.harness.cells import Cell, overrides_text
from lchp.harness.limits import cpus
from lchp.harness.options import gpus_per_worker
from lchp.harness.plan import Plan
from lchp.harness.record import Outcome
from lchp.harness.sweep import SweepResult
from lchp.report.tables.grid import NOT_GIVEN, mean_text
from lchp.training.chain import KINDS, STAGES, epochs_of, method_of
from lchp.training.forecast import cache_size, forecast, spoken


def dry_run_text(plan: Plan, price_per_hour: float | None = None) -> str:
    """Cells, trainings needed, and an estimate."""
    seeds = sorted({c.config.seed for c in plan.cells})
    rows: dict[str, list[int]] = {}
    for cell in plan.cells:
        rows.setdefault(overrides_text(cell.overrides) + differing_flags(cell, plan.sweep.base), []).append(
            cell.config.seed
        )
    cells = tabulate([[name, ", ".join(map(str, s))] for name, s in rows.items()], ["cell", "seeds"])
    where = plan.store.remote or plan.store.storage
    shape = " x ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in ((len(rows), "setting"), (len(seeds), "seed")))
    head = f"{len(plan.cells)} cell{'s' * (len(plan.cells) != 1)} ({shape} at most), storage {where}"
    return f"{head}\n\n{cells}\n\n{counts(plan)}\n{cost(plan)}\n{estimate(plan, price_per_hour)}"


def counts(plan: Plan) -> str:
    """A line for each kind of link that the cells have: how many are to be trained, and how many are in the store."""
    lines = []
    for kind in KINDS:
        states = [p.state for p in plan.schedule.jobs.values() for link in p.job.links if link.kind == kind]
        if states:
            work = "to compute" if kind in ("choice", "boxes", "labels") else "to train"
            lines.append(f"{kind}: {states.count('waiting')} {work}, {states.count('done')} in store")
    return "\n".join(lines)


def cost(plan: Plan) -> str:
    """Forward passes of one network per image of what is to be trained, and of every cell on its own (see
    `lchp.training.chain.Link`)."""
    jobs = plan.schedule.jobs
    ours = sum(p.job.cost for p in jobs.values() if p.state == "waiting")
    waiting = [c for c in plan.cells if jobs[plan.job_of(c)].state == "waiting"]
    alone = sum(link.cost for c in waiting for link in c.chain)
    less = f", {alone / ours:.1f} times less" if ours else ""
    return f"cost: {ours} of {alone} forward passes per image (every cell alone){less}"


def estimate(plan: Plan, price_per_hour: float | None = None, trials: int | None = None) -> str:
    """Time for the waiting trainings, and what they cost at a price for each place: by earlier trainings of the same
    networks and data in this storage, or else by a few batches, tried here. Also the disk that the store and the image
    cache take. trials: how many a search has, for their mean time."""
    waiting = [p for p in plan.schedule.jobs.values() if p.state == "waiting"]
    if not waiting:
        return "estimate: nothing to train"
    known, each, stored = _trained_before(plan), dict[str, float](), 0
    caches, filling = dict[Any, int](), dict[Any, float]()
    for progress in reversed(waiting):  # who comes last has most links: one try gives the times of all
        config = progress.job.config
        images = config.data.name, config.data.root, config.data.resize
        try:
            if any(_like(config, stage) not in known for stage in progress.job.trainings):
                tried = forecast(config, progress.job.kind)
                known |= {_like(config, k.stage): (k.whole / max(1, k.epochs), k.size) for k in tried.links}
                caches[images], filling[images] = tried.cache, tried.filling
            elif images not in caches:
                caches[images] = cache_size(read(config.data), config)
        except LchpError as fault:  # a GPU that this machine lacks
            work = f"{sum(p.job.epochs for p in waiting)} epochs in {len(waiting)} trainings"
            return f"estimate: {work}; their time cannot be measured here ({fault})"
        for stage, epochs in progress.job.trainings.items():
            seconds, size = known[_like(config, stage)]
            each[stage] = each.get(stage, 0.0) + seconds * epochs
            stored += size
    total, places = sum(each.values()) + sum(filling.values()), _places(plan)
    lines = [f"estimate: {spoken(total)} of training; {spoken(total / places)} with {places} at once"]
    lines += [f"  {kind}: {spoken(each[STAGES[kind]])}" for kind in KINDS if STAGES[kind] in each]
    if sum(filling.values()) >= 1:
        lines.append(f"  image cache, unless it is there: {spoken(sum(filling.values()))}")
    if trials:
        lines.append(f"  a trial: {spoken(total / trials)} on average, and less where it is stopped early")
    cache = f", image cache {shown_bytes(sum(caches.values()))}" if any(caches.values()) else ""
    lines.append(f"disk: store about {shown_bytes(stored)}{cache}")
    if price_per_hour is not None:
        lines.append(f"price: {total / 3600 * price_per_hour:.2f} at {price_per_hour:g} per hour of a place")
    return "\n".join(lines)


def _places(plan: Plan) -> int:
    """How many trainings run at once, as far as this machine tells."""
    options = plan.options
    gpus = gpus_per_worker(options, plan.sweep.base) * options.workers_per_trial
    fit = int(torch.cuda.device_count() / gpus) if gpus else cpus() // (plan.sweep.base.threads or 1)
    fit = fit if gpus else fit // options.workers_per_trial
    return max(1, min(fit, options.max_concurrent or fit))


def _like(c: TrainConfig, stage: str) -> tuple[Any, ...]:
    """What the time of an epoch depends on most: equal for trainings that take about as long."""
    alike: tuple[Any, ...] = stage, c.data.name, c.data.image_size, c.data.root, c.device, c.precision
    alike += c.model.classifier, method_of(c).scheme.name
    if stage in (STAGES["classifier"], STAGES["boxes"]):
        return alike
    return (*alike, c.model.localizer, c.refinement.labeller if stage == STAGES["refinement"] else None)


def _trained_before(plan: Plan) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Seconds per epoch, and bytes of the checkpoint: the medians over the run folders of the store, per kind of
    training (see `_like`)."""
    found: dict[tuple[Any, ...], list[tuple[float, int]]] = {}
    for path in (plan.store.storage / "store").glob("*/*/" + runs.ENVIRONMENT):
        try:
            seconds = runs.read_environment(path.parent).get("wall_seconds") or {}
            config = runs.read_config(path.parent)
        except RunError:
            continue
        for stage, epochs in epochs_of(config).items():
            if stage in seconds:
                checkpoint = path.parent / runs.CHECKPOINTS / f"{stage}.pt"
                size = checkpoint.stat().st_size if checkpoint.is_file() else 0
                found.setdefault(_like(config, stage), []).append((seconds[stage] / max(1, epochs), size))
    return {
        like: (statistics.median(s for s, _ in both), int(statistics.median(size for _, size in both)))
        for like, both in found.items()
    }


def closing_table(result: SweepResult) -> str:
    """One row per cell: each result's GT-Known over seeds, as tables print it; and what failed, with its error."""
    rows = []
    for name, cells in _in_order(_by_overrides(result.cells)):
        done = [c.summary for c in cells if c.state == "done" and c.summary is not None]
        states = "" if len(done) == len(cells) else f"{len(done)} of {len(cells)} {_word(cells)}"
        rows.append([name, *(_known(done, r) for r in RESULTS), states])
    head = ["cell", *(TITLES[r] for r in RESULTS), ""]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    lines = [f"{METRICS['gt_known']} (center_crop, %)", tabulate(rows, head, disable_numparse=True)]
    for cell in result.failed:
        lines.append(f"failed: {overrides_text(cell.cell.overrides)}, seed {cell.seed}: {cell.error}")
    if result.failed:
        lines.append(f"{len(result.failed)} of {len(result.cells)} cells failed; --resume tries them again")
    return "\n".join(lines)


def _known(summaries: Sequence[dict[str, Any]], result: str) -> str:
    """GT-Known in center_crop; images without boxes have none, nor has a run without the result."""
    values = [v for s in summaries if (v := Metric(result, "center_crop").of(s)) is not None]
    return mean_text(values) if values else NOT_GIVEN


def timing_line(result: SweepResult) -> str:
    """How long this start took, and what of it was not training."""
    timing = result.timing
    if timing is None:
        return "nothing was left to train"
    if timing.overhead is None:
        return f"{timing.wall / 60:.1f} minutes, in which no training was finished"
    if any(c.state == "stopped" for c in result.cells):
        return f"{timing.wall / 60:.1f} minutes"  # what was stopped early told of no time
    return (
        f"{timing.wall / 60:.1f} minutes: {timing.training / 60:.1f} minutes of training, {timing.places} at once, "
        f"and {timing.overhead:.0f} % on top"
    )


def _by_overrides(cells: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Cells that differ in the seed only; those of an earlier start with other flags stay apart."""
    out: dict[str, list[Outcome]] = {}
    for cell in cells:
        name = overrides_text(cell.cell.overrides) + differing_flags(cell.cell, cells[-1].cell.base)
        out.setdefault(name, []).append(cell)
    return out


def differing_flags(cell: Cell, base: TrainConfig) -> str:
    """In brackets, the flags that a cell of an earlier start has and `base` has not; nothing where they agree."""
    mine, theirs = to_flat(cell.base), to_flat(base)
    free = PLACES | {"seed"} | cell.overrides.keys()
    other = [f"{name} {show(value)}" for name, value in mine.items() if name not in free and theirs[name] != value]
    return f" ({', '.join(other)})" if other else ""


def _in_order(rows: dict[str, list[Outcome]]) -> list[tuple[str, list[Outcome]]]:
    """A grid of numbers by its values; all else in the order of the sweep."""
    items = list(rows.items())
    overrides = [cells[0].cell.overrides for _, cells in items]
    numbers = all(isinstance(v, (int, float)) for o in overrides for v in o.values())
    if not numbers or len({tuple(o) for o in overrides}) != 1:
        return items
    return sorted(items, key=lambda item: list(item[1][0].cell.overrides.values()))


def _word(cells: Sequence[Outcome]) -> str:
    return "done" if any(c.state in ("waiting", "running") for c in cells) else "done, failed: see below"
