"""A thread that sends to one tracker, so that one which is slow or away costs a training next to nothing."""

import logging
import threading
from collections import deque
from collections.abc import Callable

from lchp.errors import printable, reason

log = logging.getLogger(__name__)

Task = Callable[[], object]


class Sender:
    """Carries out tasks in their order, one at a time. One that raises costs the tasks after it nothing; the first
    failure is a warning, those after it say nothing more."""

    def __init__(self, tracker: str) -> None:
        self._tracker = tracker
        self._changed = threading.Condition()
        self._tasks = deque[Task]()
        self._busy = self._failed = self._warned = self._over = False
        self._ended = 0
        threading.Thread(target=self._work, name=f"to {tracker}", daemon=True).start()

    def put(self, task: Task) -> None:
        """Adds a task, unless the same one waits already."""
        with self._changed:
            if task not in self._tasks:
                self._tasks.append(task)
                self._changed.notify_all()

    def settle(self, patience: float) -> None:
        """Waits until all tasks are carried out: not past one that fails, nor for one that takes longer than `patience`
        seconds. Those that are left are dropped."""
        with self._changed:
            while self._tasks or self._busy:
                before = self._ended
                if not self._changed.wait_for(lambda: self._ended != before, patience):  # noqa: B023  (waited for here)
                    self._warn(f"has not answered for {patience:.0f} s")
                    self._tasks.clear()
                    return
                if self._failed:
                    self._tasks.clear()

    def close(self) -> None:
        """Ends the thread after the task that it is at."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._over)
                if not self._tasks:
                    return
                task, self._busy = self._tasks.popleft(), True
            fault = None
            try:
                task()
            except (Exception, SystemExit) as error:  # whatever a client library raises
                fault = reason(error)
            with self._changed:
                self._busy, self._failed = False, fault is not None
                self._ended += 1
                if fault is not None:
                    self._warn(fault)
                self._changed.notify_all()

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "--track %s: %s; the training goes on and its records are whole; what is missing there is sent by "
                "--resume --track %s",
                self._tracker,
                printable(what),
                self._tracker,
            )
