"""The harness without Ray: store, cells, schedule, plans."""

import itertools
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
import small
from drained import three_seconds_an_epoch
from report_records import summary

from lchp.cli import main as command
from lchp.config import OPEN_CHOICES, PRESETS, TrainConfig, alternatives, override, preset, to_dict, to_flat
from lchp.console import parse
from lchp.errors import ConfigError, RunError
from lchp.files.locks import locked
from lchp.files.runs import SWEEP, write_json
from lchp.harness import Options, Sweep, grid, main
from lchp.harness import printout as tables
from lchp.harness.cells import Cell, Job, expand, jobs_of, make_cell, pinned
from lchp.harness.cluster import Resources
from lchp.harness.display import Display, weight
from lchp.harness.grids import SWEEPS, search_space
from lchp.harness.patience import Patience
from lchp.harness.places import require_new
from lchp.harness.plan import Plan, Timing, _moved, make_plan
from lchp.harness.printout import closing_table, timing_line
from lchp.harness.record import Outcome, recorded, write_record
from lchp.harness.running import places_for
from lchp.harness.schedule import FINISHED, JobSchedule, Progress
from lchp.harness.script import Program
from lchp.harness.stopping import Unfinished
from lchp.harness.store import DONE, PREDICTED, RESULT, Store
from lchp.harness.sweep import SweepResult
from lchp.harness.trial import Setting, run_job
from lchp.training.chain import Kind, epochs_of, method_of
from lchp.training.checkpoints import previous, save_checkpoint
from lchp.training.forecast import Forecast, forecast, spoken

# --- the store


def finished(store: Store, kind: Kind = "classifier", key: str = "k", text: str = "result") -> Path:
    work = store.storage / "work" / f"{key}-{text[:9]}"
    (work / "checkpoints").mkdir(parents=True)
    for name in (*RESULT, *PREDICTED):
        (work / name).write_text(text)
    (work / "checkpoints" / "a.pt").write_bytes(b"weights")
    return store.publish(work, kind, key)


def test_a_published_result_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("classifier", "k") is None
    folder = finished(store)
    assert store.find("classifier", "k") == folder
    assert store.find("refinement", "k") is None
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
        folder = folder.rename(store.path("classifier", "other"))
    with caplog.at_level(logging.WARNING):
        assert store.find("classifier", folder.name) is None
    assert "damaged" in caplog.text
    assert not folder.exists()
    assert len(list((tmp_path / "store" / "damaged").iterdir())) == 1
    finished(store, key=folder.name, text="again")
    assert store.find("classifier", folder.name) == folder


def test_a_result_is_published_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = finished(store, text="first")
    assert finished(store, text="second") == folder
    assert (folder / "summary.json").read_text() == "first"
    assert store.find("classifier", "k") == folder
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
    for name in (*RESULT, *PREDICTED):
        (tmp_path / "work" / name).write_text("result")
    for content in (b"older", b"newest"):
        save_checkpoint(checkpoint, {"content": content})
    assert previous(checkpoint).exists()
    folder = store.publish(tmp_path / "work", "classifier", "k")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["initialization.pt"]
    assert store.find("classifier", "k") == folder


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
    assert len({c.chain["localizer"].key for c in cells}) == 2  # one per seed
    assert {c.config.seed for c in cells} == {0, 1}


def test_a_shared_link_does_not_depend_on_which_cell_came_first() -> None:
    base = pinned(override(preset("parts"), {"refinement.labeller": "frozen"}), gpu=False)
    taus = grid({"refinement.tau": [0.5, 0.9]})
    one, two = (expand(Sweep("s", base, c)) for c in (taus, taus[::-1]))
    a, b = ([j for j in jobs_of(c).values() if j.kind != "refinement"] for c in (one, two))
    assert a == b
    assert [j.kind for j in a] == ["classifier", "localizer", "labels"]


def test_what_is_measured_belongs_to_a_record_but_not_to_its_training() -> None:
    base = pinned(preset("parts"), gpu=False)
    cells = expand(Sweep("s", base, [{}, {"evaluation.consistency": True}, {"evaluation.batch_size": 7}]))
    assert len(cells) == 2
    assert len({c.chain.last.key for c in cells}) == 1
    assert [(j.kind, bool(j.links)) for j in jobs_of(cells).values()] == [
        ("classifier", True),
        ("localizer", True),
        ("refinement", True),
        ("refinement", False),
    ]


def test_a_job_survives_the_way_to_a_trial() -> None:
    cell = expand(Sweep("s", preset("parts"), [{"refinement.augmentations": ["flip"]}]))[0]
    for job in jobs_of([cell]).values():
        assert Job.from_dict(job.to_dict()) == job


def test_grids_and_seeds_of_numpys_numbers_are_cells_of_plain_ones() -> None:
    axes = {
        "initialization.delta": np.linspace(0.2, 0.6, 3, dtype=np.float32),
        "initialization.epochs": np.arange(1, 3),
    }
    plain = {"initialization.delta": [0.2, 0.4, 0.6], "initialization.epochs": [1, 2]}
    seeds: Any = np.arange(2)
    one = expand(Sweep("s", preset("parts"), grid(axes), seeds))
    two = expand(Sweep("s", preset("parts"), grid(plain), (0, 1)))
    assert one == two
    assert len(one) == 12
    assert [json.dumps(c.overrides) for c in one] == [json.dumps(c.overrides) for c in two]
    endless: Any = (cell for cell in grid(plain))
    assert expand(Sweep("s", preset("parts"), endless, seeds)) == two


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sweep("s", preset("parts"), [{}], cast("Any", 3)), r"seeds = 3: expected a list, as range\(3\)"),
        (lambda: Options(max_concurrent=cast("Any", "2")), "--max-concurrent = '2': expected a whole number"),
        (lambda: Options(nodes=cast("Any", 1.5)), "--nodes = 1.5: expected a whole number"),
        (lambda: Options(gpus_per_trial=cast("Any", "all")), "--gpus-per-trial = 'all': expected a number"),
    ],
)
def test_what_is_no_number_or_list_is_said_by_its_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_options_of_numpys_numbers_are_plain() -> None:
    options = Options(max_concurrent=cast("Any", np.int64(2)), gpus_per_trial=cast("Any", np.float32(0.3)))
    assert (type(options.max_concurrent), options.gpus_per_trial) == (int, 0.3)


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
    assert chosen.config.initialization.delta in (*chosen.deltas, "auto")
    assert chosen.config.refinement.tau in chosen.taus
    assert chosen.config.model.localizer in chosen.localizers
    assert len(chosen.deltas) == 4
    assert len(chosen.taus) == 6
    assert len(chosen.localizers) == 3


LINKS = "classifier", "boxes", "localizer", "labels", "refinement"


@pytest.mark.parametrize(
    ("name", "trained", "cost", "less"),
    [
        ("delta_tau", (4, 0, 4, 4, 24), "496 of 1536", "3.1"),
        ("augmentations", (1, 0, 1, 1, 7), "136 of 448", "3.3"),
        ("backbones", (1, 0, 3, 3, 3), "128 of 192", "1.5"),
        ("all_tables", (4, 0, 6, 6, 17), "452 of 1088", "2.4"),
        ("open_choices", (8, 0, 10, 11, 17), "672 of 1084", "1.6"),
        ("methods", (17, 24, 4, 2, 2), "336 of 470", "1.4"),
    ],
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_link_of_a_sweep_is_trained_once(
    tmp_path: Path, name: str, trained: tuple[int, ...], cost: str, less: str, seeds: int
) -> None:
    base = override(preset("parts"), {"refinement.labeller": "frozen"})
    plan = make_plan(Sweep(name, base, SWEEPS[name].cells(PRESETS["parts"]), range(seeds)), Options(tmp_path))
    expected = [
        f"{kind}: {seeds * number} {'to compute' if kind in ('boxes', 'labels') else 'to train'}, 0 in store"
        for kind, number in zip(LINKS, trained, strict=True)
        if number
    ]
    assert tables.counts(plan).splitlines() == expected
    if seeds == 1:
        said = f"cost: {cost} forward passes per image (every cell alone), {less} times less"
        assert tables.cost(plan) == said
    jobs = plan.schedule.jobs.values()
    assert len({link.key for p in jobs for link in p.job.links}) == sum(len(p.job.links) for p in jobs)
    assert {link.key for p in jobs for link in p.job.links} == {link.key for c in plan.cells for link in c.chain}
    assert all(need in plan.schedule.jobs for p in jobs for need in p.job.needs)


def test_without_sharing_each_cell_is_one_job_that_trains_all(tmp_path: Path) -> None:
    cells = SWEEPS["delta_tau"].cells(PRESETS["parts"])
    plan = make_plan(Sweep("delta_tau", preset("parts"), cells), Options(tmp_path, share=False))
    jobs = [p.job for p in plan.schedule.jobs.values()]
    assert len(jobs) == 24
    assert {(tuple(link.kind for link in job.links), job.needs) for job in jobs} == {
        (("classifier", "localizer", "refinement"), ())
    }
    assert len({job.name for job in jobs}) == 24
    assert tables.counts(plan).splitlines() == [
        f"{kind}: 24 to train, 0 in store" for kind in ("classifier", "localizer", "refinement")
    ]


def test_dry_run_says_what_is_to_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lchp.harness import main

    probed: list[str] = []

    def tried(config: TrainConfig, last: Kind) -> Forecast:
        probed.append(last)
        return three_seconds_an_epoch(config, last)

    monkeypatch.setattr(tables, "forecast", tried)
    argv = ["--dry-run", "--storage", str(tmp_path), "--refinement.labeller", "frozen", "--max-concurrent", "1"]
    argv += ["--price-per-hour", "2.5"]
    status = main("delta_tau", SWEEPS["delta_tau"].cells, argv=argv)
    out = capsys.readouterr().out.splitlines()
    assert status == 0
    assert out[0] == f"24 cells (24 settings x 1 seed at most), storage {tmp_path}"
    assert out[-12:] == [
        "classifier: 4 to train, 0 in store",
        "localizer: 4 to train, 0 in store",
        "labels: 4 to compute, 0 in store",
        "refinement: 24 to train, 0 in store",
        "cost: 496 of 1536 forward passes per image (every cell alone), 3.1 times less",
        "estimate: 7.2 minutes of training; 7.2 minutes with 1 at once",  # 144 epochs of 3 s
        "  classifier: 48 seconds",
        "  localizer: 48 seconds",
        "  labels: 48 seconds",
        "  refinement: 4.8 minutes",
        "disk: store about 36 MB",
        "price: 0.30 at 2.5 per hour of a place",
    ]
    assert probed == ["refinement"]  # all of these train alike
    assert not list(tmp_path.iterdir())


def test_a_few_batches_tell_the_time_of_every_link() -> None:
    config = override(preset("parts"), {"refinement.labeller": "frozen", "threads": 1, "data.batch_size": 4})
    cam = {"method.name": "cam", "data.validation": 0.2}
    besides = {
        "boxes that tau keeps": ["refinement"],
        "BatchNorm's statistics": ["refinement"],
        "gain of stage 2": ["refinement"],
        "consistency": ["refinement", "localizer"],
        "score maps": ["boxes"],
        "held-out images": ["boxes"],
    }
    lasts: dict[str, list[str]] = {}
    for asked in ({}, {"method.name": "psol", "method.localizer": True}, cam):
        found = forecast(override(config, asked))
        for link in found.links:
            assert all(seconds > 0 for seconds in link.besides.values())
            for name in link.besides:
                lasts.setdefault(name, []).append(found.links[-1].kind)
        if asked == cam:
            continue
        assert {link.stage: link.epochs for link in found.links} == epochs_of(override(config, asked))
        assert all(link.seconds > 0 or link.stage == "boxes" for link in found.links)
        assert all(link.steps == 750 for link in found.links)
        assert found.seconds == sum(link.whole for link in found.links)
        assert found.memory["process"] > 100
        assert found.checkpoints > 1e5
        assert found.cache == 0
    assert lasts["boxes that tau keeps"] == ["refinement", "localizer"]
    assert lasts | {"boxes that tau keeps": ["refinement"]} == besides


def test_a_store_tells_times_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a batch being tried."""
    monkeypatch.setattr(tables, "forecast", None)
    cell = make_cell(pinned(override(preset("parts"), {"refinement.tau": 0.5}), gpu=False), {})
    folder = finished(Store(tmp_path), "refinement", cell.key)
    write_json(folder / "config.json", to_dict(cell.config))
    seconds = {link.stage: 10.0 * (link.epochs - link.first) for link in cell.chain}
    write_json(folder / "environment.json", {"class_names": ["a"], "wall_seconds": seconds})
    for n, link in enumerate(cell.chain):
        (folder / "checkpoints" / f"{link.stage}.pt").write_bytes(bytes((n + 1) * 1_000_000))
    cells: list[dict[str, Any]] = [{"refinement.tau": tau} for tau in (0.6, 0.7)]
    plan = make_plan(Sweep("s", preset("parts"), cells), Options(tmp_path, max_concurrent=1), look_only=True)
    epochs = {kind: link.epochs - link.first for kind, link in ((each.kind, each) for each in cell.chain)}
    total = 10 * (epochs["classifier"] + epochs["localizer"] + 2 * epochs["refinement"])
    lines = tables.estimate(plan, 3600.0).splitlines()
    assert lines[0] == f"estimate: {spoken(total)} of training; {spoken(total)} with 1 at once"
    assert lines[-2:] == ["disk: store about 9 MB", f"price: {total:.2f} at 3600 per hour of a place"]  # 1 + 2 + 2 x 3


def test_a_search_says_what_its_trials_will_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "forecast", three_seconds_an_epoch)
    flags = ["--dry-run", "--trials", "3", "--price-per-hour", "3600", "--storage", str(tmp_path), "--max-concurrent"]
    assert command(["sweep", "search", *flags, "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        "3 trials, which share the links that they have in common; 20 % of the training images held out; "
        "objective: unboxed"
    )
    assert out[1] == "3 trials to come; their values are not known yet. For as many drawn at random:"
    config = preset("parts")
    total = 3 * 3 * (2 * config.initialization.epochs + config.refinement.epochs)
    said = "\n".join(out)
    assert "classifier: 3 to train, 0 in store" in said
    assert f"estimate: {spoken(total)} of training; {spoken(total)} with 1 at once" in said
    assert f"  a trial: {spoken(total / 3)} on average, and less where it is stopped early" in said
    assert out[-2:] == ["disk: store about 9 MB", f"price: {total:.2f} at 3600 per hour of a place"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "x"], "seed = 'x': expected a whole number"),
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
    status = main("delta_tau", SWEEPS["augmentations"].cells, argv=["--dry-run", *storage, *flags])
    err = capsys.readouterr().err
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_failed_cell_is_named_and_makes_the_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lchp.harness import script as cli

    def one_fails(sweep: Sweep, options: Options, **_: object) -> SweepResult:
        (cell,) = expand(replace(sweep, cells=sweep.cells[:1]))
        return SweepResult(options.folder, [Outcome(cell, "failed", "training diverged", "diverged", None, None)])

    monkeypatch.setattr(cli, "run", one_fails)
    assert cli.main("backbones", SWEEPS["backbones"].cells, argv=["--storage", str(tmp_path)]) == 1
    assert "failed: model.localizer tiny, seed 0: training diverged" in capsys.readouterr().out


def test_what_tune_pickles_holds_nothing_of_ours() -> None:
    """A tracker's threads and locks are behind what hears of news."""
    from ray import cloudpickle

    from lchp.harness.tune import Tracker

    lock = threading.RLock()

    def changed(_: Progress) -> None:
        lock.acquire()

    cloudpickle.dumps(Tracker(JobSchedule([]), 0, changed))  # pyright: ignore[reportPrivateImportUsage]


def test_delta_tau_begins_with_the_cells_of_its_tables() -> None:
    chosen = PRESETS["cub"]
    cells = SWEEPS["delta_tau"].cells(chosen)
    delta, tau = chosen.config.initialization.delta, chosen.config.refinement.tau
    of_tables = [c["initialization.delta"] == delta or c["refinement.tau"] == tau for c in cells]
    assert of_tables == [True] * 9 + [False] * 15


def test_a_limit_takes_the_first_cells_and_a_resumed_sweep_the_others(tmp_path: Path) -> None:
    from lchp.harness import script as cli

    def planned(*flags: str) -> Plan:
        argv = ["--seeds", "2", *flags]
        wanted = parse(cli.Flags, argv, "all_tables.py", cli.Flags(preset("parts")))
        return make_plan(wanted.sweep("all_tables", SWEEPS["all_tables"].cells), Options(tmp_path))

    everything = [c.key for c in planned().cells]
    few = planned("--limit", "10")  # the tenth comes after the last tau, which is the recipe a second time
    first = [c.key for c in few.cells]
    assert first == [*everything[:10], *everything[17:27]]
    write_record(few)
    assert [c.key for c in planned("--limit", "10").cells] == first
    after = [c.key for c in planned().cells]
    assert after[:20] == first
    assert sorted(after) == sorted(everything)


@pytest.mark.parametrize("name", PRESETS)
def test_open_choices_vary_one_field_of_the_recipe(name: str) -> None:
    chosen = PRESETS[name]
    recipe, *others = SWEEPS["open_choices"].cells(chosen)
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
    fields = [name for name, _ in alternatives(gap, method_of)]
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
        trial.set_user_attr("run", str(tmp_path / "store" / "refinement" / cells[-1].key))
        if len(cells) == 1:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    plan = Plan(Sweep("s", base, []), Options(tmp_path), cells, JobSchedule([]), Store(tmp_path), tmp_path)
    pruned, running = cells
    taken = Study(plan, study, Search("s", base, lambda t: cell_of(t).overrides, trials=2))
    taken.take_up()
    assert [(c.key, plan.schedule.jobs[f"refinement-{c.key}"].state) for c in plan.cells] == [(pruned.key, "stopped")]
    assert [j.key for j in taken.refill() if j.kind == "refinement"] == [running.key]
    assert taken.refill() == []


def test_a_search_that_died_before_it_told_keeps_the_result(tmp_path: Path) -> None:
    from lchp.harness.search import Search, Study, open_study

    base, store, study = preset("parts"), Store(tmp_path), open_study(tmp_path, "s")
    trial = study.ask()
    cell = make_cell(base, {"refinement.tau": trial.suggest_float("refinement.tau", 0.1, 0.9)})
    trial.set_user_attr("run", str(store.path("refinement", cell.key)))
    figures: dict[str, float | None] = dict.fromkeys(("pseudo_label", "lchp_i", "lchp_r"), 50.0)
    validation = {"images": 8.0, "consistency": 50.0, "kept": 50.0, "score": 1.5}
    finished(store, "refinement", cell.key, json.dumps(summary(figures, 0.9) | {"validation": validation}))
    plan = Plan(Sweep("s", base, []), Options(tmp_path), [cell], JobSchedule([]), store, tmp_path)
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
    trial.set_user_attr("run", str(store.path("refinement", cell.key)))
    study.tell(trial, 1.5)
    plan = Plan(Sweep("s", base, []), Options(tmp_path), [cell], JobSchedule([]), store, tmp_path)
    Study(plan, study, Search("s", base, lambda _: {}, trials=1)).take_up()
    assert [(p.job.kind, p.state) for p in plan.schedule.jobs.values()] == [
        ("classifier", "waiting"),
        ("localizer", "waiting"),
        ("refinement", "waiting"),
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
    assert [c.key for c in after.cells] == [c.key for c in before.cells]


def test_a_stopped_dry_run_says_nothing_of_epochs() -> None:
    program = Program(("lchp", "sweep"))
    assert program.to_go_on(["mine.toml", "--dry-run"]) == "stopped"
    assert (
        program.to_go_on(["mine.toml"])
        == "stopped; finished epochs are kept, go on with: lchp sweep mine.toml --resume"
    )


def test_seeds_beside_an_axis_of_seeds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lchp.harness import main

    argv = ["--dry-run", "--storage", str(tmp_path), "--seeds", "2"]
    assert main("seeds", lambda _: [{"seed": 3}, {"seed": 4}], argv=argv) == 2
    assert "--seeds = 2: this sweep sets the seed in every cell" in capsys.readouterr().err


def test_a_flag_that_the_sweep_sets_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lchp.harness import main

    argv = ["--dry-run", "--storage", str(tmp_path), "--initialization.delta", "0.4"]
    assert main("delta_tau", SWEEPS["delta_tau"].cells, argv=argv) == 2
    assert (
        "--initialization.delta 0.4: this sweep sets it in every cell (0.1, 0.3, 0.5, 0.7)" in capsys.readouterr().err
    )


def test_a_dry_run_changes_nothing_and_names_earlier_flags(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lchp.harness import main

    monkeypatch.setattr(tables, "forecast", three_seconds_an_epoch)
    store, base = Store(tmp_path), pinned(preset("parts"), gpu=False)
    cells = SWEEPS["backbones"].cells(PRESETS["parts"])
    plan = make_plan(Sweep("backbones", base, cells[:1]), Options(tmp_path))
    write_record(plan)
    damaged = finished(store, "refinement", plan.cells[0].key)
    (damaged / "summary.json").write_text("changed")
    before = sorted(tmp_path.rglob("*"))
    argv = ["--dry-run", "--resume", "--limit", "1", "--device", "cpu"]
    here = [*argv, "--storage", str(tmp_path), "--initialization.epochs", "1"]
    assert main("backbones", SWEEPS["backbones"].cells, argv=here) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "would be moved aside" in caplog.text
    out = capsys.readouterr().out
    assert "localizer tiny (initialization.epochs 4)" in out
    assert main("backbones", SWEEPS["backbones"].cells, argv=[*argv, "--storage", f"{tmp_path}x"]) == 0
    assert "holds no sweep backbones to go on with" in caplog.text


def settings(tmp_path: Path) -> Setting:
    """Of a storage and a folder of unfinished trainings that are there, as a driver makes them."""
    for name in ("results", "work"):
        (tmp_path / name).mkdir()
    return Setting(str(tmp_path / "results"), str(tmp_path / "work"))


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
    assert [r["state"] for r in said if r["state"] != "running"] == ["done", "done", "done"]


@pytest.mark.parametrize("damaged", [["newest"], ["newest", "previous"]])
def test_a_work_folder_is_kept_as_long_as_a_checkpoint_of_each_stage_is_intact(
    tmp_path: Path, damaged: list[str]
) -> None:
    config = pinned(small.config(small.make_folder(tmp_path / "images"), first=3, second=1), gpu=False)
    job = next(iter(jobs_of(expand(Sweep("s", config, [{}]))).values()))
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

    begun = tmp_path / "sweeps" / "s" / "work" / "classifier-0123" / "metrics.jsonl"
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
        override(chosen.config, search_space(chosen, trial))


# --- the schedule


def jobs() -> list[Job]:
    """Two classifiers; a localizer on each; three refinements, two of them of the first localizer."""

    def job(kind: Kind, key: str, seed: int = 0, **sources: str) -> Job:
        return Job(kind, key, TrainConfig(seed=seed), "", cast("dict[Kind, str]", sources))

    first = [job("classifier", k) for k in ("a", "b")]
    localizers = [job("localizer", k, classifier=k) for k in ("a", "b")]
    ends = (("x", "a"), ("y", "a"), ("z", "b"))
    second = [job("refinement", k, i, classifier=s, localizer=s) for i, (k, s) in enumerate(ends)]
    return [*first, *localizers, *second]


def take(schedule: JobSchedule) -> str:
    job = schedule.next()
    assert isinstance(job, Job)
    return job.name


def states(schedule: JobSchedule) -> dict[str, str]:
    return {name: p.state for name, p in schedule.jobs.items()}


def test_a_job_is_released_when_what_it_needs_is_there() -> None:
    schedule = JobSchedule(jobs())
    assert [take(schedule), take(schedule)] == ["classifier-a", "classifier-b"]
    assert schedule.next() is None  # later, and nothing is held meanwhile
    schedule.done("classifier-b")
    assert take(schedule) == "localizer-b"
    assert schedule.next() is None
    schedule.done("classifier-a")
    assert take(schedule) == "localizer-a"
    schedule.done("localizer-b")
    assert take(schedule) == "refinement-z"
    assert schedule.next() is None
    schedule.done("localizer-a")
    assert [take(schedule), take(schedule)] == ["refinement-x", "refinement-y"]
    assert schedule.next() is None  # running ones may still come back
    for name in ("refinement-x", "refinement-y", "refinement-z"):
        schedule.done(name)
    assert schedule.next() == FINISHED


def test_a_failed_link_fails_what_needs_it_by_its_error_and_nothing_else() -> None:
    schedule = JobSchedule(jobs())
    take(schedule)
    take(schedule)
    schedule.failed("classifier-a", "no weights", "diverged")
    schedule.done("classifier-b")
    assert take(schedule) == "localizer-b"
    schedule.done("localizer-b")
    assert take(schedule) == "refinement-z"
    schedule.done("refinement-z")
    assert schedule.next() == FINISHED
    for name in ("localizer-a", "refinement-x", "refinement-y"):  # however long the way
        progress = schedule.jobs[name]
        said = "its classifier (a) failed: no weights"
        assert (progress.state, progress.reason, progress.error) == ("failed", "source_failed", said)
    assert schedule.jobs["classifier-a"].reason == "diverged"


def test_a_source_that_failed_meanwhile_fails_who_lost_it() -> None:
    """Otherwise a schedule would wait for ever for a localizer that nobody trains any more."""
    schedule = JobSchedule(j for j in jobs() if "a" in (j.key, j.sources.get("localizer")))
    for name in ("classifier-a", "localizer-a"):
        assert take(schedule) == name
        schedule.done(name)
    assert [take(schedule), take(schedule)] == ["refinement-x", "refinement-y"]
    schedule.lost_source("refinement-x", ["localizer-a"])
    assert states(schedule)["localizer-a"] == "waiting"
    assert take(schedule) == "localizer-a"
    schedule.failed("localizer-a", "out of memory")
    assert schedule.jobs["refinement-x"].error == "its localizer (a) failed: out of memory"
    schedule.lost_source("refinement-y", ["localizer-a"])
    assert schedule.jobs["refinement-y"].reason == "source_failed"
    assert schedule.jobs["refinement-y"].error == "its localizer (a) failed: out of memory"
    assert schedule.next() == FINISHED


def test_a_job_whose_worker_dies_is_run_again_until_it_no_longer_gets_on() -> None:
    schedule = JobSchedule(jobs())
    for epoch in range(1, 9):  # it finishes an epoch between any two deaths
        assert take(schedule) == "classifier-a"
        schedule.finished_epoch("classifier-a", epoch)
        schedule.died("classifier-a", "killed", 1)
    assert take(schedule) == "classifier-a"
    schedule.finished_epoch("classifier-a", 8)  # the same one again
    schedule.died("classifier-a", "no room for 9 GB", 1)
    assert schedule.jobs["classifier-a"].state == "failed"
    assert schedule.jobs["classifier-a"].reason == "worker_died"
    said = "its worker died 2 times without finishing an epoch in between: no room for 9 GB"
    assert schedule.jobs["classifier-a"].error == said
    assert said in (schedule.jobs["refinement-x"].error or "")
    assert take(schedule) == "classifier-b"
    schedule.died("classifier-b", "killed", 0)
    assert schedule.jobs["classifier-b"].error == "its worker died: killed"


def test_a_damaged_source_is_made_again_with_what_it_needs_a_few_times_at_most() -> None:
    schedule = JobSchedule(j for j in jobs() if "a" in (j.key, j.sources.get("localizer")) and j.key != "y")
    schedule.done("localizer-a", found=True)
    schedule.rest(["refinement-x"])
    assert states(schedule) == {"classifier-a": "waiting", "localizer-a": "done", "refinement-x": "waiting"}
    schedule.done("classifier-a", found=True)
    for _ in range(JobSchedule.MAX_LOST - 1):
        assert take(schedule) == "refinement-x"
        schedule.lost_source("refinement-x", ["localizer-a", "classifier-a"])
        for name in ("classifier-a", "localizer-a"):
            assert take(schedule) == name
            assert not schedule.jobs[name].found
            schedule.done(name)
    assert take(schedule) == "refinement-x"
    schedule.lost_source("refinement-x", ["localizer-a"])
    assert schedule.jobs["refinement-x"].state == "failed"
    assert schedule.jobs["refinement-x"].reason == "source_damaged"


def test_what_nobody_waits_for_rests_until_it_is_needed_again() -> None:
    schedule = JobSchedule(jobs())
    for name in ("localizer-a", "refinement-x", "refinement-y"):
        schedule.done(name, found=True)
    schedule.rest(["refinement-x", "refinement-y", "refinement-z"])
    assert states(schedule)["classifier-a"] == "idle"
    assert [take(schedule) for _ in range(1)] == ["classifier-b"]
    (more,) = (j for j in jobs() if j.key == "x")
    more = replace(more, key="w")
    schedule.add([*(j for j in jobs() if j.key == "a"), more])  # a search asks for one more
    assert states(schedule)["classifier-a"] == "waiting"
    schedule.done("classifier-a")
    assert take(schedule) == "refinement-w"


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
    root = Path(__file__).parents[2]
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
    schedule = JobSchedule(jobs_of(cells).values())
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
    require_new(plan.folder, None)
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


def test_the_closing_table_gives_means_as_tables_do_and_tells_of_what_failed_or_waits(tmp_path: Path) -> None:
    def known(value: float | None) -> dict[str, Any]:
        return {"results": {"lchp_r": {"center_crop": {"gt_known": value}}}}

    def cells(overrides: dict[str, Any]) -> list[Cell]:
        return expand(Sweep("s", preset("parts"), [overrides], range(2)))

    nine, seven, eight = (cells({"refinement.tau": tau}) for tau in (0.9, 0.7, 0.8))
    outcomes = [
        *(Outcome(c, "done", None, None, tmp_path, known(v)) for c, v in zip(nine, (60.0, 61.0), strict=True)),
        Outcome(seven[0], "done", None, None, tmp_path, known(50.0)),
        Outcome(seven[1], "failed", "training diverged", "diverged", None, None),
        *(Outcome(c, state, None, None, None, None) for c, state in zip(eight, ("waiting", "running"), strict=True)),
    ]
    title, head, _, *rows, failed, last = closing_table(SweepResult(tmp_path, outcomes)).splitlines()
    assert title == "GT-Known (center_crop, %)"
    assert head.split() == ["cell", "Pseudo", "Label", "LCHP-I", "LCHP-R"]
    assert [" ".join(row.split()) for row in rows] == [
        "tau 0.7 - - 50.00 (1) 1 of 2 done, failed: see below",
        "tau 0.8 - - - 0 of 2 done",
        "tau 0.9 - - 60.50 ± 0.71 (2)",
    ]
    assert failed == "failed: tau 0.7, seed 1: training diverged"
    assert last == "1 of 6 cells failed; --resume tries them again"


def test_who_waits_for_a_place_is_told_so_and_not_for_ever(tmp_path: Path) -> None:
    plan, said, now = small_plan(tmp_path), [], [0.0]
    write_record(plan)

    def patience(*, shared: bool) -> Patience:
        now[0] = 0.0
        return Patience(plan, Unfinished(plan.work), "1 x (2 CPUs, 0 GPUs)", shared, said.append, lambda: now[0])

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


def test_a_display_weighs_links_by_their_passes(capsys: pytest.CaptureFixture[str]) -> None:
    cells = expand(Sweep("s", override(preset("parts"), {"refinement.labeller": "frozen"}), [{}]))
    schedule = JobSchedule(jobs_of(cells).values())
    shown = Display(schedule, lambda: (0, 0, 1), lambda: "", lambda p: f"{p.job.kind} of base")
    assert [weight(p, p.job.epochs) for p in schedule.jobs.values()] == [32, 12, 8, 12]
    shown.open()
    for share, name in ((32 / 64, "classifier"), (44 / 64, "localizer")):
        take(schedule)
        (progress,) = (p for p in schedule.jobs.values() if p.job.kind == name)
        schedule.done(progress.job.name, {"seconds": 5.0})
        shown.changed(progress)
        shown.changed(progress)  # said once
        assert shown._worked() / shown._total() == share
    shown.close()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == ["classifier of base done in 5 s", "localizer of base done in 5 s"]
    assert all("cells 0/1 done, 0 failed; running 0; time left 00:" in line for line in said)


def test_a_moved_file_is_that_of_the_flags() -> None:
    values = {"method.name": "boxes", "method.boxes": "/before/boxes.csv"}
    base = override(preset("parts"), values)
    moved = _moved(base, override(base, {"method.boxes": "/now/boxes.csv"}))
    assert moved == override(base, {"method.boxes": "/now/boxes.csv"})
    assert _moved(base, preset("parts")).method.boxes == "/before/boxes.csv"
