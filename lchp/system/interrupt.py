"""Ctrl-C, SIGTERM, SIGHUP: a training writes a checkpoint at its step's end and stops; all else stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal that ended the program; `status` is the exit status by which a shell knows it (130, 143 or 129), `kept`
    the run folder that a training goes on from."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum
        self.kept: Path | None = None


class Stop:
    """Whether someone asked to stop. `ask` notes a signal while `deferred`, and raises Interrupted otherwise."""

    def __init__(self) -> None:
        self._deferred = False
        self._signum: int | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal has come and was not answered yet."""
        return self._signum is not None

    def ask(self, signum: int = signal.SIGINT) -> None:
        """Asks to stop; who asks a second time does not want to wait for the step's end."""
        if not self._deferred or self.asked:
            raise Interrupted(signum)
        self._signum = signum

    def answer(self) -> None:
        """Raises Interrupted if someone asked."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside of the block signals wait for `answer`; they do no longer than to its end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.answer()


@contextmanager
def on_signals() -> Iterator[Stop]:
    """SIGNALS ask the given Stop. In the main thread only; elsewhere Python has no signals to handle."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, _frame: FrameType | None) -> None:
        stop.ask(signum)

    # who started the program in the background of a shell has SIGINT ignored, and means it
    mine = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    before: dict[int, Any] = {s: signal.signal(s, handle) for s in mine}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
