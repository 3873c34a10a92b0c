"""A small data set of the user's own images, a config that trains on it in a second, and what two such runs share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lchp.config import TrainConfig, override, preset
from lchp.files import runs
from lchp.training.chain import STAGES


def write_images(root: Path, classes: int = 3, train: int = 8, test: int = 3, *, boxes: bool = True) -> Path:
    """One coloured square per image on grey noise; the colour is the class. Layout of the `folder` data set."""
    rng = np.random.default_rng(0)
    rows = ["image,x1,y1,x2,y2"]
    for split, count in (("train", train), ("test", test)):
        for c in range(classes):
            for i in range(count):
                image = rng.integers(90, 150, (40, 48, 3), dtype=np.uint8)
                x, y = rng.integers(2, 20, 2)
                w, h = rng.integers(12, 20, 2)
                image[y : y + h, x : x + w] = np.eye(3, dtype=np.uint8)[c % 3] * (250 - 60 * (c // 3))
                path = root / split / f"c{c}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
                rows.append(f"{split}/c{c}/{i}.png,{x},{y},{x + w},{y + h}")
    if boxes:
        (root / "boxes.csv").write_text("\n".join(rows) + "\n")
    return root


def small_values(root: Path) -> dict[str, Any]:
    """What makes the preset `cub` small and of the user's own images, by dotted name."""
    return {
        "data.name": "folder",
        "data.root": str(root),
        "data.resize": 36,
        "data.image_size": 32,
        "data.batch_size": 8,
        "data.cache": "off",
        "model.classifier": "tiny",
        "model.localizer": "tiny",
        "model.attention_maps": 4,
        "model.pretrained": False,
        "initialization.epochs": 2,
        "initialization.lr": 0.02,
        "initialization.delta": 0.5,
        "refinement.epochs": 2,
        "refinement.tau": 0.3,
        "evaluation.batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
    }


def small_config(root: Path, values: dict[str, Any] | None = None) -> TrainConfig:
    """The small config, with other values by dotted name."""
    return override(preset("cub"), small_values(root) | (values or {}))


def cached_config(root: Path, values: dict[str, Any] | None = None) -> TrainConfig:
    """The small config for many trainings on the same images, which are decoded once."""
    return small_config(root, {"data.cache": str(root / ".cache")} | (values or {}))


def small_flags(values: dict[str, Any]) -> list[str]:
    """Values by dotted name as the flags of `lchp train` over the preset `cub`."""
    out = ["--preset", "cub"]
    for name, value in values.items():
        section, _, leaf = name.replace("_", "-").rpartition(".")
        flag = f"--{section}." if section else "--"
        out += [f"{flag}{'' if value else 'no-'}{leaf}"] if isinstance(value, bool) else [f"{flag}{leaf}", str(value)]
    return out


def predictions(run: Path) -> bytes:
    return (run / "predictions.parquet").read_bytes()


def stages_of(run: Path) -> tuple[str, ...]:
    """The links that a run folder holds."""
    return tuple(stage for stage in STAGES.values() if (run / "checkpoints" / f"{stage}.pt").is_file())


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / f"{stage}.pt", weights_only=True)
    return {f"{name}.{k}": v for name, module in state["modules"].items() for k, v in module.items()}


def assert_same_run(one: Path, other: Path) -> None:
    """Bitwise: predictions, summary, weights, and the metrics of each epoch, of the links that `one` has trained."""
    assert predictions(one) == predictions(other)
    assert (one / "summary.json").read_text() == (other / "summary.json").read_text()
    for stage in stages_of(one):
        a, b = weights(one, stage), weights(other, stage)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)

    def metrics(run: Path) -> list[Any]:
        lines = [m for m in runs.read_metrics(run) if m["stage"] in stages_of(one)]
        return [{k: v for k, v in m.items() if "second" not in k} for m in lines]

    assert metrics(one) == metrics(other)
    assert metrics(one)
