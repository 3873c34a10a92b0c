"""A trial without Ray: which data it trained on, a storage that goes away, and what is tried again."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small

from lchp.config import TrainConfig
from lchp.errors import RunError
from lchp.files import runs
from lchp.files.locks import LOCK, locked
from lchp.harness import Sweep
from lchp.harness.cells import Job, expand, jobs_of, pinned
from lchp.harness.store import DONE, PREDICTED, RESULT, Store, verify
from lchp.harness.trial import Setting, run_job
from lchp.training import run as training


@dataclass
class Trial:
    """A job of a sweep on data of its own, and what it reports; `event` happens at its first epoch."""

    tmp_path: Path
    event: Callable[[], object] = lambda: None
    claim: str | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    first: int = 1

    def __post_init__(self) -> None:
        self.root = small.make_folder(self.tmp_path / "images")
        self.config: TrainConfig = pinned(small.config(self.root, first=self.first, second=1), gpu=False)
        self.job: Job = next(iter(jobs_of(expand(Sweep("s", self.config, [{}]))).values()))
        self.work.mkdir(parents=True)

    @property
    def storage(self) -> Path:
        return self.tmp_path / "results"

    @property
    def work(self) -> Path:
        return self.storage / "sweeps" / "s" / "work"

    def run(self) -> str:
        """The error with which it has failed, or its last state."""

        def report(result: dict[str, Any]) -> None:
            if not self.reports:
                self.event()
            self.reports.append(result)

        run_job(self.job, Setting(str(self.storage), str(self.work), claim=self.claim), report)
        return self.reports[-1].get("error", self.reports[-1]["state"])

    def published(self) -> list[Path]:
        return list(self.storage.glob("store/*/*"))


def add_an_image(root: Path) -> Path:
    return Path(shutil.copy(next((root / "train").rglob("*.png")), root / "train" / "class_0" / "new.png"))


def test_an_undisturbed_trial_publishes_under_its_key(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    assert trial.run() == "done"
    assert trial.published() == [Store(trial.storage).find("classifier", trial.job.key)]
    assert trial.job.data is not None
    assert Job.from_dict(trial.job.to_dict()) == trial.job
    assert [p.name for p in trial.work.iterdir()] == [f"{trial.job.name}.lock"]


def test_data_that_changed_before_a_trial_is_not_trained_on(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    add_an_image(trial.root)
    error = trial.run()
    assert error.startswith(f"data.root = {str(trial.root)!r}: the data has changed since the sweep was started (")
    assert "--resume" in error
    assert "\n" not in error
    assert len(trial.reports) == 1
    assert trial.published() == []


@pytest.mark.parametrize("change", ["added", "removed", "grown", "moved away"])
def test_data_that_changed_during_a_trial_is_not_published(tmp_path: Path, change: str) -> None:
    trial = Trial(tmp_path)
    image = next((trial.root / "train").rglob("*.png"))
    trial.event = {
        "added": lambda: add_an_image(trial.root),
        "removed": image.unlink,
        "grown": lambda: image.write_bytes(image.read_bytes() + b"\0"),
        "moved away": lambda: trial.root.rename(tmp_path / "elsewhere"),
    }[change]
    error = trial.run()
    assert [r["state"] for r in trial.reports] == ["running", "failed"]
    assert str(trial.root) in error
    assert trial.published() == []
    # what was trained on other data goes; a folder that is out of reach may come back
    assert (trial.work / trial.job.name).exists() == (change in ("removed", "moved away"))
    if change == "moved away":
        (tmp_path / "elsewhere").rename(trial.root)
        assert trial.run() == "done"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_storage_that_goes_away_is_not_made_again(tmp_path: Path, replaced: bool) -> None:
    trial = Trial(tmp_path)

    def event() -> None:
        trial.storage.rename(tmp_path / "aside")
        if replaced:  # a mount point without its disk, say
            trial.storage.mkdir()

    trial.event = event
    assert "gone or was replaced" in trial.run()
    assert list(trial.storage.rglob("*")) == []
    assert trial.storage.exists() == replaced
    more = Trial.run(trial)  # the next trial
    assert "No such file" in more
    assert list(trial.storage.rglob("*")) == []
    if replaced:
        trial.storage.rmdir()
    (tmp_path / "aside").rename(trial.storage)
    assert trial.run() == "done"


def test_a_trial_looks_whether_its_sweep_is_still_there(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    with locked(trial.work.with_name(LOCK)) as claim:
        trial.claim = claim.mark
        assert trial.run() == "done"
        claim.path.write_text("pid 1 on another.machine, 00\n")
        shutil.rmtree(trial.storage / "store")
        assert "its lock is another's" in trial.run()
    assert trial.published() == []


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def train(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(training, "train_links", train)


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ENAMETOOLONG]
)
def test_what_trying_again_cannot_mend_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    trial = Trial(tmp_path)
    failing(monkeypatch, OSError(code, os.strerror(code), "some/file"))
    assert trial.run() == f"some/file: {os.strerror(code)}"
    assert [r["state"] for r in trial.reports] == ["failed"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_what_may_pass_is_left_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    trial = Trial(tmp_path)
    with monkeypatch.context() as patched:
        failing(patched, OSError(code, os.strerror(code), "some/file"))
        with pytest.raises(OSError, match="some/file"):
            trial.run()

    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refused)  # said by a RunError that names the file
        with pytest.raises(RunError, match="cannot be written"):
            trial.run()
    assert trial.reports == []


def test_a_full_disk_is_one_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(tmp_path)

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trial.event = lambda: monkeypatch.setattr(os, "fsync", refused)  # the image cache is written
    assert "cannot be written (No space left on device); make room" in trial.run()
    assert [r["state"] for r in trial.reports] == ["running", "failed"]


# --- what a result consists of


def finished(storage: Path, *, predicted: bool = True) -> Path:
    """A classifier in the store, without a training."""
    work = storage / "work"
    runs.make_folder(work / runs.CHECKPOINTS)
    for name in (*RESULT, *(PREDICTED if predicted else ()), "checkpoints/initialization.pt"):
        (work / name).write_text(name)
    place = {"key": "key", "run": None}
    runs.write_json(work / runs.ENVIRONMENT, {"class_names": ["a"], "links": {"classifier": place}})
    return Store(storage).publish(work, "classifier", "key")


@pytest.mark.parametrize(
    ("dropped", "fault"),
    [
        ("", "DONE does not list config.json, environment.json"),
        ("config.json", "DONE does not list config.json"),
        ("predictions.parquet", "DONE does not list predictions.parquet"),
        ("checkpoints/initialization.pt", "DONE lists no checkpoint"),
    ],
)
def test_a_result_that_lists_too_little_is_damaged(tmp_path: Path, dropped: str, fault: str) -> None:
    folder = finished(tmp_path)
    assert verify(folder, "classifier", "key") == (None, [])
    done = runs.read_json(folder / DONE)
    kept = {name: checksum for name, checksum in done["files"].items() if dropped and name != dropped}
    runs.write_json(folder / DONE, done | {"files": kept})
    assert verify(folder, "classifier", "key") == (fault, [])
    assert Store(tmp_path).find("classifier", "key") is None
    assert not folder.exists()
    assert finished(tmp_path) == folder


def test_a_link_without_a_result_of_its_own_has_a_checkpoint_and_no_predictions(tmp_path: Path) -> None:
    folder = finished(tmp_path, predicted=False)
    assert verify(folder, "classifier", "key") == (None, [])
    assert verify(folder, "labels", "key") == ("DONE lists no checkpoint", [])  # of its own


def test_files_that_are_no_part_of_a_result_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = finished(tmp_path)
    (folder / "second_classifier.json").write_text("{}")  # of lchp evaluate
    (folder / "notes.txt").write_text("mine")
    with caplog.at_level(logging.WARNING):
        assert Store(tmp_path).find("classifier", "key") == folder
    assert f"{folder}: notes.txt not listed in DONE: no part of the training" in caplog.text


def test_a_store_does_not_make_its_storage_again(tmp_path: Path) -> None:
    storage, work = tmp_path / "storage", tmp_path / "work"
    storage.mkdir()
    folder = finished(storage).rename(work)
    shutil.rmtree(storage)
    with pytest.raises(RunError, match="key: cannot be written"):
        Store(storage).publish(work, "classifier", "key")
    assert not storage.exists()
    assert (work / DONE).exists()
    storage.mkdir()
    assert Store(storage).publish(work, "classifier", "key") == storage / "store" / "classifier" / "key"
    assert not folder.exists()
