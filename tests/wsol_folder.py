"""Small folders laid out as wsolevaluation's, for the tests of the data set and of `lchp score`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]


def write_lists(
    folder: Path,
    labels: Mapping[str, int],
    sizes: Mapping[str, tuple[int, int]],
    boxes: Mapping[str, Sequence[Box]],
) -> Path:
    """The four lists of a split; boxes are inclusive px."""
    folder.mkdir(parents=True)
    (folder / "image_ids.txt").write_text("".join(f"{i}\n" for i in labels))
    (folder / "class_labels.txt").write_text("".join(f"{i},{c}\n" for i, c in labels.items()))
    (folder / "image_sizes.txt").write_text("".join(f"{i},{w},{h}\n" for i, (w, h) in sizes.items()))
    lines = [f"{i},{','.join(map(str, box))}\n" for i, each in boxes.items() for box in each]
    (folder / "localization.txt").write_text("".join(lines))
    return folder


def write_clone(root: Path, name: str = "CUB", per_class: Mapping[str, int] | None = None) -> Path:
    """Lists and images of two classes, one square per image in the class's colour; `per_class`: split -> images."""
    rng = np.random.default_rng(0)
    for split, count in (per_class or {"train": 6, "val": 2, "test": 3}).items():
        labels, sizes, boxes = {}, {}, {}
        for c, folder in enumerate(("001.Red", "002.Blue")):
            for i in range(count):
                image_id = f"{folder}/{split}{i}.jpg"
                pixels = rng.integers(90, 150, (40, 48, 3), dtype=np.uint8)
                x, y = (int(v) for v in rng.integers(2, 20, 2))
                pixels[y : y + 16, x : x + 20] = (240, 20, 20) if c == 0 else (20, 20, 240)
                path = root / "dataset" / name / image_id
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, quality=95, subsampling=0)
                labels[image_id], sizes[image_id] = c, (48, 40)
                boxes[image_id] = [(x, y, x + 19, y + 15)]
        write_lists(root / "metadata" / name / split, labels, sizes, boxes)
    return root
