"""The harness without Ray: store, cells, schedule, plans."""

import importlib
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pytest
import small

from lchp.checkpoints import previous, save_checkpoint
from lchp.cli import parse
from lchp.config import OPEN_CHOICES, PRESETS, TrainConfig, alternatives, override, preset, to_flat
from lchp.errors import ConfigError, RunError
from lchp.harness import Options, Sweep, grid, main
from lchp.harness.cells import Cell, Job, expand, jobs_of, make_cell, pinned
from lchp.harness.schedule import FINISHED, Schedule
from lchp.harness.startup import Resources
from lchp.harness.storage import DONE, RESULT, Store
from lchp.harness.sweep import (
    SWEEP,
    Outcome,
    Patience,
    Plan,
    SweepResult,
    Timing,
    make_plan,
    places_for,
    recorded,
    require_new,
    write_record,
)
from lchp.harness.tables import timing_line
from lchp.harness.trainable import Setting, run_job
from lchp.locks import locked

SWEEPS = Path(__file__).parents[1] / "sweeps"


@pytest.fixture(autouse=True)
def sweeps_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SWEEPS))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


# --- the store


def finished(store: Store, stage: int = 1, key: str = "k", text: str = "result") -> Path:
    work = store.storage / "work" / f"{key}-{text}"
    (work / "checkpoints").mkdir(parents=True)
    for name in RESULT:
        (work / name).write_text(text)
    (work / "checkpoints" / "a.pt").write_bytes(b"weights")
    return store.publish(work, stage, key)


def test_a_published_result_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(1, "k") is None
    folder = finished(store)
    assert store.find(1, "k") == folder
    assert store.find(2, "k") is None
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("damage", ["byte", "missing", "no DONE", "bad DONE", "other key"])
def test_a_damaged_result_is_moved_aside_and_said_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    folder = finished(store)
    if damage == "byte":
        (folder / "checkpoints" / "a.pt").write_bytes(b"weighta")
    elif damage == "missing":
        (folder / "summary.json").unlink()
    elif damage == "no DONE":
        (folder / DONE).unlink()
    elif damage == "bad DONE":
        (folder / DONE).write_text("{")
    else:
        folder = folder.rename(store.path(1, "other"))
    with caplog.at_level(logging.WARNING):
        assert store.find(1, folder.name) is None
    assert "damaged" in caplog.text
    assert not folder.exists()
    assert len(list((tmp_path / "store" / "damaged").iterdir())) == 1
    finished(store, key=folder.name, text="again")
    assert store.find(1, folder.name) == folder


def test_a_result_is_published_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finished(store, text="first")
    assert finished(store, text="second") == folder
    assert (folder / "summary.json").read_text() == "first"
    assert store.find(1, "k") == folder
    assert not list((tmp_path / "work").iterdir())


def test_publishing_over_a_damaged_result_replaces_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finished(store, text="first")
    (folder / "summary.json").write_text("changed")
    finished(store, text="second")
    assert (folder / "summary.json").read_text() == "second"


def test_a_published_result_has_no_second_copies_of_checkpoints(tmp_path: Path) -> None:
    store, checkpoint = Store(tmp_path), tmp_path / "work" / "checkpoints" / "initialization.pt"
    checkpoint.parent.mkdir(parents=True)
    for name in RESULT:
        (tmp_path / "work" / name).write_text("result")
    for content in (b"older", b"newest"):
        save_checkpoint(checkpoint, {"content": content})
    assert previous(checkpoint).exists()
    folder = store.publish(tmp_path / "work", 1, "k")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["initialization.pt"]
    assert store.find(1, "k") == folder


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(RunError, match=r"still running \(pid \d+ on"),
        locked(tmp_path / "lock"),
    ):
        pass
    with locked(tmp_path / "lock"):
        pass


# --- cells and keys


def test_grid_varies_the_last_axis_fastest() -> None:
    assert grid({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


def test_equal_configs_are_one_cell() -> None:
    base = pinned(preset("parts"), gpu=False)
    delta = base.initialization.delta
    cells = expand(Sweep("s", base, [{}, {"initialization.delta": delta}, {"refinement.tau": 0.5}], seeds=(0, 1)))
    assert len(cells) == 4
    assert len({c.stage1 for c in cells}) == 2  # one per seed
    assert {c.config.seed for c in cells} == {0, 1}


def test_stage_1_does_not_depend_on_which_cell_came_first() -> None:
    base = pinned(preset("parts"), gpu=False)
    taus = grid({"refinement.tau": [0.5, 0.9]})
    one, two = (expand(Sweep("s", base, c)) for c in (taus, taus[::-1]))
    (a,), (b,) = ([j for j in jobs_of(c).values() if j.stage == 1] for c in (one, two))
    assert a == b


def test_what_is_measured_belongs_to_a_record_but_not_to_its_training() -> None:
    base = pinned(preset("parts"), gpu=False)
    cells = expand(Sweep("s", base, [{}, {"evaluation.consistency": True}, {"evaluation.batch_size": 7}]))
    assert len(cells) == 2
    assert len({c.stage1 for c in cells}) == 1


def test_a_job_survives_the_way_to_a_trial() -> None:
    cell = expand(Sweep("s", preset("parts"), [{"refinement.augmentations": ["flip"]}]))[0]
    for job in jobs_of([cell]).values():
        assert Job.from_dict(job.to_dict()) == job


def test_grids_and_seeds_of_numpys_numbers_are_cells_of_plain_ones() -> None:
    axes = {"initialization.delta": np.linspace(0.2, 0.6, 3), "initialization.epochs": np.arange(1, 3)}
    plain = {"initialization.delta": [0.2, 0.4, 0.6], "initialization.epochs": [1, 2]}
    seeds: Any = np.arange(2)
    one = expand(Sweep("s", preset("parts"), grid(axes), seeds))
    two = expand(Sweep("s", preset("parts"), grid(plain), (0, 1)))
    assert one == two
    assert len(one) == 12
    assert [json.dumps(c.overrides) for c in one] == [json.dumps(c.overrides) for c in two]


def test_pinned_leaves_nothing_to_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = override(preset("cub"), {"data.root": "cub", "model.weights_dir": "w", "data.cache": "c"})
    found = pinned(config, gpu=False)
    assert (found.device, found.threads) == ("cpu", 1)
    assert found.precision != "auto"
    assert found.data.root == str(tmp_path / "cub")
    assert found.model.weights_dir == str(tmp_path / "w")
    assert found.data.cache == str(tmp_path / "c")
    assert pinned(config, gpu=True).device == "cuda"
    assert pinned(override(config, {"device": "cpu"}), gpu=True).device == "cpu"
    assert pinned(found, gpu=False) == found


@pytest.mark.parametrize("name", PRESETS)
def test_the_tables_of_a_preset_share_its_default_cell(name: str) -> None:
    chosen = PRESETS[name]
    assert chosen.config.initialization.delta in chosen.deltas
    assert chosen.config.refinement.tau in chosen.taus
    assert chosen.config.model.localizer in chosen.localizers
    assert len(chosen.deltas) == 4
    assert len(chosen.taus) == 6
    assert len(chosen.localizers) == 3


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("delta_tau", 4, 24),
        ("augmentations", 1, 7),
        ("backbones", 3, 3),
        ("all_tables", 6, 17),
        ("open_choices", 10, 18),
    ],
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_trainings_of_each_sweep(tmp_path: Path, name: str, first: int, second: int, seeds: int) -> None:
    cells = script(name).cells(PRESETS["parts"])
    plan = make_plan(Sweep(name, preset("parts"), cells, range(seeds)), Options(tmp_path))
    assert plan.schedule.count(1, "waiting") == first * seeds
    assert plan.schedule.count(2, "waiting") == second * seeds


def test_dry_run_says_what_is_to_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lchp.harness import main

    status = main("delta_tau", script("delta_tau").cells, argv=["--dry-run", "--storage", str(tmp_path)])
    out = capsys.readouterr().out.splitlines()
    assert status == 0
    assert "stage 1: 4 to train, 0 in store; stage 2: 24 to train, 0 in store" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "x"], "--seed"),
        (["--seeds", "0"], "--seeds = 0: expected at least 1"),
        (["--limit", "0"], "--limit = 0: expected at least 1"),
        (["--gpus-per-trial", "-1"], "--gpus-per-trial = -1.0: expected at least 0"),
        (["--gpus-per-trial", "1.5"], "a share of one GPU, or a whole number"),
        (["--storag", "x"], "did you mean --storage"),
        (["--preset", "cab"], "did you mean cub"),
        (["--name", "a/b"], "expected a plain name"),
        (["--workers-per-trial", "2", "--gpus-per-trial", "0.5"], "workers of one training need a GPU each"),
        (["--workers-per-trial", "3"], "data.batch_size = 32: cannot be cut into equal parts for 3 workers"),
        (["--initialization.delta", "7"], "initialization.delta = 7.0: expected in (0, 1)"),
        (["--preset", "cub"], "data.root is not set"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    from lchp.harness import main

    storage = [] if flags[0] == "--storag" else ["--storage", str(tmp_path)]
    status = main("delta_tau", script("augmentations").cells, argv=["--dry-run", *storage, *flags])
    err = capsys.readouterr().err
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_failed_cell_is_named_and_makes_the_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lchp.harness import cli

    def one_fails(sweep: Sweep, options: Options, **_: object) -> SweepResult:
        (cell,) = expand(replace(sweep, cells=sweep.cells[:1]))
        return SweepResult(options.storage, [Outcome(cell, "failed", "training diverged", None, None)])

    monkeypatch.setattr(cli, "run", one_fails)
    assert cli.main("backbones", script("backbones").cells, argv=["--storage", str(tmp_path)]) == 1
    assert "failed: localizer tiny, seed 0: training diverged" in capsys.readouterr().out


def test_delta_tau_begins_with_the_cells_of_its_tables() -> None:
    chosen = PRESETS["cub"]
    cells = script("delta_tau").cells(chosen)
    delta, tau = chosen.config.initialization.delta, chosen.config.refinement.tau
    of_tables = [c["initialization.delta"] == delta or c["refinement.tau"] == tau for c in cells]
    assert of_tables == [True] * 9 + [False] * 15


def test_a_limit_takes_the_first_cells_and_a_resumed_sweep_the_others(tmp_path: Path) -> None:
    from lchp.harness import cli

    def planned(*flags: str) -> Plan:
        argv = ["--seeds", "2", *flags]
        wanted = parse(cli.Flags, argv, "all_tables.py", cli.Flags(preset("parts")))
        return make_plan(wanted.sweep("all_tables", script("all_tables").cells), Options(tmp_path))

    everything = [c.stage2 for c in planned().cells]
    few = planned("--limit", "10")  # the tenth comes after the last tau, which is the recipe a second time
    first = [c.stage2 for c in few.cells]
    assert first == [*everything[:10], *everything[17:27]]
    write_record(few)
    assert [c.stage2 for c in planned("--limit", "10").cells] == first
    after = [c.stage2 for c in planned().cells]
    assert after[:20] == first
    assert sorted(after) == sorted(everything)


@pytest.mark.parametrize("name", PRESETS)
def test_open_choices_vary_one_field_of_the_recipe(name: str) -> None:
    chosen = PRESETS[name]
    recipe, *others = script("open_choices").cells(chosen)
    assert recipe == {}
    flat, configs = to_flat(chosen.config), {chosen.config}
    for cell in others:
        changed = override(chosen.config, cell)
        configs.add(changed)
        assert [n for n, v in to_flat(changed).items() if v != flat[n]] == list(cell)
    assert len(configs) == len(others) + 1
    assert list(dict.fromkeys(n for cell in others for n in cell)) == list(OPEN_CHOICES)


def test_an_alternative_that_contradicts_the_recipe_is_no_cell() -> None:
    gap = override(preset("parts"), {"model.head": "gap", "initialization.attention": "features"})
    fields = [name for name, _ in alternatives(gap)]
    assert set(OPEN_CHOICES) - set(fields) == {"initialization.attention"}
    margins = [v for n, v in alternatives(override(gap, {"refinement.crop_margin": 0.1})) if n.endswith("margin")]
    assert margins == [0.0, 0.05]


def test_a_resumed_search_keeps_what_it_stopped(tmp_path: Path) -> None:
    """Pruned trials have no result; they stay in the record all the same, and what was running is asked again."""
    from lchp.harness.search import Search, Study, open_study

    def cell_of(trial: optuna.Trial) -> Cell:
        return make_cell(base, {"refinement.tau": trial.suggest_float("refinement.tau", 0.1, 0.9)})

    base = preset("parts")
    study = open_study(tmp_path, "s")
    cells = []
    for _ in range(2):
        trial = study.ask()
        cells.append(cell_of(trial))
        trial.set_user_attr("run", str(tmp_path / "store" / "stage2" / cells[-1].stage2))
        if len(cells) == 1:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    plan = Plan(Sweep("s", base, []), Options(tmp_path), cells, Schedule([]), Store(tmp_path), tmp_path)
    pruned, running = cells
    taken = Study(plan, study, Search("s", base, lambda t: cell_of(t).overrides, trials=2))
    taken.take_up()
    assert [(c.stage2, plan.schedule.jobs[f"stage2-{c.stage2}"].state) for c in plan.cells] == [
        (pruned.stage2, "stopped")
    ]
    assert [j.key for j in taken.refill() if j.stage == 2] == [running.stage2]
    assert taken.refill() == []


def test_a_search_that_died_before_it_told_keeps_the_result(tmp_path: Path) -> None:
    from lchp.harness.search import Search, Study, open_study

    base, store, study = preset("parts"), Store(tmp_path), open_study(tmp_path, "s")
    trial = study.ask()
    cell = make_cell(base, {"refinement.tau": trial.suggest_float("refinement.tau", 0.1, 0.9)})
    trial.set_user_attr("run", str(store.path(2, cell.stage2)))
    finished(store, 2, cell.stage2, '{"validation": {"score": 1.5}}')
    plan = Plan(Sweep("s", base, []), Options(tmp_path), [cell], Schedule([]), store, tmp_path)
    spec = Search("s", base, lambda t: {"refinement.tau": t.suggest_float("refinement.tau", 0.1, 0.9)}, trials=1)
    taken = Study(plan, study, spec)
    taken.take_up()
    assert taken.refill() == []
    assert [(t.state.name, t.value) for t in study.trials] == [("COMPLETE", 1.5)]


def test_a_damaged_result_of_a_search_is_trained_again(tmp_path: Path) -> None:
    from lchp.harness.search import Search, Study, open_study

    base, store, study = preset("parts"), Store(tmp_path), open_study(tmp_path, "s")
    trial = study.ask()
    cell = make_cell(base, {"refinement.tau": trial.suggest_float("refinement.tau", 0.1, 0.9)})
    trial.set_user_attr("run", str(store.path(2, cell.stage2)))
    study.tell(trial, 1.5)
    plan = Plan(Sweep("s", base, []), Options(tmp_path), [cell], Schedule([]), store, tmp_path)
    Study(plan, study, Search("s", base, lambda _: {}, trials=1)).take_up()
    assert [plan.schedule.jobs[f"stage{s}-{k}"].state for s, k in ((1, cell.stage1), (2, cell.stage2))] == [
        "waiting",
        "waiting",
    ]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(range(5_001), "2 x 5001 = 10002"), (range(10**9), "2 x 1000000000 = 2000000000"), (range(10**30), "2 x 9")],
)
def test_too_many_cells_are_counted_and_not_made(seeds: range, said: str) -> None:
    with pytest.raises(ConfigError, match=f"s: cells x --seeds: {said}.* cells, expected at most 10000; take"):
        expand(Sweep("s", preset("parts"), [{}, {"refinement.tau": 0.1}], seeds))


def test_too_large_a_grid_is_counted_and_not_made() -> None:
    values = {f"field{i}": range(100) for i in range(9)}
    with pytest.raises(ConfigError, match=f"the grid: 100 x 100 .*= {100**9} cells, expected at most 10000"):
        grid(values)
    with pytest.raises(ConfigError, match="the grid: 10001"):
        grid({"refinement.tau": itertools.count()})
    assert len(grid({"a": iter(range(100)), "b": range(100)})) == 10_000


def test_seeds_without_number_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flags, said in (
        (["--seeds", "1000000000"], "1 x 1000000000 = 1000000000 cells, expected at most 10000"),
        (["--seeds", str(10**40)], "cells, expected at most 10000"),
        (["--seed", str(2**31 - 1), "--seeds", "2"], "seed = 2147483648: expected in 0..2^31-1"),
        (["--seed", str(2**31)], "2147483648"),
    ):
        assert main("s", lambda _: [{}], argv=[*flags, "--dry-run", "--storage", str(tmp_path)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert said in err


def test_an_oracle_needs_boxes(tmp_path: Path) -> None:
    from lchp.harness.search import Search, search

    root = small.make_folder(tmp_path / "images")
    (root / "boxes.csv").unlink()
    spec = Search("s", small.config(root), lambda _: {}, objective="oracle_gt_known")
    with pytest.raises(ConfigError, match="no boxes to choose by"):
        search(spec, Options(tmp_path / "results"))


def test_a_sweep_goes_on_after_its_data_has_moved(tmp_path: Path) -> None:
    root = small.make_folder(tmp_path / "images")
    sweep = Sweep("s", small.config(root), grid({"refinement.tau": [0.1, 0.2]}))
    before = make_plan(sweep, Options(tmp_path / "results"))
    write_record(before)
    root.rename(tmp_path / "moved")
    after = make_plan(replace(sweep, base=small.config(tmp_path / "moved")), Options(tmp_path / "results"))
    assert [c.stage2 for c in after.cells] == [c.stage2 for c in before.cells]


def test_a_flag_that_the_sweep_sets_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lchp.harness import main

    argv = ["--dry-run", "--storage", str(tmp_path), "--initialization.delta", "0.4"]
    assert main("delta_tau", script("delta_tau").cells, argv=argv) == 2
    assert (
        "--initialization.delta 0.4: this sweep sets it in every cell (0.1, 0.3, 0.5, 0.7)" in capsys.readouterr().err
    )


def test_a_dry_run_changes_nothing_and_names_earlier_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from lchp.harness import main

    store, base = Store(tmp_path), pinned(preset("parts"), gpu=False)
    cells = script("backbones").cells(PRESETS["parts"])
    plan = make_plan(Sweep("backbones", base, cells[:1]), Options(tmp_path))
    write_record(plan)
    damaged = finished(store, 2, plan.cells[0].stage2)
    (damaged / "summary.json").write_text("changed")
    before = sorted(tmp_path.rglob("*"))
    argv = ["--dry-run", "--resume", "--limit", "1", "--device", "cpu"]
    here = [*argv, "--storage", str(tmp_path), "--initialization.epochs", "1"]
    assert main("backbones", script("backbones").cells, argv=here) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "would be moved aside" in caplog.text
    out = capsys.readouterr().out
    assert "localizer tiny (initialization.epochs 4)" in out
    assert main("backbones", script("backbones").cells, argv=[*argv, "--storage", f"{tmp_path}x"]) == 0
    assert "holds no sweep backbones to go on with" in caplog.text


def settings(tmp_path: Path, **more: str) -> Setting:
    """Of a storage and a folder of unfinished trainings that are there, as a driver makes them."""
    for name in ("results", "work"):
        (tmp_path / name).mkdir()
    return Setting(str(tmp_path / "results"), str(tmp_path / "work"), **more)


def test_sharing_may_be_switched_between_two_starts(tmp_path: Path) -> None:
    """A cell that was begun with its own stage 1 is not gone on with from a shared one."""
    config = pinned(small.config(small.make_folder(tmp_path / "images"), first=1, second=2), gpu=False)
    (cell,) = expand(Sweep("s", config, [{}]))
    setting = settings(tmp_path)
    said: list[dict[str, object]] = []

    def stop(result: dict[str, object]) -> None:
        if result.get("train_stage") == "refinement":
            raise KeyboardInterrupt

    (alone,) = jobs_of([cell], share=False).values()
    with pytest.raises(KeyboardInterrupt):
        run_job(alone, setting, stop)
    for job in jobs_of([cell]).values():
        run_job(job, setting, said.append)
    assert [r["state"] for r in said if r["state"] != "running"] == ["done", "done"]


@pytest.mark.parametrize("damaged", [["newest"], ["newest", "previous"]])
def test_a_work_folder_is_kept_as_long_as_a_checkpoint_of_each_stage_is_intact(
    tmp_path: Path, damaged: list[str]
) -> None:
    config = pinned(small.config(small.make_folder(tmp_path / "images"), first=3, second=1), gpu=False)
    job = next(j for j in jobs_of(expand(Sweep("s", config, [{}]))).values() if j.stage == 1)
    setting = settings(tmp_path)

    def stop(result: dict[str, object]) -> None:
        if result.get("done_epochs") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, setting, stop)
    newest = tmp_path / "work" / job.name / "checkpoints" / "initialization.pt"
    for name, path in (("newest", newest), ("previous", previous(newest))):
        if name in damaged:
            path.write_bytes(path.read_bytes()[:-100])
    epochs: list[object] = []
    run_job(job, setting, lambda result: epochs.append(result.get("done_epochs")))
    assert epochs == ([2, 3, None] if damaged == ["newest"] else [1, 2, 3, None])


def test_a_fresh_start_refuses_unfinished_trainings_whose_record_is_gone(tmp_path: Path) -> None:
    from lchp.harness import run
    from lchp.harness.search import Search, search

    begun = tmp_path / "sweeps" / "s" / "work" / "stage1-0123" / "metrics.jsonl"
    begun.parent.mkdir(parents=True)
    begun.write_text("{}")
    base = preset("parts")
    for start in (lambda o: run(Sweep("s", base, [{}]), o), lambda o: search(Search("s", base, lambda _: {}), o)):
        with pytest.raises(RunError, match=r"holds unfinished trainings of a sweep already; .* --resume, or take"):
            start(Options(tmp_path))
    assert begun.exists()


def test_overhead_is_what_training_does_not_explain() -> None:
    timing = Timing(wall=60, training=100, places=2)
    assert timing.overhead == pytest.approx(20)
    assert Timing(60, 0, 2).overhead is None


def test_search_space_fits_every_preset() -> None:
    for chosen in PRESETS.values():
        trial = optuna.create_study().ask()
        override(chosen.config, script("search").space(chosen, trial))


# --- the schedule


def jobs() -> list[Job]:
    """Two stage-1 jobs; three stage-2 jobs, two of them on the first."""
    base = TrainConfig()
    first = [Job(1, k, base) for k in ("a", "b")]
    second = [Job(2, k, replace(base, seed=i), s) for i, (k, s) in enumerate((("x", "a"), ("y", "a"), ("z", "b")))]
    return [*first, *second]


def take(schedule: Schedule) -> str:
    job = schedule.next()
    assert isinstance(job, Job)
    return job.name


def test_stage_2_is_released_when_its_stage_1_is_there() -> None:
    schedule = Schedule(jobs())
    assert [take(schedule), take(schedule)] == ["stage1-a", "stage1-b"]
    assert schedule.next() is None  # later, and nothing is held meanwhile
    schedule.done("stage1-b")
    assert take(schedule) == "stage2-z"
    assert schedule.next() is None
    schedule.done("stage1-a")
    assert [take(schedule), take(schedule)] == ["stage2-x", "stage2-y"]
    assert schedule.next() is None  # running ones may still come back
    for name in ("stage2-x", "stage2-y", "stage2-z"):
        schedule.done(name)
    assert schedule.next() == FINISHED


def test_a_failed_stage_1_fails_its_cells_and_no_others() -> None:
    schedule = Schedule(jobs())
    take(schedule)
    take(schedule)
    schedule.failed("stage1-a", "no weights")
    schedule.done("stage1-b")
    assert take(schedule) == "stage2-z"
    schedule.done("stage2-z")
    assert schedule.next() == FINISHED
    assert schedule.jobs["stage2-x"].state == schedule.jobs["stage2-y"].state == "failed"
    assert "no weights" in (schedule.jobs["stage2-x"].error or "")


def test_a_source_that_failed_meanwhile_fails_who_lost_it() -> None:
    """Otherwise a schedule would wait for ever for a stage 1 that nobody trains any more."""
    schedule = Schedule(j for j in jobs() if "a" in (j.key, j.source))
    first, *others = schedule.jobs
    for name in (first, *others):
        schedule.jobs[name].state = "running"
    schedule.done(first)
    schedule.lost_source(others[0])
    assert schedule.jobs[first].state == "waiting"
    schedule.failed(first, "out of memory")
    assert "out of memory" in (schedule.jobs[others[0]].error or "")
    schedule.lost_source(others[1])
    assert {p.state for p in schedule.jobs.values()} == {"failed"}
    assert schedule.next() == FINISHED


def test_a_job_whose_worker_dies_is_run_again_until_it_no_longer_gets_on() -> None:
    schedule = Schedule(jobs())
    for epoch in range(1, 9):  # it finishes an epoch between any two deaths
        assert take(schedule) == "stage1-a"
        schedule.finished_epoch("stage1-a", epoch)
        schedule.died("stage1-a", "killed", 1)
    assert take(schedule) == "stage1-a"
    schedule.finished_epoch("stage1-a", 8)  # the same one again
    schedule.died("stage1-a", "no room for 9 GB", 1)
    assert schedule.jobs["stage1-a"].state == "failed"
    said = "its worker died 2 times without finishing an epoch in between: no room for 9 GB"
    assert schedule.jobs["stage1-a"].error == said
    assert said in (schedule.jobs["stage2-x"].error or "")
    assert take(schedule) == "stage1-b"
    schedule.died("stage1-b", "killed", 0)
    assert schedule.jobs["stage1-b"].error == "its worker died: killed"


def test_a_damaged_source_is_trained_again_a_few_times_at_most() -> None:
    schedule = Schedule(jobs())
    schedule.done("stage1-a", found=True)
    take(schedule)  # stage1-b
    for _ in range(Schedule.MAX_LOST - 1):
        assert take(schedule) == "stage2-x"
        schedule.lost_source("stage2-x")
        assert take(schedule) == "stage1-a"
        schedule.done("stage1-a")
    assert take(schedule) == "stage2-x"
    schedule.lost_source("stage2-x")
    assert schedule.jobs["stage2-x"].state == "failed"


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "there", "places"),
    [
        (1, 1, 0, (2, 0), 2),
        (1, 4, 0, (6, 0), 1),  # threads x trials stay within the cores
        (1, 1, 0.5, (16, 2), 4),
        (1, 1, 0.4, (16, 2), 4),  # two to a GPU: its last fifth serves nobody
        (2, 1, 1, (16, 8), 4),
        (1, 8, 1, (16, 8), 2),
    ],
)
def test_places(workers: int, cpus: float, gpus: float, there: tuple[float, float], places: int) -> None:
    setting = Setting("s", "w", workers, cpus, gpus)
    assert places_for(setting, Options(), Resources(*there, 1)) == places
    assert places_for(setting, Options(max_concurrent=1), Resources(*there, 1)) == 1


def test_a_trial_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 x \\(1 CPUs, 1 GPUs\\), but Ray has 2 CPUs and 0 GPUs"):
        places_for(Setting("s", "w", 1, 1, 1), Options(), Resources(2, 0, 1))


def test_only_the_harness_and_the_sweeps_import_ray() -> None:
    root = Path(__file__).parents[1]
    found = {
        path.relative_to(root).parts[:2]
        for path in [*(root / "lchp").rglob("*.py"), *(root / "sweeps").glob("*.py"), *(root / "analysis").glob("*.py")]
        if any(line.strip().startswith(("import ray", "from ray")) for line in path.read_text().splitlines())
    }
    assert found <= {("lchp", "harness")}


# --- what a sweep says and leaves


def small_plan(folder: Path) -> Plan:
    (folder / "sweep").mkdir(parents=True)
    cells = expand(Sweep("s", pinned(preset("parts"), gpu=False), [{}]))
    schedule = Schedule(jobs_of(cells).values())
    return Plan(Sweep("s", cells[0].base, [{}]), Options(folder), cells, schedule, Store(folder), folder / "sweep")


def test_a_new_sweep_in_which_nothing_began_leaves_no_record(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)

    def start_fails(error: type[BaseException]) -> None:
        with recorded(plan):
            assert (plan.folder / SWEEP).exists()
            raise error("no cluster")

    def ends(error: type[BaseException]) -> None:
        with pytest.raises(error):
            start_fails(error)

    ends(ConfigError)
    assert not (plan.folder / SWEEP).exists()
    require_new(plan.folder)
    next(iter(plan.schedule.jobs.values())).attempts = 1
    ends(KeyboardInterrupt)
    assert (plan.folder / SWEEP).exists()
    for progress in plan.schedule.jobs.values():  # one that goes on keeps its record
        progress.attempts = 0
    ends(RunError)
    assert (plan.folder / SWEEP).exists()


def test_the_last_line_tells_no_training_from_none_left(tmp_path: Path) -> None:
    assert timing_line(SweepResult(tmp_path, [])) == "nothing was left to train"
    failed = SweepResult(tmp_path, [], Timing(90, 0, 2))
    assert timing_line(failed) == "1.5 minutes, in which no training was finished"


def test_who_waits_for_a_place_is_told_so_and_not_for_ever(tmp_path: Path) -> None:
    plan, said, now = small_plan(tmp_path), [], [0.0]
    write_record(plan)

    def patience(*, shared: bool) -> Patience:
        now[0] = 0.0
        return Patience(plan, "1 x (2 CPUs, 0 GPUs)", shared, said.append, lambda: now[0])

    def look(waiting: Patience, *times: float) -> list[str]:
        said.clear()
        for now[0] in times:
            waiting.look()
        return said

    waiting = patience(shared=True)
    assert look(waiting, 1000) == []  # nothing was handed out
    job = plan.schedule.next()
    assert isinstance(job, Job)
    start = now[0]
    assert look(waiting, start + 59) == []
    assert look(waiting, start + 61, start + 70, start + 119) == [
        "no training has begun for 61 s: waiting for 1 x (2 CPUs, 0 GPUs); others may hold what the cluster has"
    ]
    assert len(look(waiting, start + 121, start + 230, start + 241, start + 5000)) == 3
    with pytest.raises(RunError, match=r"no training has begun for 601 s, though each needs no more than 1 x"):
        look(patience(shared=False), 601)
    (plan.work / f"{job.name}.lock").parent.mkdir()
    (plan.work / f"{job.name}.lock").touch()
    assert look(patience(shared=False), 100, 10_000) == []
