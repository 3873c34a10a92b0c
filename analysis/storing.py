"""What a local store costs, beside the code of another checkout: `python analysis/storing.py --against CHECKOUT`.

Publishes results in a folder (0.3 MB each) and finds them again, checksums verified; plans a sweep of as many cells,
and writes its record. Each checkout has a process of its own; they take turns of a second or less, so that both see the
same machine. Prints medians, in milliseconds, and the median of the turns' ratios. Takes a minute or less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lchp.config import PRESETS
from lchp.console import guarded
from lchp.files import runs
from lchp.harness import Options, Sweep, grid
from lchp.harness.store import PREDICTED, RESULT, Store
from lchp.harness.sweep import make_plan

try:
    from lchp.harness.record import write_record
except ImportError:  # an older checkout
    from lchp.harness.sweep import write_record  # pyright: ignore[reportAttributeAccessIssue]

NUMBER = 20
"""Results, or cells, of a turn."""


def work_folder(folder: Path, key: str) -> Path:
    """A finished classifier's run folder, of which a store reads no more than that it is one."""
    runs.make_folder(folder / runs.CHECKPOINTS)
    for name in (*RESULT, *PREDICTED):
        (folder / name).write_text(200 * name)
    (folder / runs.CHECKPOINTS / "initialization.pt").write_bytes(os.urandom(300_000))
    links = {"classifier": {"key": key, "run": None}}
    runs.write_json(folder / runs.ENVIRONMENT, {"class_names": ["a"], "links": links})
    return folder


def turn(storage: Path, number: int) -> dict[str, float]:
    """Milliseconds of each thing, by the lchp that is imported."""
    keys = [f"{n:016x}" for n in range(number * NUMBER, (number + 1) * NUMBER)]
    works = [work_folder(storage / f"work-{key}", key) for key in keys]
    store, times = Store(storage), [time.perf_counter()]
    for work, key in zip(works, keys, strict=True):
        store.publish(work, "classifier", key)
    times.append(time.perf_counter())
    for key in keys:
        assert store.find("classifier", key) is not None
    times.append(time.perf_counter())
    cells = grid({"refinement.tau": [(n + 1) / (NUMBER + 1) for n in range(NUMBER)]})
    plan = make_plan(Sweep(f"storing-{number}", PRESETS["parts"].config, cells), Options(storage))
    times.append(time.perf_counter())
    runs.make_folder(plan.folder)
    write_record(plan)
    times.append(time.perf_counter())
    published, found, planned, written = (1000 * (times[i + 1] - times[i]) for i in range(4))
    return {
        "publish a result": published / NUMBER,
        "find a result": found / NUMBER,
        f"plan {NUMBER} cells": planned,
        f"record {NUMBER} cells": written,
    }


def serve() -> None:
    """Takes a turn for each line that comes in, and says what it took."""
    with tempfile.TemporaryDirectory() as folder:
        for number, _ in enumerate(sys.stdin):
            print(json.dumps(turn(Path(folder) / "results", number)), flush=True)


def turns(checkout: Path) -> Iterator[dict[str, float]]:
    """Those of a checkout's own process, without end. The first, which imports, is left out."""
    command = [sys.executable, __file__, "--serve"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.absolute())}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(sys.maxsize):
            print(file=process.stdin, flush=True)
            said = json.loads(process.stdout.readline())
            if number:
                yield said


def main() -> int:
    """Prints the table; the exit status."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = flags.add_mutually_exclusive_group(required=True)
    what.add_argument("--against", type=Path, help="folder of another checkout")
    what.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    flags.add_argument("--turns", type=int, default=50, help="of each checkout")
    given = flags.parse_args()
    if given.serve:
        serve()
        return 0
    there, here = turns(given.against), turns(Path(__file__).parents[1])
    pairs = []
    for number in range(given.turns):
        one, two = (there, here) if number % 2 else (here, there)
        taken = {one: next(one), two: next(two)}
        pairs.append((taken[there], taken[here]))
    rows = []
    for name in pairs[0][0]:
        ratios = statistics.quantiles([mine[name] / its[name] for its, mine in pairs], n=4)
        its, mine = (statistics.median(pair[i][name] for pair in pairs) for i in (0, 1))
        rows.append([name, its, mine, ratios[1], f"{ratios[0]:.2f}-{ratios[2]:.2f}"])
    print(tabulate(rows, ["", f"{given.against} (ms)", "here (ms)", "ratio", "quartiles"], floatfmt=".2f"))
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
