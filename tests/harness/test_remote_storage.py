"""A storage behind a URL: results, unfinished trainings, records and marks, on machines that share no disk."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from test_trial import Trial

from lchp.cli import main
from lchp.errors import ConfigError, RunError
from lchp.files import marks, remote, results, runs
from lchp.files.locks import HeldError, locked
from lchp.files.marks import holder_of, marked
from lchp.files.remote import Remote, RemoteError, as_storage
from lchp.harness import Options, Sweep, stopping
from lchp.harness import search as searching
from lchp.harness.attempts import MANIFEST, Attempt
from lchp.harness.database import open_study
from lchp.harness.places import claimed
from lchp.harness.plan import Plan, make_plan
from lchp.harness.record import write_record
from lchp.harness.running import Hooks
from lchp.harness.search import Search, search
from lchp.harness.store import DONE, PREDICTED, RESULT, Store
from lchp.harness.sweep import tracked
from lchp.harness.trial import Setting, run_job
from lchp.report.figures.searches import read_studies
from lchp.report.mirrors import local
from lchp.report.read import collect
from lchp.tracking import to_tensorboard

Machine = Callable[[str], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    monkeypatch.setattr(results, "SETTLE", 0.0)
    monkeypatch.setattr(marks, "SAME_TIME", 0.0)
    monkeypatch.setattr(stopping, "LOOK", 0.01)


def store_of(url: str) -> Store:
    """The store as a training on this machine has it."""
    there = Remote(url)
    return Store(there.mirror("trials"), there)


def published(store: Store, text: str = "result", key: str = "k") -> Path:
    work = store.storage / "work" / text
    (work / "checkpoints").mkdir(parents=True)
    for name in (*RESULT, *PREDICTED):
        (work / name).write_text(f"{text} {name}")
    (work / "checkpoints" / "initialization.pt").write_bytes(b"weights")
    return store.publish(work, "classifier", key)


def test_a_result_is_found_on_another_machine(url: str, machine: Machine) -> None:
    machine("a")
    mine = published(store_of(url))
    machine("b")
    there = Remote(url)
    assert sorted(there.list("store/classifier/k")) == sorted(
        [DONE, "checkpoints/initialization.pt", *RESULT, *PREDICTED]
    )
    light = Store(there.mirror("sweeps"), there, light=True)
    for store in (store_of(url), light, light):
        found = store.find("classifier", "k")
        assert found is not None
        assert mine not in (found, *found.parents)
        assert (found / "summary.json").read_text() == "result summary.json"
        assert (found / "checkpoints").exists() == (store != light)
        assert store.find("classifier", "other") is None
    there.remove("store/classifier/k", folder=True)
    assert light.find("classifier", "k") is None  # nobody else could take it


@pytest.mark.parametrize(
    "fault", ["no DONE", "changed", "cut", "lost", "all lost", "checkpoint lost", "DONE cut", "another's", "../x"]
)
def test_what_is_not_whole_is_never_read_and_made_again(
    url: str, machine: Machine, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    machine("a")
    published(store_of(url))
    there, name = Remote(url), "store/classifier/k"
    done = there.read(f"{name}/{DONE}")
    assert done is not None
    outside = json.loads(done)["files"] | {"../x": "0"}
    {
        "no DONE": lambda: there.remove(f"{name}/{DONE}"),
        "changed": lambda: there.write(f"{name}/summary.json", b"another"),
        "cut": lambda: there.write(f"{name}/summary.json", b"result summ"),
        "lost": lambda: there.remove(f"{name}/summary.json"),
        "all lost": lambda: [there.remove(f"{name}/{file}") for file in json.loads(done)["files"]],
        "checkpoint lost": lambda: there.remove(f"{name}/checkpoints/initialization.pt"),
        "DONE cut": lambda: there.write(f"{name}/{DONE}", done[:-9]),
        "another's": lambda: there.write(f"{name}/{DONE}", done.replace(b'"k"', b'"other"')),
        "../x": lambda: there.write(f"{name}/{DONE}", json.dumps({"key": "k", "files": outside}).encode()),
    }[fault]()
    machine("b")
    light = Store(there.mirror("sweeps"), there, light=True)
    for store in (store_of(url), light):
        caplog.clear()
        assert store.find("classifier", "k") is None
        assert ("is damaged" in caplog.text) == (fault != "no DONE")
        assert [p.name for p in store.storage.rglob("*") if p.is_file()] == []
    published(store_of(url), "again")
    machine("c")
    assert store_of(url).find("classifier", "k") is not None


def test_a_result_that_was_not_uploaded_is_when_it_is_found(url: str, machine: Machine) -> None:
    machine("a")
    published(store_of(url))
    Remote(url).remove(f"store/classifier/k/{DONE}")
    assert store_of(url).find("classifier", "k") is not None
    machine("b")
    assert store_of(url).find("classifier", "k") is not None


def test_a_checkpoint_that_others_found_damaged_is_uploaded_again(url: str, machine: Machine) -> None:
    """By the machine that made it, which has it, and need not train again."""
    machine("a")
    published(store_of(url))
    Remote(url).write("store/classifier/k/checkpoints/initialization.pt", b"w3ights")
    machine("b")
    assert store_of(url).find("classifier", "k") is None
    machine("a")
    assert store_of(url).find("classifier", "k", mistrust=True) is not None
    machine("b")
    assert store_of(url).find("classifier", "k") is not None


@pytest.mark.parametrize("lost", ["summary.json", "checkpoints/initialization.pt"])
def test_a_mirror_holds_nothing_that_was_damaged_since(url: str, machine: Machine, lost: str) -> None:
    machine("a")
    published(store_of(url))
    machine("desk")
    there, mirror = Remote(url), Remote(url).mirror("reports")
    assert results.bring_all(there, mirror) == results.bring_all(there, mirror) == []
    assert (mirror / "store/classifier/k").is_dir()
    there.remove(f"store/classifier/k/{lost}")
    for _ in range(2):
        (line,) = results.bring_all(there, mirror)
        assert f"{lost} is missing; it is damaged" in line
        assert not (mirror / "store/classifier/k").exists()


def test_a_store_that_is_away_is_said_once_and_that_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own").mkdir()
    store, asked = Remote(f"file://{tmp_path}"), threading.Semaphore(0)
    answers = iter([False, False, True])

    def read(self: Remote, name: str, *, tries: int = 4) -> bytes | None:
        if threading.current_thread().name == "mark":
            there = next(answers, None)
            asked.release()
            if there is False:
                raise RemoteError(f"{name}: cannot be read (away); {remote.AGAIN}")
        return real(self, name, tries=tries)

    real = Remote.read
    monkeypatch.setattr(Remote, "read", read)
    monkeypatch.setattr(marks, "RENEWED", 0.01)
    with locked(tmp_path / "own" / "lock") as own, marked(store, "sweeps/s/lock", own):
        for _ in range(5):
            asked.acquire(timeout=20)
    assert [record.getMessage() for record in caplog.records] == [
        "sweeps/s/lock: cannot be read (away); trainings go on, and what they read and write is tried again",
        f"{store.url}: answers again",
    ]


def test_two_that_publish_the_same_at_once_leave_one_whole(url: str, machine: Machine) -> None:
    machine("a")
    there, folders = Remote(url), []
    for text in ("one", "another"):
        machine(text)
        folders.append(published(store_of(url), text))
    there.remove("store/classifier/k", folder=True)
    for _ in range(4):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda folder: results.put(there, "store/classifier/k", folder), folders))
        assert any(results.is_whole(there, "store/classifier/k", folder) for folder in folders)


def test_a_mark_keeps_others_away_until_it_is_stale(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, name = Remote(url), "sweeps/s/lock"
    monkeypatch.setattr(marks, "RENEWED", 0.01)
    with locked(tmp_path / "lock") as own:
        there.write(name, f"pid 7 on elsewhere, 00 {time.time() - 60:.0f}\n".encode())
        with (
            pytest.raises(HeldError, match=r"held by a process that still runs \(pid 7 on elsewhere\)"),
            marked(there, name, own),
        ):
            pass
        there.write(name, f"pid 7 on elsewhere, 00 {time.time() - 200:.0f}\n".encode())
        with marked(there, name, own) as claim:
            claim.check()
            with (
                locked(tmp_path / "another's mirror") as other,
                pytest.raises(HeldError, match="still runs"),
                marked(there, name, other),
            ):
                pass
            there.write(name, f"{claim.mark} 5\n".encode())
            for _ in range(500):  # renewed
                if (holder_of(there, name) or ("", 5))[1] > 5:
                    break
                time.sleep(0.01)
            claim.check()
            assert (holder_of(there, name) or ("", 5))[1] > 5
        monkeypatch.setattr(marks, "RENEWED", 30.0)  # not between another's writing and the look at it
        with marked(there, name, own) as claim:
            there.write(name, f"pid 8 on elsewhere, 01 {time.time():.0f}\n".encode())
            with pytest.raises(RunError, match=r"the mark of this sweep is another's \(pid 8 on elsewhere\)"):
                claim.check()
        assert holder_of(there, name) is not None  # not ours to remove
        there.remove(name)
        with marked(there, name, own) as claim:
            left = there.read(name) or b""
        there.write(name, left)  # by a driver on this machine that was killed: no need to wait
        with marked(there, name, own):
            pass
        assert holder_of(there, name) is None


class RemoteTrial(Trial):
    """A trial whose driver is on another machine."""

    url: str = ""

    def run(self) -> str:
        def report(result: dict[str, object]) -> None:
            self.reports.append(result)
            self.event()

        setting = Setting("/driver/results", "/driver/results/sweeps/s/work", claim=self.claim, url=self.url)
        run_job(self.job, setting, report)
        return self.reports[-1].get("error", self.reports[-1]["state"])

    @property
    def name(self) -> str:
        return f"sweeps/s/work/{self.job.name}"


class LostError(BaseException):
    """The node is gone."""


def lost() -> None:
    raise LostError


@pytest.fixture
def trial(one_url: str, machine: Machine, tmp_path: Path) -> RemoteTrial:
    machine("a")
    trial = RemoteTrial(tmp_path / "trial", first=2)
    trial.url = one_url
    return trial


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Never stopped, in a folder."""
    trial = Trial(tmp_path_factory.mktemp("straight"), first=2)
    assert trial.run() == "done"
    return trial


@pytest.mark.parametrize("fault", [None, "half an upload", "damaged"])
def test_another_machine_goes_on_from_the_last_epoch(
    trial: RemoteTrial, machine: Machine, straight: Trial, fault: str | None
) -> None:
    trial.event = lost
    with pytest.raises(LostError):
        trial.run()
    there = Remote(trial.url)
    if fault == "half an upload":
        there.write(f"{trial.name}/0123", b"a checkpoint that no manifest names")
    if fault == "damaged":
        manifest = json.loads(there.read(f"{trial.name}/{MANIFEST}") or b"")
        there.write(f"{trial.name}/{manifest['files']['checkpoints/initialization.pt']}", b"zeros")
    machine("b")
    trial.event, begun = (lambda: None), len(trial.reports)
    assert trial.run() == "done"
    running = [r for r in trial.reports[begun:] if r["state"] == "running"]
    assert [r["train_epoch"] for r in running] == ([1, 2] if fault == "damaged" else [2])
    assert there.list("sweeps") == {}
    machine("c")
    mine, (other,) = store_of(trial.url).find("classifier", trial.job.key), straight.published()
    assert mine is not None
    assert (mine / runs.PREDICTIONS).read_bytes() == (other / runs.PREDICTIONS).read_bytes()
    before = len(trial.reports)
    assert trial.run() == "done"  # found
    assert len(trial.reports) == before + 1


def test_a_machine_that_is_further_keeps_what_it_has(url: str, tmp_path: Path) -> None:
    work = tmp_path / "job"
    (work / runs.CHECKPOINTS).mkdir(parents=True)
    attempt = Attempt(Remote(url), "sweeps/s/work/job", work)
    checkpoint = work / runs.CHECKPOINTS / "initialization.pt"
    for epoch in (1, 2):
        checkpoint.write_bytes(f"epoch {epoch}".encode())
        checkpoint.with_name("initialization.previous.pt").write_bytes(b"before")
        runs.append_metrics(work, {"stage": "initialization", "epoch": epoch, "epochs": 3})
        attempt.send()
        assert len(attempt.remote.list(attempt.name)) == 3  # the manifest, the checkpoint, the metrics
    checkpoint.write_bytes(b"in the midst of epoch 3")
    attempt.fetch()
    assert checkpoint.read_bytes() == b"in the midst of epoch 3"
    shutil.rmtree(work)
    attempt.fetch()
    assert checkpoint.read_bytes() == b"epoch 2"


def test_an_upload_that_fails_is_one_line_and_what_was_trained_stays(
    trial: RemoteTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION during PutObject operation")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.fs.copy_files", away)
        error = trial.run()
    assert "\n" not in error
    assert "cannot be written (the endpoint does not answer: " in error
    assert "what was trained is kept on" in error
    assert Remote(trial.url).list("store") == {}
    assert trial.run() == "done"


def test_a_trial_stops_for_a_driver_elsewhere(trial: RemoteTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    there, ended = Remote(trial.url), threading.Event()
    monkeypatch.setattr(stopping, "_end", ended.set)
    work = stopping.Unfinished(Path("/driver/results/sweeps/s/work"), there, "sweeps/s/work")
    begun: list[set[str]] = []

    def wait_for_the_driver() -> None:
        begun.append(work.begun())
        there.write(f"sweeps/s/work/{stopping.MARK}", b"")
        assert ended.wait(30)

    trial.event = wait_for_the_driver
    trial.run()
    assert begun[0] == {trial.job.name}
    assert work.begun() == set()
    stopping.let_stop(work, [trial.job.name])
    assert work.is_marked()
    stopping.go_on(work)
    assert not work.is_marked()


def test_a_trial_looks_whether_its_sweep_is_still_there(trial: RemoteTrial, tmp_path: Path) -> None:
    there = Remote(trial.url)
    with locked(tmp_path / "lock") as own, marked(there, "sweeps/s/lock", own) as claim:
        trial.claim = claim.mark
        there.write("sweeps/s/lock", f"pid 8 on elsewhere, 01 {time.time():.0f}\n".encode())
        assert "the mark of this sweep is another's" in trial.run()
    assert there.list("store") == {}


def test_a_record_goes_on_on_another_machine_and_is_read_by_tables(
    trial: RemoteTrial, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sweep, options = Sweep("s", trial.config, [{}]), Options(as_storage(trial.url), track=("tensorboard",))
    assert options.storage == Remote(trial.url)
    opened = list[str | None]()
    open_run = to_tensorboard.open_run
    monkeypatch.setattr(to_tensorboard, "open_run", lambda s, known: opened.append(known) or open_run(s, known))
    machine("driver")
    folder = options.folder / "sweeps" / "s"
    with claimed(folder, options.remote, resume=False) as claim:
        plan = make_plan(sweep, options)
        plan.claim = claim
        write_record(plan)
        trial.claim = claim.mark
        machine("a")
        for job in plan.jobs().values():
            trial.job = job
            assert trial.run() == "done"
            plan.schedule.done(job.name)
        machine("driver")
        with tracked(plan):
            pass
        (notes,) = (folder / runs.TRACKERS).iterdir()
        sent = runs.read_json(notes)
        assert sent["done"]
        events = {path.relative_to(folder).as_posix() for path in (folder / "tensorboard").rglob("events*")}
        assert events == {n for n in Remote(trial.url).list("sweeps/s") if n.startswith("tensorboard/")}
        assert len(events) == 1
        assert sent["lines"] == sum(link.epochs for link in plan.cells[0].chain)  # of links that others trained, too
    machine("another driver")
    folder = options.folder / "sweeps" / "s"
    with pytest.raises(RunError, match="holds a sweep already"), claimed(folder, options.remote, resume=False):
        pass
    with claimed(folder, options.remote, resume=True) as claim:
        plan = make_plan(sweep, replace(options, resume=True))
        plan.claim = claim
        assert {p.state for p in plan.schedule.jobs.values()} == {"done"}
        write_record(plan)
        with tracked(plan):
            pass
        assert runs.read_json(folder / runs.TRACKERS / notes.name) == sent
    assert opened == [None]
    machine("desk")
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "--storage", trial.url]) == 0, capsys.readouterr().err
    assert (tmp_path / "tables" / "table_1.md").exists()
    assert list(Remote(trial.url).mirror("reports").rglob("*.pt")) == []
    assert main(["report", "--storage", trial.url, "--no-figures"]) == 0
    assert main(["table", "--rows", "seed", "--storage", trial.url]) == 0


def test_a_search_takes_its_study_along(
    trial: RemoteTrial, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It draws a trial and is killed; another machine asks for the same values."""

    def draws(plan: Plan, hooks: Hooks, **_: object) -> None:
        plan.schedule.add(hooks.refill())

    monkeypatch.setattr(searching, "run_trials", draws)
    spec = Search("s", trial.config, lambda t: {"refinement.tau": t.suggest_float("tau", 0.1, 0.9)}, 1)
    drawn = []
    for name in ("driver", "another driver"):
        machine(name)
        options = Options(as_storage(trial.url), resume=name != "driver")
        search(spec, options)
        study = open_study(options.folder / "sweeps" / "s", "s")
        drawn.append([t.params["tau"] for t in study.get_trials() if t.params])
    assert "holds no study" not in caplog.text
    assert len(drawn[0]) == 1
    assert drawn[1] == 2 * drawn[0]
    machine("desk")
    ((mirror, _),) = local([Remote(trial.url)])[0].items()
    assert [study.study_name for study in read_studies(mirror)] == ["s"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("s3://", "expected a folder, or a URL such as s3://BUCKET/PREFIX"),
        ("s3:/bucket/x", "expected s3://bucket/x, with two slashes"),
        ("s3://me:word@bucket/x", "has credentials in it"),
        ("nosuch://bucket/x", "Protocol not known: nosuch"),
        ("memory://x", "lies in the memory of one process"),
        ("http://127.0.0.1:9/x", "it is of a kind that can only be read"),
        ("github://a/b", "missing 2 required positional arguments"),  # whatever fsspec's classes raise
        ("s3://bucket/x?unknown=1", "Unexpected query parameter"),
        ("s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:9", "the endpoint does not answer"),
        ("file:///proc/none", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(
    bad: str, said: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert main(["sweep", "--grid", "refinement.tau=0.5,0.9", "--storage", bad]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("lchp: error: --storage ")
    assert said in line
    assert "word" not in line


def test_a_missing_bucket_is_one_line(
    s3_server: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    bad = f"s3://none/x?scheme=http&endpoint_override={s3_server}"
    for command in (["sweep", "--grid", "refinement.tau=0.5,0.9"], ["tables"]):
        assert main([*command, "--storage", bad]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "there is no " in line


def test_tables_and_reports_name_the_url_and_not_its_mirror(url: str, machine: Machine) -> None:
    machine("desk")
    remote = Remote(url)
    remote.write("sweeps/torn/sweep.json", b"{")
    records = collect([remote])
    problems = records.problems
    shown = url.partition("?")[0]
    assert f"{shown}: no finished run" in problems
    assert any(line.startswith(f"{shown}/sweeps/torn/sweep.json: ") for line in problems)
    mirror = remote.mirror("reports")
    assert not any(str(mirror) in line for line in problems)
    assert records.said(f"{mirror}/store/boxes/k: gone\nfor good") == f"{shown}/store/boxes/k: gone for good"


def test_who_runs_a_sweep_of_a_url_on_this_machine_is_said_by_the_url(one_url: str, machine: Machine) -> None:
    machine("one")
    options = Options(as_storage(one_url))
    assert options.remote is not None
    folder = options.folder / "sweeps" / "s"
    with claimed(folder, options.remote, resume=False), pytest.raises(HeldError) as held:  # noqa: SIM117
        with claimed(folder, options.remote, resume=True):
            pass
    assert str(held.value).startswith(f"{options.remote.under('sweeps/s/lock')}: held by a process that is still")
    assert str(held.value).endswith("; wait for its end, or take another --name")


def test_a_text_with_a_scheme_is_a_url_and_no_path(capsys: pytest.CaptureFixture) -> None:
    assert as_storage("s3://bucket/a/") == Remote("s3://bucket/a")
    assert as_storage("results") == Path("results")
    assert as_storage(Remote("gs://b/a")).name == "a"
    assert Remote("abfs://container@account/a").name == "a"  # no secret
    assert main(["tables", "--output", "s3://bucket/tables"]) == 2
    assert "is a URL, and a path of this machine is expected here" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="credentials"):
        Options(as_storage("s3://a:b@c/d"))
    with pytest.raises(RemoteError):
        Remote("file:///proc/none").write("x", b"")
