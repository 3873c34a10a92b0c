"""Trains the embedded data set's claims, over several seeds, and prints them with their figures.

    python -m analysis.parts_claims [--seeds 0 1 2] [--processes 2] [--storage results/parts_claims]

`parts` is a synthetic set built to show the paper's effects; this shows whether it still does. Stage 1 is trained once
per seed, delta and kind of pseudo box; finished runs in the storage are used again if their config is the same.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lchp.config import PRESETS, TrainConfig, override
from lchp.console import guarded
from lchp.evaluation.metrics import FRAMES
from lchp.files import runs
from lchp.files.targets import as_path

PRESET = PRESETS["parts"]
DELTA = PRESET.config.initialization.threshold
LOW = min(PRESET.deltas)
CEILING = 97.0
MARGIN = 5.0
"""Points of GT-Known that LCHP-R must gain over Pseudo Label."""


@dataclass(frozen=True)
class Cell:
    """One stage-1 training, and the tau of each stage-2 training that starts from it."""

    seed: int
    delta: float
    boxes: str
    taus: tuple[float, ...] = ()

    def folder(self, storage: Path, tau: float | None = None) -> Path:
        """Run folder of stage 1 (`tau` None) or of a stage 2."""
        name = f"seed{self.seed}-{self.boxes}-delta{self.delta:g}"
        return storage / (name if tau is None else f"{name}-tau{tau:g}")

    def config(self, tau: float | None = None) -> TrainConfig:
        """The preset with this cell's values."""
        values: dict[str, Any] = {
            "seed": self.seed,
            "threads": 1,
            "initialization.delta": self.delta,
            "initialization.boxes": self.boxes,
        }
        return override(PRESET.config, values if tau is None else values | {"refinement.tau": tau})


def cells(seeds: list[int]) -> list[Cell]:
    """What the claims need, the default delta first."""
    taus = (0.0, PRESET.config.refinement.tau)
    jobs = [Cell(s, DELTA, "merged", taus) for s in seeds]
    jobs += [Cell(s, DELTA, "single") for s in seeds]
    for delta in sorted(set(PRESET.deltas) - {DELTA}, reverse=True):
        jobs += [Cell(s, delta, "merged") for s in seeds]
    return jobs + [Cell(s, LOW, "single") for s in seeds]


def run_cell(cell: Cell, storage: Path) -> str:
    """Trains what the storage lacks of a cell, in this process. Returns the stage-1 folder's name."""
    _train(cell.config(), cell.folder(storage), "init", None)
    for tau in cell.taus:
        _train(cell.config(tau), cell.folder(storage, tau), "refine", cell.folder(storage))
    return cell.folder(storage).name


def _train(config: TrainConfig, run: Path, stage: Any, source: Path | None) -> None:
    from lchp.training.run import train  # torch, in the worker only

    done = (run / runs.SUMMARY).exists()
    if done and runs.read_config(run) == config:
        return
    train(config, output=run, stage=stage, source=source, resume=run.exists())


def gt_known(storage: Path, cell: Cell, result: str, frame: str, tau: float | None = None) -> float:
    """GT-Known in percent of one run."""
    summary = runs.read_json(cell.folder(storage, tau) / runs.SUMMARY)
    return float(summary["results"][result][frame]["gt_known"])


def kept(storage: Path, cell: Cell) -> dict[float, float]:
    """tau -> GT-Known of the training boxes kept at it."""
    by_tau = runs.read_json(cell.folder(storage) / runs.SUMMARY)["kept"]["by_tau"]
    return {float(t): v["gt_known"] for t, v in by_tau.items() if v["gt_known"] is not None}


def claims(storage: Path, seeds: list[int], frame: str) -> list[tuple[str, str, bool]]:
    """(claim, figures as means over the seeds, whether it holds), judged in one frame."""
    tau = PRESET.config.refinement.tau

    def mean(result: str, delta: float = DELTA, boxes: str = "merged", at: float | None = None) -> float:
        return _mean(lambda s: gt_known(storage, Cell(s, delta, boxes), result, frame, at), seeds)

    rows = []
    for result, name in (("pseudo_label", "Pseudo Label"), ("lchp_i", "LCHP-I")):
        for delta, better, worse in ((DELTA, "merged", "single"), (LOW, "single", "merged")):
            a, b = mean(result, delta, better), mean(result, delta, worse)
            rows.append((f"(i) {name}, delta {delta:g}: {better} > {worse}", f"{a:.1f} > {b:.1f}", a > b))
    curve = {d: mean("pseudo_label", d) for d in PRESET.deltas}
    best = max(curve, key=lambda d: curve[d])
    inside = min(curve) < best < max(curve)
    rows.append(("(ii) Pseudo Label peaks inside the grid", _list(curve), inside))
    p, i = mean("pseudo_label"), mean("lchp_i")
    r, r_all = mean("lchp_r", at=tau), mean("lchp_r", at=0.0)
    order = f"{p:.1f} < {i:.1f} < {r:.1f}"
    rows.append(("(iii) Pseudo Label < LCHP-I < LCHP-R", order, p < i < r))
    rows.append((f"(iii) LCHP-R gains {MARGIN:g} points or more", f"{r - p:+.1f}", r - p >= MARGIN))
    rows.append((f"(iii) all below {CEILING:g}", f"{max(p, i, r):.1f}", max(p, i, r) < CEILING))
    rows.append((f"(iv) LCHP-R: tau 0 < tau {tau:g}", f"{r_all:.1f} < {r:.1f}", r_all < r))
    tables = [kept(storage, Cell(s, DELTA, "merged")) for s in seeds]
    shares = {t: float(np.mean([k[t] for k in tables])) for t in tables[0] if all(t in k for k in tables)}
    rising = all(np.diff([shares[t] for t in sorted(shares)]) > 0)
    rows.append(("(v) training boxes kept at a higher tau are better (center_crop)", _list(shares), rising))
    return rows


def _mean(value: Callable[[int], float], seeds: list[int]) -> float:
    return float(np.mean([value(s) for s in seeds]))


def _list(values: dict[float, float]) -> str:
    return "  ".join(f"{k:g}: {v:.1f}" for k, v in values.items())


def main(argv: list[str] | None = None) -> int:
    """Trains, prints one table per frame; 1 if a claim fails in center_crop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="worker processes of one thread each")
    parser.add_argument("--storage", type=as_path, default=Path("results/parts_claims"))
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=spawn) as pool:
        jobs = [pool.submit(run_cell, cell, args.storage) for cell in cells(args.seeds)]
        for number, job in enumerate(as_completed(jobs), 1):
            print(f"{number}/{len(jobs)} {job.result()}", flush=True)
    good = True
    for frame in FRAMES:
        rows = claims(args.storage, args.seeds, frame)
        print(f"\nGT-Known (%), {frame}, mean over seeds {args.seeds}")
        for claim, figures, holds in rows:
            print(f"  {'pass' if holds else 'FAIL'}  {claim:<66} {figures}")
        good &= frame != "center_crop" or all(holds for _, _, holds in rows)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(guarded(main))
