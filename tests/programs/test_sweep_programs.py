"""Sweeps as users start them, with a Ray of their own: killed, interrupted, on clusters. Everything here is slow."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small
from drained import drain, planned
from programs import finished_epochs, lines_of, program, result_of, start, wait_for, wait_until_gone

from lchp.files import runs
from lchp.harness import grid
from lchp.harness.cells import pinned
from lchp.harness.record import outcomes_of
from lchp.training.chain import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.make_folder(tmp_path_factory.mktemp("images"))


CELLS = grid({"initialization.delta": [0.2, 0.4], "refinement.tau": [0.0, 0.2]})
ONE = ("--max-concurrent", "1")
"""Where two trainings at once add nothing: each has a process of its own, which takes five seconds to start."""


def test_kill_the_driver_at_a_random_moment_and_resume(root: Path, tmp_path: Path) -> None:
    """SIGKILL anywhere between the first epoch and the end, then --resume: every cell's predictions equal, bitwise,
    those of a sweep that nothing disturbed; and the terminal shows our lines alone."""
    epochs = {"first": 4, "second": 4}
    script, storage = program(tmp_path, root, **epochs), tmp_path / "results"
    moment = random.SystemRandom().randint(1, 24)  # of 32 epochs
    print(f"kill after {moment} epochs")
    process = start(script, "--storage", str(storage), *ONE)
    wait_for(lambda: finished_epochs(storage) >= moment, process)
    assert process.poll() is None
    process.kill()
    process.communicate()  # its Ray processes may live on for seconds; what they do must not matter
    # in this order, since a process that lives on may publish its folder between the two lines
    begun = {p.name: runs.read_metrics(p) for p in storage.glob("sweeps/grid/work/*") if p.is_dir()}
    finished = {p.parent.name for p in storage.glob("store/*/*/DONE")}
    # as a user starts it, whose terminal this is
    resumed = [sys.executable, str(script), "--storage", str(storage), "--resume", *ONE]
    again = subprocess.Popen(
        resumed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path
    )
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "records:" in out
    assert "ray" not in out.replace(str(tmp_path), "").lower()
    ours = tuple(f"{kind} of " for kind in KINDS)
    assert [line for line in lines_of(err) if not line.startswith(ours)] == []
    wait_until_gone(again.pid)
    wait_until_gone(process.pid)
    found = result_of(storage)
    assert len(found) == 4
    done = runs.read_json(storage / "sweeps" / "grid" / "sweep.json")["jobs"]
    assert all(j["found"] for n, j in done.items() if n.split("-")[1] in finished)  # what was finished is kept
    for name, lines in begun.items():  # what was trained before the kill was not trained again
        kind, key = name.split("-")
        kept = lines[:-1]  # the last may lack its checkpoint; a folder may have been made and no more
        assert runs.read_metrics(storage / "store" / kind / key)[: len(kept)] == kept
    assert finished or any(begun.values())  # every classifier may be finished and nothing else have an epoch yet
    undisturbed = planned(tmp_path / "undisturbed", pinned(small.config(root, **epochs), gpu=False), CELLS)
    drain(undisturbed)
    assert {o.cell.key: (o.run / runs.PREDICTIONS).read_bytes() for o in outcomes_of(undisturbed) if o.run} == found


def test_ctrl_c_and_sigterm_end_at_once_and_say_how_to_go_on(root: Path, tmp_path: Path) -> None:
    script, storage = program(tmp_path, root, first=2000, second=1), tmp_path / "results"
    folder = storage / "sweeps" / "grid"

    def epochs() -> dict[str, list[dict[str, Any]]]:
        return {work.name: runs.read_metrics(work) for work in folder.glob("work/classifier-*") if work.is_dir()}

    def stopped(signum: int, status: int, *flags: str) -> dict[str, list[dict[str, Any]]]:
        """Starts the sweep, stops it once it has trained on; the epochs that it leaves."""
        before, begin = epochs(), time.monotonic()
        process = start(script, "--storage", str(storage), *flags)
        wait_for(lambda: any(len(v) > len(before.get(k, [])) for k, v in epochs().items()), process)
        told = time.monotonic()
        if signum == signal.SIGINT:
            with contextlib.suppress(ProcessLookupError):  # it may have ended before the last
                for _ in range(5):  # by somebody who does not wait
                    os.killpg(process.pid, signum)  # as a terminal does, to everybody in the foreground
                    time.sleep(0.2)
        else:
            process.send_signal(signum)  # as a batch system does, which knows the program alone
        out, err = process.communicate(timeout=200)
        assert "ray" not in out.replace(str(tmp_path), "").lower()  # it tells of workers that died there
        # Ray gets LEAVING twice; a loaded machine takes longer to stop, but to start as well
        assert time.monotonic() - told < max(60, told - begin)
        assert process.returncode == status
        lines = lines_of(err)
        assert len(lines) <= 2, err
        assert lines[0].startswith("stopping: trainings write a checkpoint") or len(lines) == 1  # one may have ended
        assert "stopped; finished epochs are kept, go on with: python" in lines[-1]
        assert lines[-1].endswith("--resume")
        wait_until_gone(process.pid)
        assert len(runs.read_json(folder / "sweep.json")["cells"]) == 4
        after = epochs()
        assert all(after[name][: len(lines)] == lines for name, lines in before.items())
        return after

    first = stopped(signal.SIGINT, 130, *ONE)
    second = stopped(signal.SIGTERM, 143, *ONE, "--resume")
    assert sum(map(len, second.values())) > sum(map(len, first.values()))


@pytest.mark.parametrize("part", ["gcs_server", "/raylet/raylet"])
def test_a_part_of_ray_that_dies_ends_the_sweep_with_one_line(root: Path, tmp_path: Path, part: str) -> None:
    script, storage = program(tmp_path, root, first=2000, second=1), tmp_path / "results"
    begin = time.monotonic()
    process = start(script, "--storage", str(storage), *ONE)
    wait_for(lambda: any(storage.glob("sweeps/grid/work/*/checkpoints/*.pt")), process)
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            if session == process.pid and part in (folder / "cmdline").read_text():
                os.kill(int(folder.name), signal.SIGKILL)
    told = time.monotonic()
    _, err = process.communicate(timeout=300)
    assert time.monotonic() - told < max(60, told - begin)
    assert process.returncode == 2
    lines = lines_of(err)
    assert len(lines) == 1, err
    assert lines[0].startswith("error: Ray's ")
    assert lines[0].endswith("finished epochs are kept, go on by --resume")
    wait_until_gone(process.pid)
    assert len(runs.read_json(storage / "sweeps" / "grid" / "sweep.json")["cells"]) == 4
