"""The harness on real Ray, in this process: sharing, wrappers, packing, faults, searching. Everything here is slow."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import small
from drained import drain, planned
from programs import finished_epochs, program, result_of, start

from lchp.config import override
from lchp.errors import RunError
from lchp.files import runs
from lchp.files.locks import locked
from lchp.harness import Options, Sweep, SweepResult, grid, run
from lchp.harness.cells import Cell, expand, jobs_of, pinned
from lchp.harness.cluster import cluster
from lchp.harness.store import Store
from lchp.harness.sweep import make_plan, outcomes_of
from lchp.training.chain import Kind
from lchp.training.run import train

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("on_ray")]

CELLS = grid({"initialization.delta": [0.2, 0.4], "refinement.tau": [0.0, 0.2]})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    """Ray for the tests that run in this process; the GPUs are only counted."""
    with cluster(num_cpus=4, num_gpus=2):
        yield


def predictions(result: SweepResult) -> dict[str, bytes]:
    """Of each cell: the bytes of its predictions."""
    assert {c.state for c in result.cells} == {"done"}, [c.error for c in result.cells]
    return {c.cell.key: (c.run / runs.PREDICTIONS).read_bytes() for c in result.cells if c.run is not None}


def jobs(result: SweepResult) -> dict[str, Any]:
    return runs.read_json(result.folder / "sweep.json")["jobs"]


def key(cell: Cell, kind: Kind) -> str:
    """Of the result of a link of a cell."""
    return cell.chain.until(kind).record


@pytest.fixture(scope="module")
def straight(root: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """The four cells, never disturbed."""
    request.getfixturevalue("on_ray")
    options = Options(tmp_path_factory.mktemp("straight"), max_concurrent=2)
    return run(Sweep("straight", small.config(root), CELLS), options)


def test_every_link_is_trained_once(straight: SweepResult) -> None:
    done = jobs(straight)
    kinds = Counter(name.partition("-")[0] for name in done)
    assert kinds == {"classifier": 2, "localizer": 2, "refinement": 4}
    assert all(j["state"] == "done" and j["attempts"] == 1 and not j["found"] for j in done.values())
    for outcome in straight.cells:
        assert outcome.run is not None
        assert runs.read_config(outcome.run) == outcome.cell.config  # a trial writes what it received
        assert outcome.summary == runs.read_json(outcome.run / runs.SUMMARY)
        record = override(outcome.cell.config, outcome.cell.overrides)
        assert record == outcome.cell.config


def test_a_cell_equals_the_single_run(straight: SweepResult, tmp_path: Path) -> None:
    outcome = straight.cells[1]
    assert outcome.run is not None
    alone = train(outcome.cell.config, output=tmp_path / "run")
    assert (alone.run / runs.PREDICTIONS).read_bytes() == (outcome.run / runs.PREDICTIONS).read_bytes()
    assert alone.summary == outcome.summary


def test_another_sweep_takes_what_is_in_the_store(straight: SweepResult, root: Path) -> None:
    storage = straight.folder.parents[1]
    result = run(Sweep("again", small.config(root), CELLS), Options(storage))
    assert all(j["found"] and j["attempts"] == 0 for j in jobs(result).values())
    assert predictions(result) == predictions(straight)


def copied(straight: SweepResult, storage: Path) -> Path:
    """A storage of one's own that holds the finished sweep `straight`."""
    return Path(shutil.copytree(straight.folder.parents[1], storage))


def test_a_resumed_sweep_trains_what_is_new_or_damaged_and_loses_no_cell(
    straight: SweepResult, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a sweep that Ray ran, in this process."""
    store = Store(copied(straight, tmp_path / "results"))
    cell = straight.cells[0].cell
    table = store.path("refinement", cell.key) / runs.PREDICTIONS
    table.write_bytes(table.read_bytes()[:-9] + b"123456789")
    checkpoint = store.path("localizer", key(cell, "localizer")) / runs.CHECKPOINTS / "regression.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    new = {"initialization.delta": 0.4, "refinement.tau": 0.1}
    sweep = Sweep("straight", small.config(root), [CELLS[3], new])
    with pytest.raises(RunError, match="--resume"):
        run(sweep, Options(store.storage))
    plan = planned(store.storage, sweep.base, sweep.cells, sweep.name)
    assert "checksum differs" in caplog.text
    drain(plan)
    more = SweepResult(plan.folder, outcomes_of(plan))
    assert [c.cell.overrides for c in more.cells] == [*CELLS, new]
    added = more.cells[-1].cell
    assert {n for n, j in jobs(more).items() if not j["found"]} == {
        f"localizer-{key(cell, 'localizer')}",
        f"refinement-{cell.key}",
        f"refinement-{added.key}",
    }
    found = predictions(more)
    del found[added.key]
    assert found == predictions(straight)


def test_what_fails_leaves_the_rest_and_a_failed_link_is_run_again_on_resume(
    straight: SweepResult, root: Path, tmp_path: Path
) -> None:
    from lchp.harness.printout import closing_table

    cell = straight.cells[0].cell
    blocked = tmp_path / "sweeps" / "faulty" / "work" / f"classifier-{key(cell, 'classifier')}.lock"
    blocked.mkdir(parents=True)  # nobody can lock it
    cells = [{"model.localizer": "tinny"}, {"refinement.lr": 1e30}, {}, CELLS[0]]
    sweep = Sweep("faulty", small.config(root), cells)
    failed = run(sweep, Options(tmp_path, max_failures=1, max_concurrent=2, resume=True))
    assert [c.state for c in failed.cells] == ["failed", "failed", "done", "failed"]
    assert [c.reason for c in failed.cells] == ["source_failed", "diverged", None, "source_failed"]
    text = closing_table(failed)
    assert "failed: model.localizer tinny, seed 0" in text
    assert "did you mean tiny" in text
    assert "training diverged" in text
    done = jobs(failed)
    assert (
        done[f"localizer-{key(failed.cells[0].cell, 'localizer')}"]["attempts"] == 1
    )  # trying again would not mend it
    error = failed.cells[3].error or ""
    assert error.startswith(f"its classifier ({key(cell, 'classifier')}) failed: ")
    assert (
        f"classifier-{key(cell, 'classifier')}.lock: cannot be written (Is a directory)" in error
    )  # what happened, and where
    assert done[f"classifier-{key(cell, 'classifier')}"]["attempts"] == 1
    assert done[f"localizer-{key(cell, 'localizer')}"]["attempts"] == 0
    blocked.rmdir()
    again = planned(tmp_path, sweep.base, cells, sweep.name)
    drain(again)
    mended = outcomes_of(again)
    assert [c.state for c in mended] == ["failed", "failed", "done", "done"]
    assert mended[2].run == failed.cells[2].run
    assert mended[3].run is not None
    expected = predictions(straight)[cell.key]
    assert (mended[3].run / runs.PREDICTIONS).read_bytes() == expected


def holders(locks: Iterable[Path]) -> set[int]:
    """Processes that hold locks; one may let go of its lock, or end, while this looks."""
    found = set()
    for lock in locks:
        with contextlib.suppress(FileNotFoundError):
            found |= {int(word) for word in lock.read_text().split()[1:2]}
    return {process for process in found if Path(f"/proc/{process}").exists()}


def kill_holder(work: Path, seen: list[Any]) -> None:
    """SIGKILLs the process that trains in a work folder as soon as an epoch is finished; notes the metrics so far."""
    lock = work.with_name(f"{work.name}.lock")
    after = work / runs.CHECKPOINTS / "initialization.pt"
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        holder = holders([lock])
        if after.exists() and holder:
            os.kill(holder.pop(), signal.SIGKILL)
            seen += runs.read_metrics(work)
            return
        time.sleep(0.005)
    raise AssertionError(f"{after} did not appear")


def test_a_killed_worker_is_tried_again_from_its_checkpoint(root: Path, tmp_path: Path) -> None:
    base = small.config(root, first=12, second=1)
    sweep = Sweep("killed", base, [{}])
    cell = make_plan(sweep, Options(tmp_path)).cells[0]
    work = tmp_path / "sweeps" / "killed" / "work" / f"classifier-{key(cell, 'classifier')}"
    seen: list[Any] = []
    killer = threading.Thread(target=kill_holder, args=(work, seen), daemon=True)
    killer.start()
    result = run(sweep, Options(tmp_path, max_failures=1))
    killer.join()
    job = jobs(result)[work.name]
    assert (job["state"], job["attempts"]) == ("done", 2)
    alone = train(result.cells[0].cell.config, output=tmp_path / "alone")
    assert (alone.run / runs.PREDICTIONS).read_bytes() == predictions(result)[cell.key]
    lines = runs.read_metrics(Store(tmp_path).path("classifier", key(cell, "classifier")))
    assert [m["epoch"] for m in lines] == list(range(1, 13))
    # trained once, before the kill: their times are those of then (the newest may have been noted too early)
    assert len(seen) >= 1
    assert lines[: max(1, len(seen) - 1)] == seen[: max(1, len(seen) - 1)]


def kill_at_random(storage: Path, killed: list[int]) -> None:
    """SIGKILLs a process that trains, drawn at random, at the start and once the trainings have got half-way; each time
    as many epochs later as is drawn."""
    draw = random.Random(0)
    for epochs in (0, 8):
        epochs += draw.randrange(4)
        while finished_epochs(storage) < epochs:
            time.sleep(0.005)
        living: list[int] = []
        while not living:
            living = sorted(holders(storage.glob("sweeps/*/work/*.lock")) - {*killed})
            time.sleep(0.01)
        killed.append(draw.choice(living))
        with contextlib.suppress(ProcessLookupError):
            os.kill(killed[-1], signal.SIGKILL)


def test_killing_workers_at_random_loses_nothing(straight: SweepResult, root: Path, tmp_path: Path) -> None:
    """All cells end with whole records, bitwise those of an undisturbed sweep, and nothing is left lying about."""
    killed: list[int] = []
    killer = threading.Thread(target=kill_at_random, args=(tmp_path, killed), daemon=True)
    killer.start()
    result = run(Sweep("killed", small.config(root), CELLS), Options(tmp_path, max_failures=20, max_concurrent=2))
    assert len(killed) == 2
    assert len(result.cells) == 4
    assert predictions(result) == predictions(straight)
    store = Store(tmp_path)
    for name in jobs(result):
        kind, _, of_result = name.partition("-")
        assert store.find(cast("Kind", kind), of_result, look_only=True) is not None
    assert {p.name for p in result.folder.iterdir()} == {"sweep.json", "lock"}
    assert not list((tmp_path / "store").rglob(".*"))
    assert not (tmp_path / "store" / "damaged").exists()


def with_stage_1(straight: SweepResult, storage: Path) -> None:
    """Puts the classifiers and localizers of `straight` into a storage."""
    for kind in ("classifier", "localizer"):
        shutil.copytree(straight.folder.parents[1] / "store" / kind, storage / "store" / kind)


def let_go_together(work: Path, names: list[str], shares: list[float]) -> None:
    """Holds back the trainings of these jobs until the workers of all hold a share of a GPU; notes the shares."""
    from ray.util import placement_group_table

    with contextlib.ExitStack() as stack:
        runs.make_folder(work)
        for name in names:
            stack.enter_context(locked(work / f"{name}.lock"))
        deadline = time.monotonic() + 400
        while len(shares) < len(names) and time.monotonic() < deadline:
            time.sleep(0.1)
            groups = [g for g in placement_group_table().values() if g["state"] == "CREATED"]
            shares[:] = [b["GPU"] for g in groups for b in g["bundles"].values() if "GPU" in b]


def test_both_wrappers_give_identical_predictions_and_gpus_are_packed(
    straight: SweepResult, root: Path, tmp_path: Path
) -> None:
    """Half a GPU each: Ray Train with one worker, two at once on one of two (counted) GPUs, which is all they see."""
    sweep, options = Sweep("packed", small.config(root), CELLS[1:3]), Options(tmp_path, gpus_per_trial=0.5, share=False)
    names = list(make_plan(sweep, options).schedule.jobs)
    work, shares = tmp_path / "sweeps" / "packed" / "work", []
    holder = threading.Thread(target=let_go_together, args=(work, names, shares), daemon=True)
    holder.start()
    result = run(sweep, options)
    holder.join()
    assert shares == [0.5, 0.5]
    plain = predictions(straight)
    assert predictions(result) == {c.cell.key: plain[c.cell.key] for c in result.cells}
    assert len({key(c.cell, "classifier") for c in result.cells}) == 2
    done = jobs(result)
    assert set(done) == set(names)
    assert {j["devices"] for j in done.values()} in ({"0"}, {"1"})


def test_two_workers_share_a_training(straight: SweepResult, root: Path, tmp_path: Path) -> None:
    """DDP through Ray Train: the records are whole, and near those of one worker. A mistake is not tried again."""
    with_stage_1(straight, tmp_path)
    cells = [CELLS[0], CELLS[0] | {"refinement.lr": 1e30}]
    result = run(Sweep("ddp", small.config(root), cells), Options(tmp_path, workers_per_trial=2))
    cell, mistaken = result.cells
    assert "training diverged, lower the learning rate" in (mistaken.error or "")
    assert jobs(result)[f"refinement-{mistaken.cell.key}"]["attempts"] == 1
    assert cell.state == "done", cell.error
    assert cell.run is not None
    other = next(c for c in straight.cells if c.cell.key == cell.cell.key)
    assert other.run is not None
    mine, theirs = runs.read_metrics(cell.run), runs.read_metrics(other.run)
    assert [m["loss"] for m in mine] == pytest.approx([m["loss"] for m in theirs], rel=2e-2, abs=1e-3)


# --- searching


def test_search_without_boxes_stops_bad_trials_and_keeps_an_optuna_study(root: Path, tmp_path: Path) -> None:
    """Label-only: the data has no boxes at all. The second trial is worse by far, and not trained to its end."""
    import optuna

    from lchp.harness.search import Search, search

    def space(trial: optuna.Trial) -> dict[str, Any]:
        rate = trial.suggest_float("refinement.lr", 1e-3, 2e-3, log=True)
        return {"refinement.lr": rate * (0.3 if trial.number == 1 else 1)}

    bare = tmp_path / "bare"
    shutil.copytree(root, bare, ignore=shutil.ignore_patterns("boxes.csv", ".cache"))
    base = override(small.config(bare, first=1, second=4), {"evaluation.confidence": 0.1, "data.validation": 0.3})
    spec = Search("s", base, space, trials=3)
    result = search(spec, Options(tmp_path, max_concurrent=1))
    assert len(result.cells) == 3
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    states = [t.state.name for t in study.trials]
    assert set(states) == {"COMPLETE", "PRUNED"}
    for trial, outcome in zip(study.trials, result.cells, strict=True):
        assert trial.intermediate_values
        if trial.state.name == "PRUNED":
            assert max(trial.intermediate_values) < base.refinement.epochs
            assert (outcome.state, outcome.summary) == ("stopped", None)
        else:
            summary = runs.read_json(Path(trial.user_attrs["run"]) / runs.SUMMARY)
            assert trial.value == pytest.approx(summary["validation"]["score"])
            assert set(summary["validation"]) == {"images", "consistency", "kept", "score"}
    assert -200 <= study.best_value <= 100
    assert (
        len({key(c.cell, "localizer") for c in result.cells}) == 1
    )  # the learning rate of stage 2 leaves stage 1 alone
    more = search(Search("s", base, space, trials=4), Options(tmp_path, max_concurrent=1, resume=True))
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'optuna.db'}").trials
    assert [t.state.name for t in trials][:3] == states
    assert trials[3].state.name in ("COMPLETE", "PRUNED")
    assert trials[3].params not in [t.params for t in trials[:3]]
    assert len(more.cells) == 4
    assert [c.cell for c in more.cells[:3]] == [c.cell for c in result.cells]
    assert [c.state for c in more.cells[:3]] == [c.state for c in result.cells]


def test_two_sweeps_at_once_on_one_storage(root: Path, tmp_path: Path) -> None:
    import ray

    script, storage = program(tmp_path, root), tmp_path / "results"
    address = ray.get_runtime_context().gcs_address
    # one place each, so that both want the same training at the same time
    flags = ["--storage", str(storage), "--address", address, "--max-concurrent", "1"]
    both = [start(script, *flags, "--name", n) for n in ("a", "b")]
    for process in both:
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    assert result_of(storage, "a") == result_of(storage, "b")
    results = {kind.name: len(list(kind.iterdir())) for kind in (storage / "store").iterdir()}
    assert results == {"classifier": 2, "localizer": 2, "refinement": 4}
    store = Store(storage)
    for job in jobs_of(expand(Sweep("x", pinned(small.config(root), gpu=False), CELLS))).values():
        assert store.find(job.kind, job.key) is not None


def test_a_name_in_use_is_refused(root: Path, tmp_path: Path) -> None:
    runs.make_folder(tmp_path / "sweeps" / "s")
    with locked(tmp_path / "sweeps" / "s" / "lock"), pytest.raises(RunError, match="still running"):
        run(Sweep("s", small.config(root), [{}]), Options(tmp_path))
