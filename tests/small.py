"""A data set of a few drawn images in `folder` layout, and the config of a training on it that takes a second."""

from pathlib import Path

import numpy as np
from PIL import Image

from lchp.config import TrainConfig, override, preset
from lchp.data import parts

TRAIN, TEST, CLASSES = 80, 40, 4


def make_folder(root: Path) -> Path:
    """Writes `root`/train and `root`/test with boxes.csv: 32 and 16 images of 4 classes, 72 px; the first ones of
    `parts`."""
    rows = ["image,x1,y1,x2,y2"]
    for part, (name, count) in enumerate((("train", TRAIN), ("test", TEST))):
        for i in range(count):
            label = i % parts.CLASSES
            if label >= CLASSES:
                continue
            pixels, box = parts.draw(np.random.default_rng((0, part, i)), label, parts.Design())
            path = root / name / f"class_{label}" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            rows.append(f"{path.relative_to(root)}," + ",".join(f"{v:g}" for v in box))
    (root / "boxes.csv").write_text("\n".join(rows) + "\n")
    return root


def flags(root: Path, *, first: int = 2, second: int = 3) -> dict[str, object]:
    """Overrides of the preset `parts` for that data, with so many epochs per stage."""
    return {
        "data.name": "folder",
        "data.root": str(root),
        "data.cache": str(root / ".cache"),
        "data.resize": 36,
        "data.image_size": 32,
        "data.batch_size": 8,
        "initialization.epochs": first,
        "initialization.localizer_start": 0,
        "initialization.delta": 0.3,
        "initialization.lr": 0.02,
        "refinement.epochs": second,
        "refinement.tau": 0.2,
        "threads": 1,
        "device": "cpu",
    }


def config(root: Path, **epochs: int) -> TrainConfig:
    """The preset `parts` on that data."""
    return override(preset("parts"), flags(root, **epochs))
