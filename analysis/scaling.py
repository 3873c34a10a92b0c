"""What a sweep costs as its cells grow, beyond its trainings: `python -m analysis.scaling [--cells 10 100 1000]`.

Each cell is a tau on 80 images of the embedded set, one epoch per stage, a second or less of training. Prints wall
time, the harness's own time per cell, the driver's memory and open files early and at the end (Linux only), and how
long a table of the storage takes. The default takes about half an hour on two cores.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image
from tabulate import tabulate

from lchp.config import PRESETS, TrainConfig, override
from lchp.data import parts

TRAIN, TEST = 80, 40


def tiny(root: Path) -> TrainConfig:
    """Images of the embedded set as files, and a recipe for them that takes a second."""
    data = parts.load(0, TRAIN, TEST)
    for name, split in (("train", data.train), ("test", data.test)):
        assert split.images is not None
        for i, label in enumerate(split.labels):
            path = root / name / f"class_{label}" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[i]).save(path)
    fields: dict[str, Any] = {"data.name": "folder", "data.root": str(root), "data.cache": str(root / ".cache")}
    fields |= {"initialization.epochs": 1, "initialization.localizer_start": 0, "refinement.epochs": 1}
    return override(PRESETS["parts"].config, fields | {"device": "cpu", "threads": 1})


def drive(config: TrainConfig, cells: int, storage: Path, results: Any) -> None:
    """Runs a sweep in this process and watches the process meanwhile."""
    from lchp.harness import Options, Sweep, run

    seen: list[tuple[float, int, int]] = []  # share of the cells done, resident memory in bytes, open files
    done, page = threading.Event(), os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while not done.wait(1.0):
            finished = len(list((storage / "store" / "stage2").glob("*/DONE")))
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * page
            seen.append((finished / cells, memory, len(os.listdir("/proc/self/fd"))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    taus = [{"refinement.tau": round(n / cells, 6)} for n in range(cells)]
    begin = time.perf_counter()
    result = run(Sweep("scaling", config, taus), Options(storage))
    wall = time.perf_counter() - begin
    done.set()
    watcher.join()
    assert not result.failed
    assert result.timing is not None
    early = next((s for s in seen if s[0] >= 0.2), seen[-1])
    results.put((wall, result.timing.training, result.timing.places, early[1:], seen[-1][1:]))


def main() -> str:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        config = tiny(Path(folder) / "images")
        for cells in arguments.cells:
            storage, results = Path(folder) / f"cells{cells}", context.SimpleQueue()
            driver = context.Process(target=drive, args=(config, cells, storage, results))
            driver.start()
            driver.join()
            if driver.exitcode:
                raise SystemExit(f"the sweep of {cells} cells failed")
            wall, training, places, early, late = results.get()
            begin = time.perf_counter()
            made = tables_of(storage)
            seconds = time.perf_counter() - begin
            own = (wall - training / places) / cells
            rows.append([cells, wall, training, places, own, early[0] / 1e6, late[0] / 1e6, early[1], late[1], seconds])
            assert made
    head = ["cells", "wall (s)", "trainings (s)", "at once", "harness per cell (s)", "driver MB at 20 %", "at the end"]
    head += ["open files at 20 %", "at the end", "tables (s)"]
    return tabulate(rows, head, floatfmt=("d", ".1f", ".1f", "d", ".3f", ".0f", ".0f", "d", "d", ".2f"))


def tables_of(storage: Path) -> str:
    """Table 4 of a storage, as text."""
    from lchp.report.making import render_tables

    return render_tables(storage, PRESETS["folder"], (4,), Path(__file__).with_name("paper.csv"))


if __name__ == "__main__":
    print(main())
