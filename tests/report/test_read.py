"""Run folders to one table: what is read, what is refused by name, and how fast."""

import cProfile
import dataclasses
import json
import math
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from report_records import key, known, seal, store, store_link, write_grid, write_run, write_sweep

from lchp.config import MEANING_BEFORE, TrainConfig, field_types, override, preset, to_dict, to_flat
from lchp.errors import RunError
from lchp.files.runs import SWEEP, write_json
from lchp.report.read import ORIGIN, clean, collect
from lchp.report.tables.grid import commands


def edit(path: Path, **values: Any) -> None:
    """Sets dotted fields of a JSON file; None deletes one."""
    data = json.loads(path.read_text())
    for name, value in values.items():
        at = data
        *sections, leaf = name.split("__")
        for section in sections:
            at = at[section]
        if value is None:
            del at[leaf]
        else:
            at[leaf] = value
    path.write_text(json.dumps(data))


def test_a_run_becomes_a_row_of_its_config_and_figures(tmp_path: Path) -> None:
    config = override(preset("parts"), {"seed": 3, "initialization.delta": 0.3})
    folder = store(tmp_path / "results", config)
    records = collect([tmp_path / "results"])
    assert records.problems == ()
    assert len(records.runs) == 1
    row = records.runs.iloc[0]
    assert {name: row[name] for name in field_types()} == to_flat(config)
    assert row["folder"] == str(folder)
    assert row["storage"] == str(tmp_path / "results")
    assert row["key"] == folder.name
    assert row["version"] == "0.1.0"
    assert row["date"] is None
    assert row["classes"] == 10
    assert row["results/lchp_r/center_crop/gt_known"] == known(config)["lchp_r"]
    assert row["floors/full_image/centre_box"] == 15.0
    assert row["kept/by_tau/0.9/count"] == 1200
    assert row["wall_seconds/refinement"] == 30.0


def test_storages_are_sweeps_folders_of_runs_and_runs(tmp_path: Path) -> None:
    config = preset("parts")
    store(tmp_path / "sweep", config)
    write_run(tmp_path / "runs" / "b", config)
    write_run(tmp_path / "runs" / "a", config)
    one = write_run(tmp_path / "one", config)
    storages = [tmp_path / "sweep", tmp_path / "runs", one, tmp_path / "runs", tmp_path / "runs" / ".." / "runs"]
    records = collect(storages)
    expected = [str(one), *(str(tmp_path / "runs" / n) for n in "ab")]
    assert list(records.runs["folder"]) == [*expected, str(tmp_path / "sweep" / "store" / "stage2" / key(config))]
    assert records.storages == (tmp_path / "sweep", tmp_path / "runs", one)


def test_the_date_is_the_records_or_the_sweeps(tmp_path: Path) -> None:
    first, second = preset("parts"), override(preset("parts"), {"seed": 1})
    store(tmp_path, first)
    store(tmp_path, second, written="2026-11-21T08:00:00+00:00")
    write_sweep(tmp_path, [({}, first, "done", None), ({}, second, "done", None)], first)
    runs = collect([tmp_path]).runs
    assert dict(zip(runs["seed"], runs["date"], strict=True)) == {
        0: "2026-11-20T10:01:00+00:00",
        1: "2026-11-21T08:00:00+00:00",
    }


def test_stage_1_alone_is_no_row_but_is_said(tmp_path: Path) -> None:
    config = preset("parts")
    figures = {r: v for r, v in known(config).items() if r != "lchp_r"}
    write_run(tmp_path / "runs" / "first", config, figures)
    write_run(tmp_path / "runs" / "second", config)
    records = collect([tmp_path / "runs"])
    assert len(records.runs) == 1
    assert records.problems == ()
    assert records.notes == (f"{tmp_path / 'runs'}: 1 run folder with stage 1 alone, left out",)
    first = tmp_path / "runs" / "first"
    assert collect([first]).problems == (f"{first}: no finished run, but 1 run folder with stage 1 alone",)


def test_without_boxes_figures_are_nan(tmp_path: Path) -> None:
    write_run(tmp_path / "run", preset("parts"), dict.fromkeys(known(preset("parts"))))
    row = collect([tmp_path / "run"]).runs.iloc[0]
    assert math.isnan(row["results/lchp_r/center_crop/gt_known"])
    assert row["kept/count"] == 1200


def test_a_storage_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no such folder"):
        collect([tmp_path / "nowhere"])
    records = collect([tmp_path])
    assert records.problems == (f"{tmp_path}: no finished run",)
    assert records.runs.empty
    assert set(ORIGIN) | set(field_types()) <= set(records.runs.columns)
    store(tmp_path / "there", preset("parts"))
    records = collect([tmp_path / "there", tmp_path / "nowhere"])
    assert len(records.runs) == 1
    assert len(records.problems) == 1


DAMAGE: dict[str, tuple[Any, str]] = {
    "no config": (lambda run: (run / "config.json").unlink(), "config.json: no such file"),
    "no summary": (lambda run: (run / "summary.json").unlink(), "summary.json: no such file"),
    "no environment": (lambda run: (run / "environment.json").unlink(), "environment.json: no such file"),
    "no DONE": (lambda run: (run / "DONE").unlink(), "no DONE file"),
    "half of DONE": (lambda run: (run / "DONE").write_text('{"key'), "DONE: cannot be read"),
    "changed": (lambda run: edit(run / "summary.json", kept__count=1), "summary.json: checksum differs"),
    "half a summary": (lambda run: (run / "summary.json").write_text('{"results'), "summary.json: cannot be read"),
    "no JSON object": (lambda run: (run / "summary.json").write_text("[]"), "summary.json: "),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_named_and_the_rest_is_read(tmp_path: Path, damage: str) -> None:
    store(tmp_path, override(preset("parts"), {"seed": 1}))
    run = store(tmp_path, preset("parts"))
    change, message = DAMAGE[damage]
    change(run)
    records = collect([tmp_path])
    assert list(records.runs["seed"]) == [1]
    (problem,) = records.problems
    assert problem.startswith(str(run))
    assert message in problem
    assert "\n" not in problem


def test_a_run_that_goes_on_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "done", preset("parts"))
    run = write_run(tmp_path / "half", preset("parts"))
    (run / "summary.json").unlink()
    records = collect([tmp_path])
    assert len(records.runs) == 1
    assert records.problems == (f"{run}: no summary.json; not finished, or half-written",)


def test_an_older_record_is_read_as_what_it_was_made_with(tmp_path: Path) -> None:
    run = store(tmp_path, preset("parts"))
    edit(run / "config.json", refinement__vanished=None, refinement__views=None)
    seal(run)
    records = collect([tmp_path])
    assert records.runs.iloc[0]["refinement.vanished"] == "dropped"
    (note,) = records.notes
    assert "what the code did then: refinement.views 0, refinement.vanished dropped" in note
    edit(run / "config.json", refinement__vanished="dropped", refinement__views=0, method__threshold=None)
    seal(run)
    assert collect([tmp_path]).notes == ()  # LCHP has no score map


def test_what_a_record_without_a_field_means_is_what_the_default_means() -> None:
    """But for a default that mends something: a record from before it has the fault."""
    flat = to_flat(TrainConfig())
    mended = {"refinement.bn_statistics": "strong"}
    assert {name: flat[name] for name in MEANING_BEFORE} | mended == dict(MEANING_BEFORE)


VERSIONS = {
    "unknown": ({"refinement__softness": 0.5}, "refinement.softness is a field this version"),
    "missing": ({"initialization__beta": None}, "lacks initialization.beta"),
    "other value": ({"refinement__labeller": "oracle"}, "refinement.labeller = 'oracle'"),
    "other type": ({"initialization__delta": "0.5"}, "initialization.delta = '0.5'"),
    "nested": ({"refinement__scale": [[0.8], [1.2]]}, "refinement.scale = ((0.8,), (1.2,)): expected 2 values"),
    "out of range, beside a run within it": ({"initialization__delta": 1.5}, "initialization.delta = 1.5"),
    "not finite": ({"initialization__delta": math.nan}, "initialization/delta = nan"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_record_of_another_version_is_refused_by_name(tmp_path: Path, version: str) -> None:
    store(tmp_path, override(preset("parts"), {"seed": 1}))
    run = store(tmp_path, preset("parts"))
    values, message = VERSIONS[version]
    edit(run / "config.json", **values)
    seal(run)
    records = collect([tmp_path])
    assert list(records.runs["seed"]) == [1]
    (problem,) = records.problems
    assert problem.startswith(f"{run / 'config.json'}: ")
    assert message in problem


def test_a_summary_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", preset("parts"))
    edit(run / "summary.json", floors=None)
    assert "summary.json: lacks floors;" in collect([run]).problems[0]
    edit(run / "summary.json", floors={})
    assert "summary.json: lacks floors/center_crop;" in collect([run]).problems[0]
    other = write_run(tmp_path / "other", preset("parts"))
    edit(other / "summary.json", kept__count="many")
    assert "summary.json: kept/count = 'many': expected a number" in collect([other]).problems[0]
    third = write_run(tmp_path / "third", preset("parts"))
    edit(third / "summary.json", results__lchp_r__full_image__top5_loc=None)
    assert "summary.json: lacks results/lchp_r/full_image/top5_loc" in collect([third]).problems[0]


def test_sweeps_say_their_command_states_and_failures(tmp_path: Path) -> None:
    records = collect([write_grid(tmp_path)])
    (sweep,) = records.sweeps
    assert (sweep.name, sweep.command[0], sweep.unfinished) == (
        "all_tables",
        "/home/someone/lchp/sweeps/all_tables.py",
        0,
    )
    assert sorted(records.failures["diverged"]) == [False, True]
    diverged = records.failures[records.failures["diverged"]].iloc[0]
    assert (diverged["refinement.tau"], diverged["seed"], diverged["data.name"]) == (0.0, 1, "parts")


@pytest.mark.parametrize("damage", ["version", "half", "no cells", "wrong cells"])
def test_a_sweep_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    path = write_grid(tmp_path) / "sweeps" / "all_tables" / SWEEP
    if damage == "version":
        edit(path, version=3)
    elif damage == "half":
        path.write_text(path.read_text()[:100])
    else:
        edit(path, cells=None if damage == "no cells" else [{"state": "done"}])
    records = collect([tmp_path])
    assert len(records.runs) == 20
    (problem,) = records.problems
    assert problem.startswith(str(path))


def test_whether_a_sweep_runs_is_read_off_its_lock(tmp_path: Path) -> None:
    write_sweep(tmp_path, [({}, preset("parts"), "running", None)], preset("parts"))
    (sweep,) = collect([tmp_path]).sweeps
    lock = sweep.folder / "lock"
    assert sweep.unfinished == 1
    for text, running in (
        (None, False),
        ("", False),
        (f"pid {os.getpid()} on {socket.gethostname()}\n", True),
        (f"pid {2**22 + 1} on {socket.gethostname()}\n", False),  # above Linux's largest
        (f"pid {2**22 + 1} on another-machine\n", True),
    ):
        if text is not None:
            lock.write_text(text)
        assert sweep.running() is running


def test_the_harness_writes_the_record_that_is_read() -> None:
    from lchp.files import runs
    from lchp.harness import sweep
    from lchp.harness.store import DONE

    assert (sweep.SWEEP, DONE) == (SWEEP, runs.DONE)


def test_the_first_failed_link_says_why_and_what_a_cell_lacks(tmp_path: Path, squares_config: TrainConfig) -> None:
    """By reason codes, whatever the errors say; as the harness writes them."""
    from lchp.harness import Options, Sweep
    from lchp.harness.plan import make_plan
    from lchp.harness.record import write_record

    frozen = {"refinement.labeller": "frozen"}
    plain = {name: value for name, value in to_flat(TrainConfig()).items() if name.startswith("evaluation.")}
    cells: list[dict[str, Any]] = [{"initialization.delta": delta, **frozen} for delta in (0.1, 0.2, 0.3, 0.4)] + [
        {"method.name": "psol", "method.localizer": True},
        plain,
        {**plain, "evaluation.consistency": True},
    ]
    plan = make_plan(Sweep("reasons", squares_config, cells, range(1)), Options(storage=tmp_path))
    chains = [cell.chain for cell in plan.cells]

    def job(i: int, kind: Any) -> str:
        return f"{kind}-{chains[i].until(kind).record}"

    plan.schedule.failed(job(0, "classifier"), "loss is nan", "diverged")
    plan.schedule.failed(job(1, "localizer"), "loss is nan", "diverged")
    plan.schedule.failed(job(2, "labels"), "no room; training diverged", "error")
    plan.schedule.failed(job(3, "refinement"), "loss is inf", "diverged")
    plan.schedule.failed(job(4, "boxes"), "its worker died", "worker_died")
    plan.schedule.failed(job(5, "refinement"), "loss is inf", "diverged")  # of which the next cell takes its own
    write_record(plan)
    failures = collect([tmp_path]).failures
    every = ("pseudo_label", "lchp_i", "lchp_r")
    assert list(zip(failures["diverged"], failures["lost"], strict=True)) == [
        (True, every),
        (True, every[1:]),
        (False, every[2:]),
        (True, every[2:]),
        (False, every[:2]),
        (True, every[2:]),
        (True, every[2:]),
    ]


def test_links_of_a_store_are_runs_where_they_are_results_of_their_own(tmp_path: Path) -> None:
    """LCHP's localizer is none, nor a classifier or labels; a compared method's boxes are."""
    config = preset("parts")
    figures = known(config)
    store_link(tmp_path, "localizer", config, {r: figures[r] for r in ("pseudo_label", "lchp_i")})
    last = store_link(tmp_path, "refinement", config, figures)
    cam = override(config, {"method.name": "cam"})
    boxes = store_link(tmp_path, "boxes", cam, {"pseudo_label": 40.0}, method="CAM")
    for kind in ("classifier", "labels"):
        folder = store_link(tmp_path, kind, config, figures)
        (folder / "summary.json").unlink()
        seal(folder)
    record = {"overrides": {}, "seed": 0, "base": 0, "key": last.name, "links": {"boxes": boxes.name}, "state": "done"}
    write_json(
        tmp_path / "sweeps" / "a" / SWEEP,
        {
            "version": 2,
            "lchp": "0.2.0",
            "name": "a",
            "command": ["sweeps/a.py", "--address", "10.0.0.1:6379", "--nodes=2", "--limit", "1", "--resume"],
            "created": "2026-11-20T10:00:00+0000",
            "bases": [to_dict(config)],
            "cells": [record | {"job": f"refinement-{last.name}"}],
            "jobs": {f"refinement-{last.name}": {"begin": 1795168800.0, "seconds": 60.0}},
        },
    )
    records = collect([tmp_path])
    assert (records.problems, records.notes) == ((), ())
    assert list(records.runs["folder"]) == [str(boxes), str(last)]
    assert list(records.runs["date"]) == [None, "2026-11-20T10:01:00+00:00"]
    assert records.sweeps[0].states == {last.name: "done"}
    assert commands(records, records.runs) == "made by python sweeps/a.py --limit 1"


def test_a_run_without_a_result_that_its_chain_has_is_refused(tmp_path: Path) -> None:
    config = override(preset("parts"), {"method.name": "cam", "method.localizer": True})
    write_run(tmp_path / "a", config, {"lchp_i": 50.0}, method="PSOL on CAM boxes")
    (problem, _) = collect([tmp_path]).problems
    assert "lacks results/pseudo_label" in problem


def test_a_record_of_an_unknown_method_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "good", preset("parts"))
    edit(write_run(tmp_path / "odd", preset("parts")) / "config.json", method__name="gradcam")
    records = collect([tmp_path])
    assert len(records.runs) == 1
    assert "method.name = 'gradcam'" in records.problems[0]


def test_the_cost_of_a_record_does_not_grow_with_their_number(tmp_path: Path) -> None:
    """The third fifty cost what the second fifty did, in function calls: the same on every machine. The first record's
    cost has what is done once."""
    first = store(tmp_path, preset("parts"))
    values = dataclasses.asdict(preset("parts"))
    calls, runs = [], 1
    for number in (1, 50, 100, 150):
        for i in range(runs, number):
            run = first.with_name(f"{i:016x}")
            shutil.copytree(first, run)
            values["seed"], values["initialization"]["delta"] = i, 0.1 + 0.005 * i
            (run / "config.json").write_text(json.dumps(values))
            seal(run)
        runs = number
        with cProfile.Profile() as profile:
            records = collect([tmp_path])
        assert len(records.runs) == runs
        calls.append(sum(entry.callcount for entry in profile.getstats()))
    assert records.runs.memory_usage(deep=True).sum() < 1e4 * runs
    _, fifty, hundred, more = calls
    assert more - hundred == pytest.approx(hundred - fifty, rel=0.005)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("environment.json", {"versions": ["0.1.0"]}),
        ("environment.json", {"class_names": 10}),
        ("environment.json", {"peak_memory_mb": {"process": [1]}}),
    ],
)
def test_one_odd_record_does_not_stop_the_others(tmp_path: Path, file: str, values: dict[str, Any]) -> None:
    write_run(tmp_path / "good", preset("parts"))
    edit(write_run(tmp_path / "odd", preset("parts")) / file, **values)
    records = collect([tmp_path])
    assert [Path(f).name for f in records.runs["folder"]] == ["good"]
    assert "odd" in records.problems[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [({"command": []}, "command: expected at least 1 item"), ({"created": 5}, "created = 5: expected text")],
)
def test_an_odd_sweep_is_named(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    config = preset("parts")
    write_sweep(tmp_path, [({}, config, "done", None)], config)
    (path,) = tmp_path.glob("sweeps/*/sweep.json")
    edit(path, **values)
    records = collect([tmp_path])
    assert records.sweeps == ()
    assert f"{path}: {said}" in " ".join(records.problems)


def test_texts_from_outside_stay_on_one_line() -> None:
    assert clean("a\n\nb\tc \x1b[31m") == "a b c \N{REPLACEMENT CHARACTER}[31m"


def test_predictions_that_are_gone_or_cut_off_are_named(tmp_path: Path) -> None:
    run = store(tmp_path, preset("parts"))
    (run / "predictions.parquet").write_bytes(b"PAR1 rows PAR1")
    seal(run)
    assert len(collect([tmp_path]).runs) == 1
    (run / "predictions.parquet").write_bytes(b"PAR1 ro")
    assert "predictions.parquet: missing or cut off" in collect([tmp_path]).problems[0]
    (run / "predictions.parquet").unlink()
    assert "predictions.parquet: missing or cut off" in collect([tmp_path]).problems[0]
