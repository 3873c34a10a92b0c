"""The harness on real Ray, in this process: sharing, wrappers, packing, faults, searching. Everything here is slow."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import small
from drained import drain, planned
from forked_workers import forked_workers
from programs import finished_epochs

from lchp.config import override
from lchp.errors import RunError
from lchp.files import runs
from lchp.files.locks import locked
from lchp.harness import Options, Sweep, SweepResult, grid, run
from lchp.harness.cells import Cell
from lchp.harness.cluster import cluster
from lchp.harness.plan import Plan, make_plan
from lchp.harness.record import outcomes_of
from lchp.harness.running import Hooks
from lchp.harness.store import Store
from lchp.training.chain import Kind
from lchp.training.run import train

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("on_ray")]

CELLS = grid({"initialization.delta": [0.2, 0.4], "refinement.tau": [0.0, 0.2]})
CHECKPOINT = f"{runs.CHECKPOINTS}/*.pt"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray for the tests that run in this process; the GPUs are only counted."""
    with pytest.MonkeyPatch.context() as patch, forked_workers(tmp_path_factory.mktemp("workers")):
        patch.delenv("CUDA_VISIBLE_DEVICES")  # empty (conftest.py), it would forbid Ray to count any
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
    options = Options(tmp_path_factory.mktemp("straight"), max_concurrent=1)  # each has a process, which starts slowly
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
    failed = run(sweep, Options(tmp_path, max_failures=1, max_concurrent=1, resume=True))
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


def held_still(work: Path) -> int | None:
    """The process that trains in a work folder, stopped there; None where none does any more."""
    lock = work.with_name(f"{work.name}.lock")

    def holder() -> int | None:
        with contextlib.suppress(OSError, IndexError):  # no lock yet, or one that is being written
            return int(lock.read_text().split()[1])
        return None

    process = holder()
    if process is None or not is_worker(process):
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)
        if work.is_dir() and holder() == process:
            return process
        os.kill(process, signal.SIGCONT)  # it has published its result, and may train elsewhere
    return None


def is_worker(process: int) -> bool:
    with contextlib.suppress(OSError):
        return "ray::" in Path(f"/proc/{process}/cmdline").read_text()
    return False


def kill_at_random(storage: Path, killed: list[tuple[str, list[Any]]]) -> None:
    """SIGKILLs a process that trains, drawn at random: at the start, and once the trainings have got half-way, one with
    a checkpoint; each time as many epochs later as is drawn. Notes the job and its epochs that have a checkpoint."""
    draw = random.Random(0)
    for epochs, files in ((0, "*"), (8, CHECKPOINT)):
        epochs += draw.randrange(4)
        while finished_epochs(storage) < epochs:
            time.sleep(0.02)
        process = None
        while process is None:
            time.sleep(0.02)
            training = [w for w in storage.glob("sweeps/*/work/*") if w.is_dir() and any(w.glob(files))]
            work = draw.choice(sorted(training)) if training else storage
            process = held_still(work)
        lines = runs.read_metrics(work)  # the newest may lack its checkpoint
        killed.append((work.name, lines[: max(any(work.glob(CHECKPOINT)), len(lines) - 1)]))
        os.kill(process, signal.SIGKILL)


def test_killing_workers_at_random_loses_nothing(straight: SweepResult, root: Path, tmp_path: Path) -> None:
    """What was killed is tried again from its checkpoint; all cells end with whole records, bitwise those of an
    undisturbed sweep, and nothing is left lying about."""
    killed: list[tuple[str, list[Any]]] = []
    killer = threading.Thread(target=kill_at_random, args=(tmp_path, killed), daemon=True)
    killer.start()
    result = run(Sweep("killed", small.config(root), CELLS), Options(tmp_path, max_failures=20, max_concurrent=2))
    assert len(killed) == 2
    assert len(result.cells) == 4
    assert predictions(result) == predictions(straight)
    done, starts = jobs(result), Counter(name for name, _ in killed)
    assert {n: (j["state"], j["attempts"]) for n, j in done.items()} == {n: ("done", 1 + starts[n]) for n in done}
    store = Store(tmp_path)
    for name in done:
        kind, _, of_result = name.partition("-")
        folder = store.find(cast("Kind", kind), of_result, look_only=True)
        assert folder is not None
        lines = runs.read_metrics(folder)
        assert [m["epoch"] for m in lines] == list(range(1, len(lines) + 1))
        for kept in (kept for of, kept in killed if of == name):
            assert lines[: len(kept)] == kept  # trained once, before the kill: their times are those of then
    assert killed[1][1]
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
    """DDP through Ray Train: the records are whole, and near those of one worker. What trying again would not mend,
    here a result that has no place, is not tried again, and costs nothing of the training."""
    with_stage_1(straight, tmp_path)
    place = tmp_path / "store" / "refinement"
    place.touch()
    sweep = Sweep("ddp", small.config(root), CELLS[:1])
    result = run(sweep, Options(tmp_path, workers_per_trial=2))
    (failed,) = result.cells
    assert f"{place / failed.cell.key}: cannot be written (File exists)" in (failed.error or "")
    name = f"refinement-{failed.cell.key}"
    assert jobs(result)[name]["attempts"] == 1
    mine = runs.read_metrics(result.folder / "work" / name)
    place.unlink()
    plan = planned(tmp_path, sweep.base, sweep.cells, sweep.name)
    drain(plan)
    (cell,) = outcomes_of(plan)
    assert cell.state == "done", cell.error
    assert cell.run is not None
    assert runs.read_metrics(cell.run) == mine  # and nothing was trained again
    other = next(c for c in straight.cells if c.cell.key == cell.cell.key)
    assert other.run is not None
    theirs = runs.read_metrics(other.run)
    assert [m["loss"] for m in mine] == pytest.approx([m["loss"] for m in theirs], rel=2e-2, abs=1e-3)


# --- searching


def search_here(plan: Plan, hooks: Hooks, **_: Any) -> None:
    """A search's trainings, one after the other in this process."""
    while drawn := hooks.refill():
        plan.schedule.add(drawn)
        for name in drain(plan):
            hooks.changed(plan.schedule.jobs[name])


def test_search_without_boxes_stops_bad_trials_and_keeps_an_optuna_study(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label-only: the data has no boxes at all. The second trial is worse by far, and not trained to its end. Ray's
    search is gone on with in this process."""
    import optuna

    from lchp.harness import search as searching
    from lchp.harness.search import Search, search

    def space(trial: optuna.Trial) -> dict[str, Any]:
        rate = trial.suggest_float("refinement.lr", 1e-3, 2e-3, log=True)
        return {"refinement.lr": rate * (0.3 if trial.number == 1 else 1)}

    bare = tmp_path / "bare"
    shutil.copytree(root, bare, ignore=shutil.ignore_patterns("boxes.csv", ".cache"))
    values = {"evaluation.confidence": 0.1, "data.validation": 0.3, "data.resize": 72, "data.image_size": 64}
    base = override(small.config(bare, first=1, second=4), values)
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
    monkeypatch.setattr(searching, "run_trials", search_here)
    more = search(Search("s", base, space, trials=4), Options(tmp_path, resume=True))
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'optuna.db'}").trials
    assert [t.state.name for t in trials][:3] == states
    assert trials[3].state.name == "COMPLETE"
    assert trials[3].params not in [t.params for t in trials[:3]]
    assert len(more.cells) == 4
    assert [c.cell for c in more.cells[:3]] == [c.cell for c in result.cells]
    assert [c.state for c in more.cells[:3]] == [c.state for c in result.cells]


def test_ray_is_started_without_what_no_sweep_asks_for() -> None:
    from ray._private import node as nodes
    from ray._private import parameter, worker

    node = worker._global_node
    assert node is not None
    assert set(node.all_processes) == {"gcs_server", "raylet"}
    assert isinstance(parameter.RayParams, type)  # as it was
    assert nodes.Node.start_api_server.__name__ == "start_api_server"


def test_a_name_in_use_is_refused(root: Path, tmp_path: Path) -> None:
    runs.make_folder(tmp_path / "sweeps" / "s")
    with locked(tmp_path / "sweeps" / "s" / "lock"), pytest.raises(RunError, match="still running"):
        run(Sweep("s", small.config(root), [{}]), Options(tmp_path))
