"""What a sweep costs as its cells grow, beyond its trainings: `python -m analysis.scaling [--cells 10 100 1000]`.

Each cell is one of two deltas and a tau on 80 images of the embedded set, one epoch per stage, a second or less of
training. Prints wall time, the harness's own time per cell (its share in that of the trainings' places), the driver's
memory and open files early and at the end (Linux only), and how long a table of the storage takes. Ray Tune gives a
training that waits for a new worker to any other worker that falls free, so that where trainings take less than a
worker's start (3 s) a second worker may come late, or not at all. The default takes about half an hour on two cores.

With `--kill-every 4` a training's process is killed (SIGKILL) every 4 to 8 seconds. Then every record is read and
checked: checksums, metrics computed again from the predictions, and the predictions of some cells, first those that
were hit, against those of a sweep that nobody disturbed. Lost records make the exit status 1.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tabulate import tabulate

from lchp.config import PRESETS, TrainConfig, override
from lchp.console import guarded
from lchp.data import parts
from lchp.evaluation.predictions import read_predictions, summarize
from lchp.files import runs

TRAIN, TEST = 80, 40
NAME = "scaling"
SAMPLE = 10
"""Cells whose predictions are compared with those of an undisturbed sweep."""


@dataclass(frozen=True)
class Watched:
    """The driver: resident memory in bytes and open files, by the share of cells that were done."""

    memory: int
    files: int
    share: float


@dataclass
class Measured:
    """One sweep."""

    wall: float
    training: float
    places: int
    early: Watched
    late: Watched
    kills: int
    restarts: int
    hit: int
    faults: list[str] = field(default_factory=list)


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


def drive(config: TrainConfig, cells: int, storage: Path, kill_every: float | None, results: Any) -> None:
    """Runs a sweep in this process, watches the process meanwhile and kills its workers, and checks the records."""
    from lchp.harness import Options, Sweep, run

    with open(os.devnull, "w") as null:  # Ray writes a paragraph for every dead worker
        os.dup2(null.fileno(), 1)
    seen: list[Watched] = []
    killed: list[int] = []
    done, page = threading.Event(), os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while not done.wait(1.0):
            finished = len(list((storage / "store" / "refinement").glob("*/DONE")))
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * page
            seen.append(Watched(memory, len(os.listdir("/proc/self/fd")), finished / cells))

    def kill(seconds: float) -> None:
        draw = random.Random(0)
        while not done.wait(draw.uniform(seconds, 2 * seconds)):
            workers = training_processes(storage)
            if workers:
                pid = draw.choice(workers)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    threads = [threading.Thread(target=watch, daemon=True)]
    if kill_every is not None:
        threads.append(threading.Thread(target=kill, args=(kill_every,), daemon=True))
    for thread in threads:
        thread.start()
    # two classifiers, so that two workers start together
    fields = [{"initialization.delta": (0.3, 0.5)[n % 2], "refinement.tau": round(n / cells, 6)} for n in range(cells)]
    begin = time.perf_counter()
    # a training of one epoch shows no progress that would start the count anew
    options = Options(storage, max_failures=2 if kill_every is None else 20)
    result = run(Sweep(NAME, config, fields), options)
    wall = time.perf_counter() - begin
    done.set()
    for thread in threads:
        thread.join()
    assert result.timing is not None
    attempts = {n: j["attempts"] for n, j in runs.read_json(result.folder / "sweep.json")["jobs"].items()}
    again = {name: tries - 1 for name, tries in attempts.items() if tries > 1}
    measured = Measured(
        wall,
        result.timing.training,
        result.timing.places,
        next((s for s in seen if s.share >= 0.2), seen[-1]),
        seen[-1],
        len(killed),
        sum(again.values()),
        len(again),
    )
    measured.faults += check(result, cells)
    if kill_every is not None:
        measured.faults += compare(result, config, set(again), storage.with_name(f"{storage.name}-undisturbed"))
    results.put(measured)


def training_processes(storage: Path) -> list[int]:
    """The living processes, started from this one, that hold the lock of a training or held it a moment ago."""
    found = set()
    for lock in (storage / "sweeps" / NAME / "work").glob("*.lock"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # gone, or being written
            if time.time() - lock.stat().st_mtime > 60:  # its process may be gone, and the number another's
                continue
            pid = int(lock.read_text().split()[1])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if os.getsid(pid) == os.getsid(0) and command.startswith(b"ray::"):
                found.add(pid)
    return sorted(found)


def check(result: Any, cells: int) -> list[str]:
    """What is wrong with a sweep's records; nothing, it is hoped."""
    from lchp.harness.store import Store
    from lchp.training.chain import KINDS

    faults = [f"{c.cell.overrides}: {c.state} ({c.error})" for c in result.cells if c.state != "done"]
    faults += [f"{len(result.cells)} cells instead of {cells}"] if len(result.cells) != cells else []
    store = Store(result.storage)
    for cell in result.cells:
        chain = cell.cell.chain
        for end in (*(chain.until(link.kind) for link in chain.links[:-1]), chain):
            if store.find(end.last.kind, end.record, look_only=True) is None:
                faults.append(f"{store.path(end.last.kind, end.record)}: missing or damaged")
        if cell.run is None:
            continue
        computed = summarize(read_predictions(cell.run))
        if any(cell.summary.get(name) != value for name, value in computed.items()):
            faults.append(f"{cell.run}: its summary is not that of its predictions")
    left = {p.name for p in result.folder.iterdir()} - {"sweep.json", "lock"}
    faults += [f"{result.folder / name}: left over" for name in sorted(left)]
    kinds = [result.storage / "store" / kind for kind in KINDS]
    faults += [f"{p}: left over" for folder in kinds for p in folder.rglob(".*")]
    if (result.storage / "store" / "damaged").exists():
        faults.append(f"{result.storage}: has damaged results")
    return faults


def compare(result: Any, config: TrainConfig, hit: set[str], storage: Path) -> list[str]:
    """Cells whose predictions differ by a bit from those of an undisturbed sweep: of `SAMPLE`, first those hit."""
    from lchp.harness import Options, Sweep, run

    order = sorted(result.cells, key=lambda c: c.cell.job_name(True) not in hit)
    wanted = {c.cell.key: c.run for c in order[:SAMPLE] if c.run is not None}
    again = run(Sweep(NAME, config, [c.cell.overrides for c in order[:SAMPLE]]), Options(storage))
    faults = []
    for cell in again.cells:
        run_folder = wanted.get(cell.cell.key)
        if cell.run is None or run_folder is None:
            faults.append(f"{cell.cell.overrides}: cannot be compared")
        elif (cell.run / runs.PREDICTIONS).read_bytes() != (run_folder / runs.PREDICTIONS).read_bytes():
            faults.append(f"{cell.cell.overrides}: other predictions than undisturbed")
    return faults


def main() -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--kill-every", type=float, metavar="SECONDS", help="kill a training's process so often")
    arguments = parser.parse_args()
    if min(arguments.cells) < 1 or (arguments.kill_every is not None and arguments.kill_every <= 0):
        parser.error("--cells and --kill-every take numbers above 0")
    context, rows, faults = multiprocessing.get_context("spawn"), [], []
    with tempfile.TemporaryDirectory() as folder:
        config = tiny(Path(folder) / "images")
        for cells in arguments.cells:
            storage, results = Path(folder) / f"cells{cells}", context.SimpleQueue()
            driver = context.Process(target=drive, args=(config, cells, storage, arguments.kill_every, results))
            driver.start()
            driver.join()
            if driver.exitcode:
                raise SystemExit(f"the sweep of {cells} cells failed")
            found: Measured = results.get()
            begin = time.perf_counter()
            made = tables_of(storage)
            seconds = time.perf_counter() - begin
            assert made
            own = (found.wall - found.training / found.places) / cells
            row = [cells, found.wall, found.training, found.places, own]
            row += [found.early.memory / 1e6, found.late.memory / 1e6, found.early.files, found.late.files, seconds]
            rows.append([*row, found.kills, found.hit, found.restarts, len(found.faults)])
            faults += found.faults
    head = ["cells", "wall (s)", "trainings (s)", "at once", "harness per cell (s)", "driver MB at 20 %", "at the end"]
    head += ["open files at 20 %", "at the end", "tables (s)", "kills", "trainings hit", "started again", "faults"]
    formats = ("d", ".1f", ".1f", "d", ".3f", ".0f", ".0f", "d", "d", ".2f", "d", "d", "d", "d")
    print(tabulate(rows, head, floatfmt=formats))
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def tables_of(storage: Path) -> str:
    """Table 4 of a storage, as text."""
    from lchp.report.tables.write import render_tables

    return render_tables(storage, PRESETS["folder"], (4,))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
