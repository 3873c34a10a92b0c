"""Whether several stage-2 trainings on one device pay: as processes side by side, or as localizers of one process.

python analysis/together.py                                         # CPU: MobileNetV2 at 160 px
python analysis/together.py --device cuda --backbone inception_v3 --size 448 --at-once 1 2 4

Trainings that differ only in tau or in the strong view, and whose labels are LCHP-I's (refinement.labeller frozen), see
the same images, labels and confidences: one process could work those out once and train several localizers. This
measures what that would save; lchp trains each on its own, so that any may fail, stop or go on without the others.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import benchmark
import torch
import tyro
from tabulate import tabulate

from lchp.console import guarded, parse
from lchp.errors import ConfigError
from lchp.files.runs import write_json
from lchp.files.targets import json_of, require_file
from lchp.method.batch import Batch
from lchp.method.losses import is_visible, refinement_loss
from lchp.method.networks import Localizer
from lchp.method.steps import label_views, padding
from lchp.method.views import sample_strong, strong_view


@dataclass
class Flags:
    """Measure several stage-2 trainings at once."""

    bench: Annotated[benchmark.Flags, tyro.conf.arg(name="")] = field(default_factory=benchmark.Flags)
    at_once: tuple[int, ...] = (1, 2, 4)
    """Numbers of trainings to measure."""
    seconds: float = 20.0
    """For how long the processes train."""


def side_by_side(flags: Flags, n: int, folder: Path) -> float:
    """Images per second of n processes together; on a CPU they share its threads."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n), context.SimpleQueue()
    own = flags.bench
    if own.device == "cpu":
        own = replace(own, threads=max(1, (own.threads or torch.get_num_threads()) // n))
    workers = [
        context.Process(target=_train, args=(own, folder, flags.seconds, barrier, results), daemon=True)
        for _ in range(n)
    ]
    benchmark.open_bench(own, folder)  # draws the images and fills the cache, for all of them
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        if any(worker.exitcode for worker in workers):
            barrier.abort()
        time.sleep(0.1)
    if any(worker.exitcode for worker in workers):
        raise ConfigError(f"--at-once {n}: a process died; does its memory suffice?")
    return sum(results.get() for _ in workers)


def _train(flags: benchmark.Flags, folder: Path, seconds: float, barrier: Any, results: Any) -> None:
    bench = benchmark.open_bench(flags, folder)
    step = benchmark.ours_stage2(bench, bench.networks())
    for n in range(3):
        step(bench.views(n))
    benchmark.wait(bench.device)
    barrier.wait(timeout=600)  # one that died before it breaks it for the others
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        step(bench.views(steps))
        steps += 1
        benchmark.wait(bench.device)
    results.put(steps * flags.batch_size / (time.perf_counter() - begin))


def one_process(flags: Flags, n: int, folder: Path) -> float:
    """Images per second, counted per localizer, of one process that trains n localizers on the same labels."""
    bench = benchmark.open_bench(flags.bench, folder)
    nets = bench.networks()
    nets.classifier.eval().requires_grad_(False)
    labeller = bench.networks().localizer.eval().requires_grad_(False)
    students = [bench.networks().localizer for _ in range(n)]
    optimizers = [bench.optimizer(student) for student in students]
    for k in range(3):
        _shared_step(bench, nets, labeller, students, optimizers, bench.views(k), k)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < flags.seconds:
        _shared_step(bench, nets, labeller, students, optimizers, bench.views(steps), steps)
        steps += 1
        benchmark.wait(bench.device)
    return n * steps * flags.bench.batch_size / (time.perf_counter() - begin)


def _shared_step(
    bench: benchmark.Bench,
    nets: benchmark.Networks,
    labeller: Localizer,
    students: Sequence[Localizer],
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    n: int,
) -> None:
    config, i_r = bench.config.refinement, batch.images
    strong = sample_strong(len(i_r), config, benchmark.generator(n))
    with torch.no_grad(), bench.amp():
        labels = label_views(labeller, nets.classifier, i_r, config)
        target = strong.axis_map().to(i_r.device).boxes(labels.b).clamp(0, 1)
        view = strong_view(i_r, strong, padding(labeller.mean, config), config.augmenter)
    for k, (student, optimizer) in enumerate(zip(students, optimizers, strict=True)):
        weight = ((labels.confidence > k / len(students)) & is_visible(target)).float()  # a tau of its own
        with bench.amp():
            loss = refinement_loss(student(view), target, weight)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        flags: Flags = parse(Flags, arguments, "together.py")
        if flags.bench.json:
            require_file(flags.bench.json, "bench.json", json_of("processes", "localizers"), "result of this script")
        if not flags.at_once or min(flags.at_once) < 1:
            raise ConfigError("--at-once: expected numbers of trainings, at least 1 each")
        if not 0 < flags.seconds < float("inf"):
            raise ConfigError(f"--seconds = {flags.seconds}: expected a finite number above 0")
        found: dict[str, dict[str, float]] = {"processes": {}, "localizers": {}}
        with tempfile.TemporaryDirectory() as folder:
            for n in flags.at_once:
                found["processes"][str(n)] = side_by_side(flags, n, Path(folder))
                found["localizers"][str(n)] = one_process(flags, n, Path(folder))
        base = found["processes"][str(flags.at_once[0])]
        rows = [
            [n, *(f"{found[way][str(n)]:.1f} ({found[way][str(n)] / base:.2f})" for way in found)]
            for n in flags.at_once
        ]
        head = ["trainings", "as processes, images/s (ratio)", "in one process, images/s (ratio)"]
        print(tabulate(rows, head, disable_numparse=True, colalign=("right",) * 3))
        if flags.bench.json:
            write_json(flags.bench.json, found)
        return 0

    return guarded(body)


if __name__ == "__main__":
    raise SystemExit(main())
