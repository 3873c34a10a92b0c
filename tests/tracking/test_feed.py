"""What a tracker gets of a run, and that one which is away or slow costs a training nothing; without any client."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lchp import TrainConfig
from lchp.errors import ConfigError
from lchp.files import runs
from lchp.tracking import feed as feeds
from lchp.tracking import follow, required
from lchp.tracking.feed import Feed, Picture, Subject, history
from lchp.tracking.sender import Sender

PIXELS = np.zeros((4, 4, 3), np.uint8)


@dataclass
class Fake:
    """A tracker that keeps what it gets, in order; `away`: raises instead."""

    away: bool = False
    runs: dict[str, list[Any]] = field(default_factory=dict)
    hear: Callable[[], object] = lambda: None

    def open_run(self, _subject: Subject, known: str | None) -> "FakeRun":
        self.ask()
        new = known not in self.runs
        self.runs.setdefault(name := f"run {len(self.runs)}" if new else str(known), [])
        return FakeRun(name, new, self)

    def ask(self) -> None:
        self.hear()
        if self.away:
            raise ConnectionError("the server refused\nand more")


@dataclass
class FakeRun:
    id: str
    new: bool
    tracker: Fake

    def _get(self, *what: Any) -> None:
        self.tracker.ask()
        self.tracker.runs[self.id].extend(what)

    def epochs(self, lines: Sequence[Mapping[str, Any]], before: int) -> None:
        self._get(*((before + i, line["stage"], line["epoch"]) for i, line in enumerate(lines)))

    def picture(self, stage: str, picture: Picture, _before: int) -> None:
        self._get((stage, picture.epoch, "picture"))

    def summary(self, figures: Mapping[str, float], files: Sequence[Path]) -> None:
        self._get(dict(figures), [file.name for file in files])

    def close(self, ending: str) -> None:
        self._get(ending)


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(feeds, "client_of", lambda _: fake)
    return fake


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that takes its classifier from another folder."""
    other, run = tmp_path / "other", tmp_path / "run"
    for folder in (other, run):
        folder.mkdir()
    place = {"classifier": {"key": "a", "run": str(other)}, "localizer": {"key": "b", "run": None}}
    runs.write_json(other / runs.ENVIRONMENT, {"class_names": ["a"]})
    runs.write_json(run / runs.ENVIRONMENT, {"class_names": ["a"], "links": place})
    for epoch in (1, 2):
        runs.append_metrics(other, {"stage": "initialization", "epoch": epoch, "loss": 0.5})
    return run


def subject(run: Path) -> Subject:
    notes = run / runs.TRACKERS / "mlflow.json"
    return Subject(run, "n", None, TrainConfig(), {}, notes, run, lambda: None)


def add(run: Path, epoch: int) -> None:
    runs.append_metrics(run, {"stage": "regression", "epoch": epoch, "loss": 0.25})


FIRST = [(0, "initialization", 1), (1, "initialization", 2)]


def test_each_line_of_every_link_is_sent_once(tracker: Fake, run: Path) -> None:
    feed = Feed("mlflow", subject(run))
    feed.update()
    assert tracker.runs == {"run 0": FIRST}
    add(run, 1)
    feed.update()
    feed.update()
    again = Feed("mlflow", subject(run))  # another session
    add(run, 1)  # an epoch that was cut off before its checkpoint is done again
    again.update()
    add(run, 2)
    again.close("done")
    (sent,) = tracker.runs.values()
    assert sent[:4] == [*FIRST, (2, "regression", 1), (3, "regression", 2)]
    assert sent[4:] == [{}, [runs.METRICS, runs.ENVIRONMENT], "done"]
    assert again.sent() == {"run": "run 0", "lines": 4, "pictures": [], "done": True}


def test_what_could_not_be_sent_is_sent_later(tracker: Fake, run: Path) -> None:
    feed = Feed("mlflow", subject(run))
    feed.update()
    tracker.away = True
    add(run, 1)
    feed.pictures["regression"] = Picture(1, PIXELS)
    with pytest.raises(ConnectionError):
        feed.update()
    add(run, 2)
    tracker.away = False
    feed.update()
    expected = [*FIRST, (2, "regression", 1), (3, "regression", 2), ("regression", 1, "picture")]
    assert tracker.runs == {"run 0": expected}
    feed.pictures["regression"] = Picture(1, PIXELS)  # a resumed run comes past each link again
    feed.update()
    assert tracker.runs == {"run 0": expected}


def test_a_finished_run_is_not_sent_again(tracker: Fake, run: Path) -> None:
    add(run, 1)
    Feed("mlflow", subject(run)).close("done")
    before = list(tracker.runs["run 0"])
    Feed("mlflow", subject(run)).close("done")  # --resume
    assert tracker.runs["run 0"] == [*before, "done"]
    add(run, 2)  # a stage more
    Feed("mlflow", subject(run)).close("done")
    assert sum(isinstance(got, dict) for got in tracker.runs["run 0"]) == 2


def test_a_run_that_the_tracker_has_lost_is_sent_anew(tracker: Fake, run: Path) -> None:
    Feed("mlflow", subject(run)).update()
    tracker.runs.clear()
    Feed("mlflow", subject(run)).update()
    assert tracker.runs == {"run 0": FIRST}


def test_the_summary_as_flat_figures() -> None:
    summary = {"results": {"lchp_i": {"center_crop": {"gt_known": 50.0, "mean_iou": None}}}, "kept": {}, "list": [1]}
    assert feeds.figures(summary) == [("results/lchp_i/center_crop/gt_known", 50.0)]


def test_a_link_whose_folder_is_gone_is_an_error_of_one_line(run: Path) -> None:
    (run.parent / "other" / runs.METRICS).write_text("{")
    with pytest.raises(runs.RunError, match=r"other/metrics.jsonl:1: cannot be read"):
        history(run)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records]


def test_a_tracker_that_is_away_is_one_warning(tracker: Fake, run: Path, warned: Callable[[], list[str]]) -> None:
    tracker.away = True
    with follow.followed(["mlflow"], lambda _: subject(run)) as followers:
        (line,) = warned()
        assert line == (
            "--track mlflow: the server refused; the training goes on and its records are whole; what is missing there "
            "is sent by --resume --track mlflow"
        )
        for epoch in (1, 2, 3):
            add(run, epoch)
            followers.update()
    assert len(warned()) == 1
    tracker.away = False
    with follow.followed(["mlflow"], lambda _: subject(run)):
        pass
    assert [line[1:] for line in tracker.runs["run 0"][:5]] == [line[1:] for line in FIRST] + [
        ("regression", epoch) for epoch in (1, 2, 3)
    ]


def test_a_tracker_that_never_answers_is_waited_for_so_long_and_no_longer(
    tracker: Fake, run: Path, warned: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "START", 0.05)
    monkeypatch.setattr(follow, "END", 0.05)
    answer = threading.Event()
    tracker.hear = answer.wait
    with follow.followed(["mlflow"], lambda _: subject(run)) as followers:
        for epoch in range(1, 100):
            add(run, epoch) if epoch < 3 else None
            followers.update()
    assert len(warned()) == 1
    assert "has not answered for 0 s" in warned()[0]
    answer.set()


@pytest.mark.parametrize(("error", "ending"), [(KeyboardInterrupt(), "stopped"), (RuntimeError(), "failed")])
def test_a_tracker_is_told_how_a_run_ended(tracker: Fake, run: Path, error: BaseException, ending: str) -> None:
    with pytest.raises(type(error)), follow.followed(["mlflow"], lambda _: subject(run)):
        raise error
    assert tracker.runs["run 0"] == [*FIRST, ending]


def test_a_sender_goes_on_after_what_fails_and_drops_what_is_left_when_it_is_waited_for(
    warned: Callable[[], list[str]],
) -> None:
    done, both = [], threading.Barrier(2)

    def fail() -> None:
        raise SystemExit("no such\x1b server")

    sender = Sender("wandb")
    for task in (both.wait, fail, lambda: done.append(1), lambda: both.wait()):
        sender.put(task)
    both.wait(5)
    both.wait(5)
    sender.settle(5)
    assert done == [1]
    for task in (fail, lambda: done.append(2)):
        sender.put(task)
    sender.settle(5)
    sender.close()
    (line,) = warned()
    assert line.startswith(r"--track wandb: no such\x1b server; ")


def test_trackers_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^--track mlfow: expected one of mlflow, wandb, tensorboard .did you mean"):
        required(["mlfow"])
    for name, package in (("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "tensorboardX.event_file_writer")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=rf"^--track {name} needs .*: pip install {package[:6]}"):
            required([name])


def test_an_import_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "wandb":
                raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ConfigError, match=r"^--track wandb: the library cannot be imported \(Descriptors cannot be"):
        required(["wandb"])
