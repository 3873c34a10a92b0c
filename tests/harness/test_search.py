"""Searches without Ray: what becomes of the study's database, and of results that it could not be told of."""

import contextlib
import logging
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from report_records import summary

from lchp.config import TrainConfig, override, preset
from lchp.errors import ConfigError, RunError
from lchp.files import runs
from lchp.harness import database
from lchp.harness import search as searching
from lchp.harness.cells import Job, Sweep
from lchp.harness.database import DATABASE, Database, open_study
from lchp.harness.options import Options
from lchp.harness.plan import Plan, recorded_cells
from lchp.harness.record import outcomes_of, recorded
from lchp.harness.running import Hooks
from lchp.harness.schedule import FINISHED, JobSchedule
from lchp.harness.search import Search, Study, search
from lchp.harness.search_script import closing
from lchp.harness.store import PREDICTED, RESULT, Store
from lchp.harness.sweep import SweepResult
from lchp.training.chain import STAGES

BASE = override(preset("parts"), {"data.validation": 0.2})


@pytest.fixture(autouse=True)
def short_waits_of_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY", 0.05)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a study of which nothing was drawn: it takes long to make."""
    storage = tmp_path_factory.mktemp("fresh")
    open_study(storage, "s")
    return storage / DATABASE


@pytest.fixture
def storage(tmp_path: Path, fresh: Path) -> Path:
    """A storage of one's own with that database."""
    shutil.copy(fresh, tmp_path)
    return tmp_path


def tau(trial: optuna.Trial) -> dict[str, Any]:
    return {"refinement.tau": trial.suggest_float("refinement.tau", 0.1, 0.9)}


def publish(storage: Path, job: Job, score: Any = 1.5) -> None:
    """A finished training."""
    work = storage / "work" / job.name
    (work / runs.CHECKPOINTS).mkdir(parents=True)
    for name in (*RESULT, *PREDICTED, f"{runs.CHECKPOINTS}/{STAGES[job.kind]}.pt"):
        (work / name).touch()
    validation = {"images": 8.0, "consistency": 50.0, "kept": 50.0, "score": score}
    figures: dict[str, float | None] = dict.fromkeys(("pseudo_label", "lchp_i", "lchp_r"), 50.0)
    measured = {} if score is None else {"validation": validation}
    runs.write_json(work / runs.SUMMARY, summary(figures, 0.9) | measured)
    Store(storage).publish(work, job.kind, job.key)


def study_of(storage: Path, trials: int = 1, space: searching.Space = tau, patience: float = 0.2) -> Study:
    """A search in the middle of its work."""
    plan = Plan(Sweep("s", BASE, []), Options(storage), [], JobSchedule([]), Store(storage), storage / "sweeps" / "s")
    return Study(plan, open_study(storage, "s", patience=patience), Search("s", BASE, space, trials=trials))


def begin(study: Study) -> list[Job]:
    """Draws a trial; its trainings, the one with its result last."""
    drawn = study.refill()
    assert study.fault is None
    study.plan.schedule.add(drawn)
    return drawn


def end(study: Study, *jobs: Job, score: Any = 1.5) -> None:
    """The trainings of a trial come to their end."""
    for job in jobs:
        publish(study.plan.store.storage, job, score)
        study.plan.schedule.done(job.name)
        study.changed(study.plan.schedule.jobs[job.name])


def trials(storage: Path) -> list[tuple[str, float | None]]:
    """As a program of the user's own reads them."""
    found = optuna.load_study(study_name="s", storage=Database(storage / DATABASE).url).trials
    return [(t.state.name, t.value) for t in found]


@contextlib.contextmanager
def locked(storage: Path, seconds: float | None = None) -> Iterator[None]:
    """Another program holds the database, for so long or to the end of the block."""
    other = sqlite3.connect(storage / DATABASE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(seconds or 0, other.rollback)
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.join() if seconds is not None else other.rollback()
        other.close()


# --- the file


@pytest.mark.parametrize(
    "name",
    ["q?mode=memory", 'a%20b 50%25 #1 &; ü 鳥 it\'s "q"', "{SCHEMA_VERSION}", "\udcff"],
)
def test_the_study_lies_in_the_storage(tmp_path: Path, name: str) -> None:
    storage = tmp_path / name / "res"
    study = open_study(storage, "s")
    study.tell(study.ask(), 2.5)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [storage / DATABASE]
    assert [t.value for t in open_study(storage, "s").trials] == [2.5]
    url = Database(storage / DATABASE).url
    if name.isprintable() and name != "{SCHEMA_VERSION}":  # which Optuna fills in
        assert [t.value for t in optuna.load_study(study_name="s", storage=url).trials] == [2.5]


def test_a_study_may_have_any_name(tmp_path: Path) -> None:
    name = 'it\'s "q"; DROP TABLE trials ü 100%{x}'
    study = open_study(tmp_path, name)
    study.tell(study.ask(), 2.5)
    open_study(tmp_path, "s")
    assert [t.value for t in open_study(tmp_path, name).trials] == [2.5]


@pytest.mark.parametrize("name", ["\udcff", "a\nb"])
def test_a_study_has_a_name_that_is_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--name = .*: expected text that can be printed$"):
        open_study(tmp_path, name)
    assert not (tmp_path / DATABASE).exists()


def as_old(path: Path) -> None:
    open_study(path.parent, "s")
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("update version_info set schema_version = 11, library_version = '2.0.0'")
        c.execute("update alembic_version set version_num = 'v2.6.0.a'")
        c.execute("drop table trial_heartbeats")


def as_new(path: Path) -> None:
    open_study(path.parent, "s")
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("update alembic_version set version_num = 'v9.0.0.a'")


def as_cut(path: Path) -> None:
    open_study(path.parent, "s")
    path.write_bytes(path.read_bytes()[:-9000])


def as_overwritten(path: Path) -> None:
    open_study(path.parent, "s")
    content = bytearray(path.read_bytes())
    content[4096:40960] = b"\xa5" * (40960 - 4096)
    path.write_bytes(content)


def as_another_programs(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("create table notes (text)")


def as_lacking_a_table(path: Path) -> None:
    open_study(path.parent, "s").ask()
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("drop table trial_params")


def as_unreadable_record(path: Path) -> None:
    study = open_study(path.parent, "s")
    tau(study.ask())
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("update trial_params set distribution_json = '{'")


def as_unreadable_attribute(path: Path) -> None:
    open_study(path.parent, "s").set_user_attr("objective", "unboxed")
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("update study_user_attributes set value_json = '{'")


def as_unknown_state(path: Path) -> None:
    open_study(path.parent, "s").ask()
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("update trials set state = 'LOST'")


def as_minimising(path: Path) -> None:
    optuna.create_study(storage=f"sqlite:///{path}", study_name="s", direction="minimize")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.write_bytes(b"x" * 2000), "file is not a database.*move it away"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + bytes(2000)), "move it away"),
        (lambda p: p.mkdir(), "is not a file; move it away"),
        (as_cut, "move it away"),
        (as_overwritten, "move it away"),
        (as_another_programs, "another program's.*move it away"),
        (as_lacking_a_table, "no such table: trial_params.*move it away"),
        (as_unreadable_record, "move it away"),
        (as_unreadable_attribute, "move it away"),
        (as_unknown_state, "'LOST' is not among.*move it away"),
        (as_old, "set up by optuna 2.0.0.*optuna storage upgrade --storage 'sqlite:////.*optuna.db'.*Or move it away"),
        (as_new, "pip install -U optuna.*Or move it away"),
        (as_minimising, "does not maximise.*another --name"),
    ],
)
def test_a_database_that_is_none_is_one_line_and_stays_as_it_is(
    tmp_path: Path,
    make: Callable[[Path], object],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    path = tmp_path / DATABASE
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(RunError, match=f"^{path}: .*{said}[^\n]*$"):
        open_study(tmp_path, "s")
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not caplog.records  # nor SQL of Optuna's


@pytest.mark.parametrize(
    ("pragma", "said"),
    [("max_page_count = 1", "full.*; make room"), ("query_only = 1", "readonly.*; make the folder writable")],
)
def test_a_database_that_cannot_be_written_is_one_line(
    tmp_path: Path, pragma: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(self: Database, mode: str = "rwc") -> sqlite3.Connection:
        connection = plain(self, mode)
        connection.execute(f"PRAGMA {pragma}")
        return connection

    plain = Database._connect
    open_study(tmp_path, "s")
    monkeypatch.setattr(Database, "_connect", connect)
    with pytest.raises(RunError, match=f"^{tmp_path / DATABASE}: cannot be written .*{said}.* with --resume"):
        open_study(tmp_path, "s").ask().set_user_attr("run", "x" * 99_999)


def test_what_a_killed_program_left_half_written_is_undone(tmp_path: Path) -> None:
    """A hot journal: a reader that may not write could not open the file at all."""
    study = open_study(tmp_path, "s")
    study.tell(study.ask(), 2.5)
    copy = tmp_path / "copy"
    copy.mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as c:
        c.execute("PRAGMA cache_size = 1")
        c.execute("BEGIN")
        c.executemany(
            "insert into trial_user_attributes (trial_id, key, value_json) values (1, ?, ?)",
            [(str(i), "x" * 2000) for i in range(200)],
        )
        for file in tmp_path.glob(f"{DATABASE}*"):
            (copy / file.name).write_bytes(file.read_bytes())
        c.execute("ROLLBACK")
    assert (copy / f"{DATABASE}-journal").stat().st_size
    assert [(t.value, t.user_attrs) for t in open_study(copy, "s").trials] == [(2.5, {})]


# --- locks


def test_a_lock_is_waited_for(storage: Path) -> None:
    study = study_of(storage, 2, patience=60)
    with locked(storage, 0.3):
        first = begin(study)
    with locked(storage, 0.3):
        end(study, *first)
    with locked(storage, 0.3):
        assert open_study(storage, "s").best_value == 1.5
    assert study.fault is None
    assert trials(storage) == [("COMPLETE", 1.5)]


def test_a_lock_without_an_end_is_one_line(storage: Path) -> None:
    open_study(storage, "s")
    with locked(storage), pytest.raises(RunError, match=r"locked for 0.2 s; end that, then .* --resume"):
        open_study(storage, "s", patience=0.2)


def test_a_result_that_could_not_be_told_is_told_at_the_end(storage: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = study_of(storage, 3)
    first, second = begin(study), begin(study)
    with locked(storage):
        end(study, *first)
        end(study, *second, score=2.5)
        assert study.refill() == []
    assert caplog.text.count("no more trials are drawn, those begun are trained to their end") == 1
    with pytest.raises(RunError, match="locked for"):
        study.close()
    assert trials(storage) == [("COMPLETE", 1.5), ("COMPLETE", 2.5)]


def test_a_result_that_could_not_be_told_at_all_is_told_by_the_next_start(storage: Path) -> None:
    study = study_of(storage, 3)
    first, second = begin(study), begin(study)
    with locked(storage):
        end(study, *first)
        with pytest.raises(RunError, match="locked for"):
            study.close()
    assert trials(storage) == [("RUNNING", None), ("RUNNING", None)]
    # with no word of the record, either: the driver was killed before it was written
    again = study_of(storage, 3)
    again.take_up()
    assert trials(storage) == [("COMPLETE", 1.5), ("FAIL", None), ("WAITING", None)]
    assert [c.key for c in again.plan.cells] == [first[-1].key]
    assert begin(again)[-1].key == second[-1].key
    assert len(begin(again)) == 3
    assert again.refill() == []


def test_a_result_is_told_although_the_space_is_another_now(storage: Path) -> None:
    study = study_of(storage)
    publish(storage, begin(study)[-1])
    again = study_of(storage, 1, lambda t: {"refinement.lr": t.suggest_float("refinement.lr", 1e-3, 1e-2)})
    again.take_up()
    assert trials(storage) == [("COMPLETE", 1.5)]
    assert [c.overrides for c in again.plan.cells] == [
        {"refinement.tau": again.study.trials[0].params["refinement.tau"]}
    ]
    assert again.refill() == []


def test_the_same_config_again_shares_the_end_of_the_first(storage: Path) -> None:
    study = study_of(storage, 4, lambda t: {"refinement.tau": t.suggest_categorical("refinement.tau", [0.5])})
    first = begin(study)
    assert study.refill() == []  # asked while the first is trained
    end(study, *first)
    assert trials(storage) == [("COMPLETE", 1.5)] * 4


def test_a_trial_that_tune_stopped_is_never_failed_by_a_second_draw(storage: Path) -> None:
    study = study_of(storage, 3, lambda t: {"refinement.tau": t.suggest_categorical("refinement.tau", [0.5])})
    name = begin(study)[-1].name
    study.plan.schedule.jobs[name].facts |= {"objective": 0.5, "train_epoch": 1}
    study.plan.schedule.stopped(name)
    study.changed(study.plan.schedule.jobs[name])
    assert study.refill() == []
    assert trials(storage) == [("PRUNED", 0.5), ("PRUNED", None), ("PRUNED", None)]


def test_a_trial_that_was_stopped_and_could_not_be_told_is_not_trained_again(storage: Path) -> None:
    study = study_of(storage, 2)
    name = begin(study)[-1].name
    job = study.plan.schedule.jobs[name]
    job.facts |= {"objective": 0.5, "train_epoch": 1}
    study.changed(job)
    study.plan.schedule.stopped(name)
    job.attempts = 1
    with locked(storage):
        study.changed(job)
        with pytest.raises(RunError, match="locked"), recorded(study.plan):
            study.close()
    assert trials(storage) == [("RUNNING", None)]
    again = study_of(storage, 2)
    again.plan.cells[:] = recorded_cells(again.plan.folder, BASE)
    again.take_up()
    assert trials(storage) == [("PRUNED", 0.5)]
    assert again.plan.schedule.jobs[name].state == "stopped"
    assert begin(again)[-1].name != name  # the next trial is another
    assert begin(again) == []


@pytest.mark.parametrize("score", [None, "high"])
def test_a_result_without_its_objective_fails_and_says_so(storage: Path, score: Any) -> None:
    study = study_of(storage)
    end(study, *begin(study), score=score)
    (outcome,) = outcomes_of(study.plan)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert ("has no validation_score" if score is None else "summary.json: validation/score") in outcome.error
    assert trials(storage) == [("FAIL", None)]


def test_a_study_that_is_deleted_meanwhile_loses_no_result(storage: Path) -> None:
    study = study_of(storage)
    jobs = begin(study)
    optuna.delete_study(study_name="s", storage=Database(storage / DATABASE).url)
    end(study, *jobs)
    with pytest.raises(RunError, match="removed meanwhile"):
        study.close()
    assert study.best() == "objective 1.50"


def test_methods_may_be_searched_too(storage: Path) -> None:
    """The result of a trial is then of another link than that of the base."""

    study = study_of(
        storage, 2, lambda t: {"method.name": "cam" if t.number else "lchp"} | ({} if t.number else tau(t))
    )
    drawn = begin(study), begin(study)
    assert [jobs[-1].kind for jobs in drawn] == ["refinement", "boxes"]
    end(study, *drawn[0])
    with locked(storage):
        end(study, *drawn[1], score=2.5)
    assert trials(storage) == [("COMPLETE", 1.5), ("RUNNING", None)]
    again = study_of(storage, 2)
    again.take_up()
    assert trials(storage) == [("COMPLETE", 1.5), ("COMPLETE", 2.5)]
    assert again.best() == "objective 2.50"


# --- spaces


@pytest.mark.parametrize("error", [ValueError("low > high"), ZeroDivisionError()])
def test_a_space_that_raises_ends_the_search_and_loses_nothing(storage: Path, error: Exception) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        if trial.number == 1:
            raise error
        return tau(trial)

    study = study_of(storage, 9, space)
    first = begin(study)
    assert study.refill() == study.refill() == []
    end(study, *first)
    wanted = ConfigError if isinstance(error, ValueError) else ZeroDivisionError
    with pytest.raises(wanted):
        study.close()
    assert trials(storage) == [("COMPLETE", 1.5), ("FAIL", None)]


# --- a whole search, with trainings that take no time


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs searches without Ray: each training is published at once. The names of what was trained."""
    trained: list[str] = []

    def run_trials(plan: Plan, hooks: Hooks, **_: Any) -> None:
        while True:
            job = plan.schedule.next()
            if job is None or job == FINISHED:
                plan.schedule.add(hooks.refill())
                job = plan.schedule.next()
            if not isinstance(job, Job):
                return
            publish(plan.store.storage, job, float(10 * job.config.refinement.tau))
            trained.append(job.name)
            plan.schedule.done(job.name)
            hooks.changed(plan.schedule.jobs[job.name])

    monkeypatch.setattr(searching, "run_trials", run_trials)
    return trained


def spec(space: searching.Space = tau, trials: int = 3, base: TrainConfig = BASE) -> Search:
    return Search("s", base, space, trials=trials, early_stopping=False)


KINDS: Mapping[str, Callable[[optuna.Trial], Any]] = {
    "float": lambda t: t.suggest_float("refinement.tau", 0.1, 0.9),
    "log": lambda t: t.suggest_float("refinement.tau", 0.1, 0.9, log=True),
    "choices": lambda t: t.suggest_categorical("refinement.tau", [0.2, 0.3]),
    "other choices": lambda t: t.suggest_categorical("refinement.tau", [0.2, 0.4]),
    "int": lambda t: t.suggest_int("refinement.tau", 0, 0),
}


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_another_kind_of_space_is_told_from_the_same(before: str, after: str) -> None:
    study = optuna.create_study()
    KINDS[before](study.ask())
    wanted = r"^s: its study has drawn refinement.tau from \w+Distribution.*, this space has \w+Distribution.* --name$"
    with contextlib.nullcontext() if before == after else pytest.raises(RunError, match=wanted):
        searching.require_space(study, spec(lambda t: {"refinement.tau": KINDS[after](t)}), BASE)


def test_a_search_resumed_with_another_kind_of_space_changes_nothing(storage: Path, instant: list[str]) -> None:
    search(spec(trials=1), Options(storage))
    known, told = list(instant), trials(storage)
    with pytest.raises(RunError, match="has drawn"):
        search(spec(lambda t: {"refinement.tau": KINDS["choices"](t)}, 2), Options(storage, resume=True))
    assert (instant, trials(storage)) == (known, told)
    assert len(search(spec(trials=2), Options(storage, resume=True)).cells) == 2


def test_a_wider_space_or_another_field_is_gone_on_with(storage: Path, instant: list[str]) -> None:
    search(spec(), Options(storage))

    def wider(trial: optuna.Trial) -> dict[str, Any]:
        drawn = trial.suggest_float("refinement.tau", 0.0, 1.0)
        return {"refinement.tau": drawn, "refinement.lr": trial.suggest_float("refinement.lr", 1e-3, 1e-2)}

    result = search(spec(wider, 5), Options(storage, resume=True))
    assert (len(result.cells), len(instant)) == (5, 2 + 5)
    assert [s for s, _ in trials(storage)] == ["COMPLETE"] * 5


def test_a_space_that_does_not_fit_the_config_is_one_line_before_anything_is_drawn(
    storage: Path, instant: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"refinement.tua: no such field"):
        search(spec(lambda _: {"refinement.tua": 0.1}), Options(storage))
    assert trials(storage) == instant == []


@pytest.mark.usefixtures("instant")
def test_what_other_programs_put_into_the_study_is_left_alone(storage: Path) -> None:
    search(spec(), Options(storage))
    kept = Store(storage).path("refinement", "x").parent
    study = optuna.load_study(study_name="s", storage=Database(storage / DATABASE).url)
    for attrs in ({}, {"run": ".."}, {"run": ""}, {"run": 5}, {"run": None}, {"run": "/a/b"}):
        for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING):
            value = 12345.0 if state == TrialState.COMPLETE else None
            study.add_trial(optuna.create_trial(state=state, value=value, user_attrs=attrs))
    before = [t.state for t in study.trials]
    result = search(spec(trials=4), Options(storage, resume=True))
    assert [t.state for t in study.trials] == [*before, TrialState.COMPLETE]
    assert len(result.cells) == len(list(kept.iterdir())) == 4
    assert not (storage / "store" / "damaged").exists()
    assert "trials: 4 complete\nbest by score without boxes: trial" in closing(spec(), result)
    assert "12345.00" not in closing(spec(), result)


def test_another_programs_study_is_refused(storage: Path, instant: list[str]) -> None:
    study = open_study(storage, "s")
    study.tell(study.ask(), 9.0)
    for resume in (False, True):
        with pytest.raises(RunError, match="take another --name"):
            search(spec(), Options(storage, resume=resume))
    assert (trials(storage), instant) == ([("COMPLETE", 9.0)], [])


def best_of(result: SweepResult) -> str:
    return closing(spec(), result).splitlines()[1]


@pytest.mark.parametrize("lost", ["study", "record"])
def test_study_and_record_make_up_for_each_other(
    storage: Path, instant: list[str], lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = search(spec(), Options(storage))
    said, known = best_of(before), list(instant)
    file = {"study": storage / DATABASE, "record": before.folder / "sweep.json"}[lost]
    file.rename(storage / "away")
    after = search(spec(), Options(storage, resume=True))
    assert {(o.cell.key, o.state) for o in after.cells} == {(o.cell.key, "done") for o in before.cells}
    assert (best_of(after), instant) == (said, known)
    assert ("holds no study s to go on with" in caplog.text) == (lost == "study")


def test_the_best_is_found_that_the_study_calls_failed(storage: Path, instant: list[str]) -> None:
    before = search(spec(), Options(storage))
    with contextlib.closing(sqlite3.connect(storage / DATABASE)) as c, c:
        c.execute("update trials set state = 'FAIL'")
    worse = spec(lambda t: {"refinement.tau": t.suggest_float("refinement.tau", 0.01, 0.02)}, 1)
    after = search(worse, Options(storage, resume=True))
    assert len(after.cells) == 4
    assert len(instant) == 2 + 4
    best = max(o.cell.config.refinement.tau for o in before.cells)
    assert best_of(after) == f"best by score without boxes: {10 * best:.2f}"


def test_the_best_is_printed_whatever_was_drawn(storage: Path, instant: list[str]) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        labeller = trial.suggest_categorical("refinement.labeller", ["frozen", "ema"])
        return tau(trial) | {"refinement.labeller": labeller}

    said = closing(spec(), search(spec(space), Options(storage)))
    assert "  refinement.labeller = " in said
    assert Counter(name.partition("-")[0] for name in instant) - Counter(labels=1) == {
        "classifier": 1,
        "localizer": 1,
        "refinement": 3,
    }


@pytest.mark.parametrize("trials", [0, -1, 10_001, 10**30])
def test_trials_without_number_are_refused(trials: int) -> None:
    with pytest.raises(ConfigError, match=f"^--trials = {trials}: expected at least 1 and at most 10000$"):
        spec(trials=trials)
