"""What the harness costs and what sharing saves: `python -m analysis.harness_cost [FLAGS OF THE SWEEP]`.

Runs sweeps/delta_tau.py twice, as a user would, in storages of their own: with --no-share and with sharing. Prints wall
time (of the whole program, Ray's start included), the trainings' own time, and both ratios. Takes twenty minutes on two
cores, which should have nothing else to do.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lchp.console import guarded
from lchp.files.runs import read_json

SWEEP = Path(__file__).parents[1] / "sweeps" / "delta_tau.py"


def measure(storage: Path, arguments: list[str]) -> tuple[float, dict[str, Any]]:
    """Seconds that the sweep's program took, and the timing in its record. Raises CalledProcessError where it fails."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, SWEEP, "--storage", storage, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin, read_json(storage / "sweeps" / "delta_tau" / "sweep.json")["timing"]


def main(arguments: list[str]) -> int:
    """Prints the table; the exit status."""
    rows, walls = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (("--no-share", ["--no-share"]), ("sharing", [])):
            wall, timing = measure(Path(folder) / name.strip("-"), [*flags, *arguments])
            ideal = timing["training"] / timing["places"]
            walls.append(wall)
            rows.append([name, wall / 60, timing["training"] / 60, timing["places"], 100 * (wall / ideal - 1)])
    head = ["", "wall time (minutes)", "trainings' own time (minutes)", "at once", "overhead (%)"]
    ratio = walls[0] / walls[1]
    print(f"{tabulate(rows, head, floatfmt=('', '.1f', '.1f', 'd', '.1f'))}\n\nsharing is {ratio:.2f} times faster")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
