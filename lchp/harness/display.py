"""One live display of a sweep: cells done, running and failed, the best so far, and the time left."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lchp.harness.schedule import JobSchedule, Progress
from lchp.system.progress import tqdm

log = logging.getLogger(__name__)


def weight(progress: Progress, epochs: int) -> float:
    """Work of a job's first `epochs` epochs, in forward passes per image."""
    job = progress.job
    return job.cost * epochs / job.epochs if job.epochs else 0.0


@dataclass
class Display:
    """A bar where there is a terminal, a line per finished training where there is none.

    describe(progress) names a cell's job; cells() counts (done, failed, all); best() is a text, or nothing.
    """

    schedule: JobSchedule
    cells: Callable[[], tuple[int, int, int]]
    best: Callable[[], str]
    describe: Callable[[Progress], str]
    show: bool = True
    bar: Any = None
    begin: float = field(default_factory=time.monotonic)
    before: float = 0.0
    shown: set[str] = field(default_factory=set)

    def open(self) -> None:
        """Starts drawing."""
        self.before = self._worked()
        drawn = self.show and sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=100.0, bar_format="{desc} |{bar}| {percentage:3.0f} %{postfix}", disable=not drawn)
        self.refresh()

    def changed(self, progress: Progress) -> None:
        """Shows the news of a job."""
        if progress.state in ("done", "failed", "stopped") and progress.job.name not in self.shown and self.show:
            self.shown.add(progress.job.name)
            if progress.state == "failed":
                tqdm.write(f"failed: {self.describe(progress)}: {progress.error}", file=sys.stderr)
            elif self.bar is not None and self.bar.disable:
                seconds = progress.facts.get("seconds")
                took = "" if seconds is None else f" in {seconds:.0f} s"
                left = self._left(self._total(), self._worked())
                tqdm.write(f"{self.describe(progress)} {progress.state}{took}; {self._line()}; {left}", file=sys.stderr)
        self.refresh()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self.show:
            tqdm.write(line, file=sys.stderr)
        else:
            log.warning("%s", line)

    def refresh(self) -> None:
        """Draws again."""
        if self.bar is None or self.bar.disable:
            return
        total, worked = self._total(), self._worked()
        self.bar.set_description_str(self._line(), refresh=False)
        self.bar.set_postfix_str(self._left(total, worked), refresh=False)
        self.bar.n = 100 * worked / total if total else 100.0
        self.bar.refresh()

    def close(self) -> None:
        """Ends drawing."""
        if self.bar is not None:
            self.bar.close()

    def _line(self) -> str:
        done, failed, total = self.cells()
        running = sum(p.state == "running" for p in self.schedule.jobs.values())
        best = self.best()
        text = f"cells {done}/{total} done, {failed} failed; running {running}"
        return f"{text}; best {best}" if best else text

    def _left(self, total: float, worked: float) -> str:
        new = worked - self.before
        if new <= 0:
            return "time left ?"
        left = (total - worked) * (time.monotonic() - self.begin) / new
        return f"time left {tqdm.format_interval(left)}"

    def _total(self) -> float:
        return sum(weight(p, p.job.epochs) for p in self.schedule.jobs.values())

    def _worked(self) -> float:
        over = ("done", "failed", "stopped", "idle")
        return sum(weight(p, p.job.epochs if p.state in over else p.epoch) for p in self.schedule.jobs.values())
