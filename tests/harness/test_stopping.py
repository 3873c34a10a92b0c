"""A sweep that is stopped: its trainings write a checkpoint at their step, and its driver waits for it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trial import Trial

from lchp.files import runs
from lchp.files.locks import locked
from lchp.harness import stopping
from lchp.training import fit


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "EVERY", 0.01)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not come")


def test_a_training_writes_a_checkpoint_at_its_steps_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, halted = Trial(tmp_path / "straight"), Trial(tmp_path / "halted")
    assert straight.run() == "done"
    keeper = fit._keeper

    def told(training: Any, checkpoint: Path, identity: str, epoch: int, stop: Any) -> Any:
        keep = keeper(training, checkpoint, identity, epoch, stop)
        assert keep is not None

        def after_step(partial: Any) -> None:
            (halted.work / stopping.MARK).touch()
            until(lambda: stop.asked)
            keep(partial)

        return after_step

    with monkeypatch.context() as patch:
        patch.setattr(fit, "_keeper", told)
        with pytest.raises(IndexError):  # no report
            halted.run()
    assert halted.published() == []
    (checkpoint,) = (halted.work / halted.job.name / runs.CHECKPOINTS).glob("*.pt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["epoch"] == 0
    assert state["within"] is not None
    stopping.let_stop(
        stopping.Unfinished(halted.work), [halted.job.name]
    )  # the work folder is free, and the wait over at once
    stopping.go_on(stopping.Unfinished(halted.work))
    assert halted.run() == "done"
    mine, other = halted.published()[0] / runs.PREDICTIONS, straight.published()[0] / runs.PREDICTIONS
    assert mine.read_bytes() == other.read_bytes()


def test_a_trial_that_waits_for_its_driver_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, ended = Trial(tmp_path), threading.Event()
    monkeypatch.setattr(stopping, "_end", ended.set)

    def wait_for_the_driver() -> None:
        (trial.work / stopping.MARK).touch()
        until(ended.is_set)

    trial.event = wait_for_the_driver
    trial.run()


def test_the_driver_waits_for_work_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, free = threading.Event(), threading.Event()

    def training() -> None:
        with locked(tmp_path / "a.lock"):
            held.set()
            until((tmp_path / stopping.MARK).exists)
            free.set()

    thread = threading.Thread(target=training)
    thread.start()
    held.wait()
    stopping.let_stop(stopping.Unfinished(tmp_path), ["a", "never begun"])
    assert free.is_set()
    thread.join()
    monkeypatch.setattr(stopping, "GRACE", 0.2)
    with locked(tmp_path / "a.lock"):
        stopping.let_stop(stopping.Unfinished(tmp_path), ["a"])  # does not end: no wait is without an end
    stopping.let_stop(stopping.Unfinished(tmp_path / "gone"), ["a"])


def test_nothing_trains_and_nothing_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stopping.let_stop(stopping.Unfinished(tmp_path), [])
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""
