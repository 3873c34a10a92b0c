"""Run folders with figures made up by a formula, for tests of what is made from records.

`python tests/report_records.py --write` renews tests/golden/report.
"""

import hashlib
import importlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from lchp.config import PRESETS, TrainConfig, override, preset, to_dict
from lchp.evaluation.metrics import FRAMES, GroundTruth
from lchp.evaluation.predictions import frame_table, write_predictions
from lchp.files.runs import write_json

GOLDEN = Path(__file__).parent / "golden" / "report"
ANALYSIS = Path(__file__).parents[1] / "analysis"
FLOORS = {"center_crop": (5.0, 26.0), "full_image": (1.0, 15.0)}
TAUS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)


def analysis_script(name: str) -> ModuleType:
    """analysis/NAME.py, as `python -m analysis.NAME` finds it."""
    return importlib.import_module(f"analysis.{name}")


def known(config: TrainConfig) -> dict[str, float]:
    """GT-Known per result in center_crop: best at delta 0.5, better with tau and with more augmentations."""
    c, seed = config, config.seed
    first = 50 - 60 * abs(c.initialization.threshold - 0.5) + 2 * seed + (3 if c.model.localizer == "tiny_deep" else 0)
    second = first + 6 + 10 * c.refinement.tau + len(c.refinement.augmentations) - 3 + seed
    return {"pseudo_label": round(first - 7, 2), "lchp_i": round(first, 2), "lchp_r": round(second, 2)}


def summary(figures: Mapping[str, float | None], tau: float) -> dict[str, Any]:
    """A summary.json; full_image is 8 points below, None is a run without boxes."""
    results, boxes = {}, None not in figures.values()
    for name, value in figures.items():
        results[name] = {}
        for frame, less in zip(FRAMES, (0.0, 8.0), strict=True):
            g = None if value is None else max(0.0, value - less)
            results[name][frame] = {
                "gt_known": g,
                "top1_loc": None if g is None else round(0.8 * g, 2),
                "top5_loc": None if g is None else round(0.95 * g, 2),
                "mean_iou": g,
            }
    kept = {t: {"count": 3000 - round(2000 * t), "gt_known": 60 + 10 * t if boxes else None} for t in {*TAUS, tau}}
    floors = {f: {"full_box": full, "centre_box": centre} for f, (full, centre) in FLOORS.items()}
    if not boxes:
        floors = {f: dict.fromkeys(values) for f, values in floors.items()}
    return {
        "results": results,
        "classification": {"top1": 90.0, "top5": 99.0},
        "floors": floors,
        "kept": {"tau": tau, "total": 3000, **kept[tau], "by_tau": {f"{t:g}": v for t, v in sorted(kept.items())}},
    }


def write_run(
    folder: Path,
    config: TrainConfig,
    figures: Mapping[str, float | None] | None = None,
    *,
    stored: bool = False,
    classes: int = 10,
    fingerprint: str = "0" * 16,
    written: str | None = None,
    recipe: int | None = None,
    method: str | None = None,
    score_maps: Mapping[str, float | None] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Writes a finished run folder without predictions; `stored`: with DONE, as in the store of a sweep."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_dict(config))
    scored = {} if score_maps is None else {"score_maps": dict(score_maps)}
    write_json(folder / "summary.json", summary(figures or known(config), config.refinement.tau) | scored)
    environment = {
        "versions": {"lchp": "0.1.0"},
        "git_revision": None,
        "device": "cpu",
        "precision": "fp32",
        "data_fingerprint": fingerprint,
        "class_names": [f"class_{i}" for i in range(classes)],
        "wall_seconds": {"total": 60.0, "refinement": 30.0},
    }
    more = {"written": written, "recipe": recipe, "method": method, "files": files}
    write_json(folder / "environment.json", environment | {k: v for k, v in more.items() if v is not None})
    if stored:
        seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Writes DONE."""
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "DONE"}
    write_json(folder / "DONE", {"key": folder.name, "files": sums})


def key(config: TrainConfig) -> str:
    return hashlib.sha256(repr(config).encode()).hexdigest()[:16]


def store(storage: Path, config: TrainConfig, figures: Mapping[str, float | None] | None = None, **more: Any) -> Path:
    """A run in the store of a sweep."""
    return write_run(storage / "store" / "stage2" / key(config), config, figures, stored=True, **more)


def store_link(storage: Path, kind: str, config: TrainConfig, figures: Mapping[str, float], **more: Any) -> Path:
    """A link of a chain in the store of a sweep."""
    return write_run(storage / "store" / kind / key(config), config, figures, stored=True, **more)


def write_sweep(
    storage: Path,
    cells: Sequence[tuple[dict[str, Any], TrainConfig, str, str | None]],
    base: TrainConfig,
    name: str = "all_tables",
    command: Sequence[str] = ("/home/someone/lchp/sweeps/all_tables.py", "--data.root", "/data/CUB_200_2011"),
    titles: Mapping[str, str] | None = None,
) -> Path:
    """sweep.json of cells: overrides, config, state, error; titles: by method.name, None as of old."""
    folder = storage / "sweeps" / name
    record = {
        "version": 1,
        "lchp": "0.1.0",
        "name": name,
        "command": list(command),
        "created": "2026-11-20T10:00:00+0000",
        "bases": [to_dict(base)],
        "cells": [
            {"overrides": o, "seed": c.seed, "base": 0, "stage2": key(c), "state": state, "error": error}
            | ({} if titles is None else {"method": titles[c.method.name]})
            for o, c, state, error in cells
        ],
        # 1795168800: 2026-11-20, 10:00 UTC
        "jobs": {f"stage2-{key(c)}": {"begin": 1795168800.0, "seconds": 60.0} for _, c, _, _ in cells},
    }
    write_json(folder / "sweep.json", record)
    return folder / "sweep.json"


def write_grid(storage: Path) -> Path:
    """Most cells of Tables 3-6 of the preset `parts` with two seeds: no run at delta 0.7 nor for `tiny`, one seed of
    `tiny_deep`, tau 0 diverged (one seed below the floor, one to infinity), one cell failed for another reason."""
    base, cells = preset("parts"), []
    overrides: list[dict[str, Any]] = [{"initialization.delta": d} for d in (0.1, 0.3, 0.5)]
    overrides += [{"refinement.tau": t} for t in TAUS[:-1]]
    overrides += [{"refinement.augmentations": s} for s in (["scale"], ["scale", "flip"])]
    overrides += [{"model.localizer": "tiny_deep"}]
    for seed in (0, 1):
        for values in overrides:
            config = override(base, {**values, "seed": seed})
            state, error = "done", None
            if seed == 1 and values.get("refinement.tau") == 0.0:
                state, error = "failed", "refinement, epoch 2: loss is inf; training diverged, lower the learning rate"
            elif seed == 1 and "model.localizer" in values:
                state, error = "failed", "its worker died"
            cells.append((values, config, state, error))
            if state == "done":
                figures = known(config) | ({"lchp_r": 3.0} if config.refinement.tau == 0 else {})
                store(storage, config, figures)
    write_sweep(storage, cells, base)
    return storage


def write_predicted(run: Path, right: Mapping[str, Sequence[bool]], *, truth: bool = True, first: int = 0) -> Path:
    """predictions.parquet of as many images as `right` has per result; the class is right in the first half."""
    n = len(next(iter(right.values())))
    box = np.array([0.2, 0.2, 0.8, 0.8])
    labels = np.arange(n) % 3
    top = (
        np.where((np.arange(n) < n // 2)[:, None], labels[:, None] + np.arange(3), labels[:, None] + np.arange(1, 4))
        % 4
    )
    gt = GroundTruth(np.tile(box, (n, 1, 1)), np.ones((n, 1), bool)) if truth else None
    boxes = {r: np.where(np.array(v)[:, None], box, box / 8) for r, v in right.items()}
    ids = tuple(str(i) for i in range(first, first + n))
    tables = [
        frame_table(ids, f, labels, top, np.full((n, 3), 0.3), boxes, {"confidence": np.full(n, 0.5)}, gt)
        for f in FRAMES
    ]
    run.mkdir(parents=True, exist_ok=True)
    write_predictions(run, pa.concat_tables(tables))
    return run


def golden_texts(storage: Path) -> dict[str, str]:
    """File name -> text, of the grid's tables."""
    from lchp.report.paper import read_paper
    from lchp.report.read import collect
    from lchp.report.tables.numbers import OF_PAPER, tables
    from lchp.report.tables.render import FORMATS, to_text

    made = tables(collect([storage]), PRESETS["parts"], read_paper(), OF_PAPER)
    table_4 = {f"table_4.{suffix}": render(made[3]) for suffix, render in FORMATS.items()}
    return {"tables.txt": "\n".join(map(to_text, made)), **table_4}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        texts = golden_texts(write_grid(Path(folder)))
    if "--write" in sys.argv[1:]:
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
    print({name: len(text) for name, text in texts.items()})
