"""Sweeps as programs of their own: what tests start, kill and look at."""

import contextlib
import json
import os
import runpy
import signal
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import killed
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


@dataclass(frozen=True)
class Program:
    """A script that runs in a process and a session of its own, to be handled as a Popen. What it writes goes into
    files."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, once it has ended."""
        self.process.join(timeout)
        assert self.returncode is not None, f"runs after {timeout} s: {self.err.read_text()}"
        return self.out.read_text(), self.err.read_text()


def start(script: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Program:
    """As `python SCRIPT ARGUMENTS`, forked from a process that has imported what a sweep imports, which takes five
    seconds."""
    environment = dict(os.environ if env is None else env)
    said = [script.parent / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
    return Program(killed.start(_run, script, arguments, environment, *said), *said)


def run_code(folder: Path, code: str) -> Any:
    """Runs a program of these lines to its end, which imports what tests import; what its last line of output says,
    which is JSON. Nothing of it is left."""
    script = folder / "cluster.py"
    script.write_text(textwrap.dedent(code))
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = start(script, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    wait_until_gone(process.pid)
    return json.loads(out.splitlines()[-1])


def _run(script: Path, arguments: tuple[str, ...], environment: dict[str, str], *said: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has the suite in the background
    os.chdir(script.parent)
    for number, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[:0] = [str(script), *arguments], [str(script.parent)]
    runpy.run_path(str(script), run_name="__main__")


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


def wait_for(condition: Any, process: Program, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
