"""A sweep in trackers: a run per cell with the curves of all its links, sent once."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import small
from drained import drain, planned

from lchp.config import override
from lchp.errors import ConfigError
from lchp.evaluation.predictions import read_predictions
from lchp.files import runs
from lchp.files.remote import Remote
from lchp.harness import Options, Sweep, run
from lchp.harness import tracked as cells_of
from lchp.harness.cells import pinned
from lchp.harness.plan import Plan
from lchp.harness.sweep import SweepResult, tracked
from lchp.tracking import to_tensorboard
from lchp.tracking.feed import Subject, history
from lchp.training.run import train

CELLS = [{}, {"refinement.tau": 0.3}]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Of two cells that share their stage 1, all of it in the store."""
    root = small.make_folder(tmp_path_factory.mktemp("images"))
    base = pinned(override(small.config(root, first=2, second=1), {"refinement.labeller": "frozen"}), gpu=False)
    plan = planned(tmp_path_factory.mktemp("storage"), base, CELLS)
    drain(plan)
    return plan


def go_on(plan: Plan, *trackers: Any, name: str = "s", resume: bool = False) -> SweepResult:
    """The cells of the plan once more; there is nothing to train, so it needs no Ray."""
    options = Options(plan.options.storage, resume=resume or name == "s", track=trackers)
    return run(Sweep(name, plan.sweep.base, CELLS), options)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_history_of_a_cell_is_that_of_the_same_run_alone(plan: Plan, tmp_path: Path) -> None:
    outcome = go_on(plan).cells[1]
    assert outcome.run is not None
    alone = train(outcome.cell.config, output=tmp_path / "run")
    free = {"seconds", "images_per_second"}
    mine, its = (
        [{k: v for k, v in line.items() if k not in free} for line in history(folder)]
        for folder in (outcome.run, alone.run)
    )
    assert mine == its
    assert len(mine) == 2 + 2 + 1 + 1


def test_each_cell_is_a_run_that_is_sent_once(plan: Plan, mlflow_client: Any, tmp_path: Path) -> None:
    before = contents(plan.store.storage / "store")
    result = go_on(plan, "mlflow", "tensorboard", name="group")
    found = mlflow_client.search_runs([mlflow_client.get_experiment_by_name(tmp_path.name).experiment_id])
    by_key = {run.data.tags["key"]: run for run in found}
    assert len(found) == 2
    boards = {path.name.rpartition("-")[2]: path for path in (result.folder / "tensorboard").iterdir()}
    for outcome in result.cells:
        assert outcome.run is not None
        sent_run = by_key[outcome.cell.key]
        assert sent_run.data.tags["sweep"] == "group"
        assert sent_run.info.status == "FINISHED"
        assert sent_run.data.params["refinement.tau"] == str(outcome.cell.config.refinement.tau)
        points = mlflow_client.get_metric_history(sent_run.info.run_id, "initialization/loss")
        assert [(p.step, p.value) for p in points] == [
            (line["epoch"], line["loss"]) for line in history(outcome.run) if line["stage"] == "initialization"
        ]
        images = mlflow_client.list_artifacts(sent_run.info.run_id, "images")
        assert [a.path for a in images if a.path.endswith(".png")]
        assert boards[outcome.cell.key[:6]].is_dir()
    assert {run.info.run_name for run in found} == {"base, seed 0", "tau 0.3, seed 0"}
    sent = contents(result.folder / runs.TRACKERS) | contents(result.folder / "tensorboard")
    go_on(plan, "mlflow", "tensorboard", name="group", resume=True)
    assert contents(result.folder / runs.TRACKERS) | contents(result.folder / "tensorboard") == sent
    assert len(mlflow_client.search_runs([found[0].info.experiment_id])) == 2
    assert contents(plan.store.storage / "store") == before


def test_of_a_storage_behind_a_url_another_machine_knows_what_was_sent(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(plan.options.folder, tmp_path / "bucket")
    for machine in ("one", "another"):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine / "cache"))
        far = Options(Remote(f"file://{tmp_path}/bucket"), resume=machine == "another", track=("tensorboard",))
        result = run(Sweep("far", plan.sweep.base, CELLS), far)
        keys = {outcome.cell.key for outcome in result.cells}
        assert len(list((tmp_path / "bucket" / "sweeps" / "far" / "tensorboard").iterdir())) == len(keys)
        noted = contents(tmp_path / "bucket" / "sweeps" / "far" / runs.TRACKERS)
        assert {path.name for path in noted} == {f"tensorboard-{key}.json" for key in keys}
        assert all(json.loads(content)["done"] for content in noted.values())


def test_a_cell_is_sent_when_its_job_is_done(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    real = to_tensorboard.open_run

    def open_run(subject: Subject, known: str | None) -> Any:
        named.append(subject.name)
        return real(subject, known)

    monkeypatch.setattr(to_tensorboard, "open_run", open_run)
    monkeypatch.setattr(plan, "folder", tmp_path)
    monkeypatch.setattr(plan, "options", Options(plan.options.storage, track=("tensorboard",)))
    with tracked(plan) as changed:
        for progress in plan.schedule.jobs.values():
            if progress.job.kind != "refinement" or progress.job.name == plan.job_of(plan.cells[1]):
                changed(progress)
                changed(progress)
    assert named == ["tau 0.3, seed 0", "base, seed 0"]  # what was not told of is sent at the end


def test_a_tracker_that_is_away_is_one_warning_and_the_sweep_is_done(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionError("refused")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(to_tensorboard, "reach", refuse)
        patch.setattr(to_tensorboard, "open_run", refuse)
        result = go_on(plan, "tensorboard", name="away")
    assert [c.state for c in result.cells] == ["done", "done"]
    (record,) = caplog.records
    assert record.getMessage().startswith("--track tensorboard: refused; ")
    assert not (result.folder / "tensorboard").exists()
    again = go_on(plan, "tensorboard", name="away", resume=True)
    assert len(list((again.folder / "tensorboard").iterdir())) == 2


def test_a_missing_library_is_said_before_anything_is_done(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^--track wandb needs its client: pip install wandb$"):
        go_on(plan, "wandb", name="never")
    assert not (plan.store.storage / "sweeps" / "never").exists()


def test_the_picture_of_a_cell_has_the_boxes_of_all_results(plan: Plan) -> None:
    outcome = go_on(plan).cells[0]
    assert outcome.run is not None
    assert {"pseudo_label_box", "lchp_i_box", "lchp_r_box"} <= set(read_predictions(outcome.run).column_names)
    picture = cells_of.picture_of(outcome.run, outcome.cell.config)
    assert picture.shape == (24 + 4 * 192, 4 * 192, 3)
