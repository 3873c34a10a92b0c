"""Trainings in processes of their own that die at a chosen moment: what tests start, kill and resume."""

import contextlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lchp.config import TrainConfig

# forked from a process that has imported all that a training imports, and has no threads: starts in milliseconds
CONTEXT = multiprocessing.get_context("forkserver")
PARTS = ["lchp.cli", "lchp.harness.tune", "lchp.training.run"]
CONTEXT.set_forkserver_preload([*PARTS, "killed", "cv2", "pandas", "pyarrow.compute", "torch._dynamo"])


@dataclass
class Moments:
    """Counts the moments of a training at which a process may be killed; `at` one of them it does as told."""

    at: int | None = None
    act: Callable[[], object] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    passed: int = 0

    def come(self) -> None:
        """One moment."""
        if self.passed == self.at:
            self.act()
        self.passed += 1


def watch(moments: Moments, *, writing: bool = True) -> None:
    """Makes the begin and the end of every optimizer's step a moment; and, with `writing`, what writing a file consists
    of: half of a checkpoint written, a file written but not synced, synced but not renamed, renamed."""
    step, save, fsync, replace, link = torch.optim.SGD.step, torch.save, os.fsync, os.replace, os.link

    def stepped(self: Any, *args: Any, **more: Any) -> Any:
        moments.come()
        out = step(self, *args, **more)
        moments.come()
        return out

    def saved(state: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(state, whole)
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        file.flush()
        moments.come()
        file.write(whole.getvalue()[half:])

    def around(call: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            moments.come()
            return call(*args, **more)

        return wrapped

    torch.optim.SGD.step = stepped
    if not writing:
        return
    torch.save, os.fsync, os.replace, os.link = saved, around(fsync), around(replace), around(link)


def body(config: TrainConfig, run: Path, at: int | None, count: Any, save_every: float) -> None:
    """Trains or resumes `run`, killed at moment `at`; tells how many moments there were. save_every: seconds of an
    epoch between two checkpoints."""
    from lchp.training import fit as loop
    from lchp.training.run import train

    loop._SAVE_EVERY = save_every
    moments = Moments(at)
    watch(moments)
    train(config, output=run, resume=(run / "config.json").exists())
    count.value = moments.passed


def command(arguments: list[str], at: int, signum: int, said: Path) -> None:
    """`lchp` with these arguments, sent a signal at moment `at` of its steps; ends with its exit status. Its messages
    go to the file `said`."""
    from lchp.cli import main

    watch(Moments(at, lambda: os.kill(os.getpid(), signum)), writing=False)
    with said.open("w") as file, contextlib.redirect_stderr(file):
        status = main(arguments)
    raise SystemExit(status)


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that runs `target`."""
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    return process
