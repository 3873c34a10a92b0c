"""Sweeps as programs of their own: what tests start, kill and look at."""

import contextlib
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import small

from lchp.files import runs

PROGRAM = """
import sys
from lchp.config import override, preset
from lchp.harness import exit_program, grid, main

if __name__ == "__main__":
    axes = {{"initialization.delta": [0.2, 0.4], "refinement.tau": [0.0, 0.2]}}
    exit_program(main("grid", lambda _: grid(axes), argv=[*{flags!r}, *sys.argv[1:]]))
"""


def program(folder: Path, root: Path, **epochs: int) -> Path:
    """A user's own sweep script over CELLS."""
    flags: list[str] = []
    for name, value in small.flags(root, **epochs).items():
        if name in ("initialization.delta", "refinement.tau"):  # the grid's own
            continue
        flags += [f"--{name.replace('_', '-')}", str(value)]
    path = folder / "grid.py"
    path.write_text(textwrap.dedent(PROGRAM.format(flags=flags)))
    return path


def start(script: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=script.parent,
        **more,
    )


def of_session(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def wait_until_gone(session: int, seconds: float = 100, *, besides: str | None = None) -> None:
    """Waits until no process of a session lives, or none without the word `besides` in its command line."""
    deadline = time.monotonic() + seconds
    while left := [line for line in of_session(session) if besides is None or besides not in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def finished_epochs(storage: Path) -> int:
    """Epochs that a storage's trainings have finished so far. A result that is being published is counted or not."""
    count = 0
    for metrics in [*storage.glob("sweeps/*/work/*/metrics.jsonl"), *storage.glob("store/*/*/metrics.jsonl")]:
        with contextlib.suppress(OSError):
            count += metrics.read_bytes().count(b"\n")
    return count


def lines_of(err: str) -> list[str]:
    """Lines of a sweep's standard error, without what it says where a machine is slow."""
    slow = ("no training has begun for ", "Ray did not start within its own limit ")
    return [line for line in err.splitlines() if line.strip() and not line.startswith(slow)]


def result_of(storage: Path, name: str = "grid") -> dict[str, bytes]:
    record = runs.read_json(storage / "sweeps" / name / "sweep.json")
    assert {c["state"] for c in record["cells"]} == {"done"}, [c["error"] for c in record["cells"]]
    return {c["key"]: (storage / c["run"] / runs.PREDICTIONS).read_bytes() for c in record["cells"]}


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
