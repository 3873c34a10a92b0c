"""Records that somebody edited by hand: one line that names file and field, or read as they are; never a traceback, and
never an end to the tables of a whole storage."""

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import changed, fuzzed
from pydantic import TypeAdapter
from report_records import ANALYSIS, write_predicted, write_run

from lchp.cli import main
from lchp.config import PRESETS, TrainConfig, preset
from lchp.errors import LchpError, RunError
from lchp.evaluation.metrics import FRAMES, RESULTS
from lchp.evaluation.predictions import macro_gt_known, read_predictions, summarize
from lchp.files import runs
from lchp.files.schema import DONE_SCHEMA, ENVIRONMENT_SCHEMA, SUMMARY_SCHEMA, LocalizationByFrame, ResultName, checked
from lchp.harness import cells
from lchp.harness.plan import recorded_cells
from lchp.report.figures.images import read_frame
from lchp.report.flags import Recipe, Source
from lchp.report.page.make import PageOptions, make_page
from lchp.report.paper import read_paper
from lchp.report.publish import keep
from lchp.report.read import collect
from lchp.report.tables.numbers import tables
from lchp.report.tables.render import FORMATS, to_text
from lchp.report.tables.write import TableOptions as Tables
from lchp.report.tables.write import make_tables
from lchp.report.unboxed import rank, rank_text

RECORDS = ANALYSIS / "records"
LCHP = RECORDS / "cub50" / "store" / "refinement" / "153b21695b960ca2"
OLDER = Path(__file__).parents[1] / "golden" / "recipe_3"
"""Three cells of a sweep of recipe 3, from before a run was a chain of links."""
COMPARED = OLDER / "store" / "stage2" / "f8458f03f238cf28"
SWEEPS = OLDER / "sweeps" / "methods"


def small_sweep() -> dict[str, Any]:
    """A sweep of two cells, one of which failed."""
    record = json.loads((SWEEPS / "sweep.json").read_text())
    base = json.loads(json.dumps(dataclasses.asdict(preset("parts"))))
    cells = [cell | {"base": 0, "overrides": {"refinement.tau": 0.5}} for cell in record["cells"][:2]]
    cells[0] |= {"state": "failed", "error": "its worker died", "reason": "worker_died"}
    name = f"stage2-{cells[1]['stage2']}"
    return record | {"bases": [base], "cells": cells, "jobs": {name: record["jobs"][name]}}


def fuzzed_sweeps() -> Iterator[tuple[str, Any]]:
    """Of the config in it, one section: tests/config/test_config_fuzz.py does the others."""
    for why, record in fuzzed(small_sweep()):
        if not why.startswith("bases/0/") or why.startswith("bases/0/model"):
            yield why, record


def fuzzed_run_files() -> Iterator[tuple[Path, str, str, bytes]]:
    """A whole run, the name of its file that is changed, how, and what is then in it."""
    for run, file in ((LCHP, runs.SUMMARY), (COMPARED, runs.SUMMARY), (COMPARED, runs.ENVIRONMENT)):
        for why, record in fuzzed(json.loads((run / file).read_text())):
            yield run, file, why, json.dumps(record).encode()
    first, *rest = (COMPARED / runs.METRICS).read_bytes().splitlines(keepends=True)
    for why, line in fuzzed(json.loads(first)):
        yield COMPARED, runs.METRICS, why, json.dumps(line).encode() + b"\n" + b"".join(rest)
    for file in (runs.SUMMARY, runs.ENVIRONMENT, runs.METRICS, runs.CONFIG):
        whole = (COMPARED / file).read_bytes()
        for what in (b"", b"\n", whole[:-20], whole + b"}", b"\xff" + whole, b"[" * 300 + b"]" * 300, b"[" * 10**5):
            yield COMPARED, file, ascii(what[:20]), what


READERS: dict[str, Callable[[Path], Any]] = {
    runs.SUMMARY: runs.read_summary,
    runs.ENVIRONMENT: runs.read_environment,
    runs.METRICS: runs.read_metrics,
    runs.CONFIG: runs.read_config,
}


def one_line(error: LchpError, path: Path) -> None:
    assert str(error).startswith(str(path))
    assert str(error).isprintable()


def write_storage(storage: Path) -> dict[Path, str]:
    """Run folders, a seed each, with one changed file: a share of all changes. The reasons, where one is refused."""
    refused: dict[Path, str] = {}
    whole = {run: {name: (run / name).read_bytes() for name in READERS} for run in (LCHP, COMPARED)}
    for seed, (run, file, _, content) in enumerate(islice(fuzzed_run_files(), 0, None, 23)):
        folder = storage / f"{seed:05d}"
        folder.mkdir(parents=True)
        config = json.loads(whole[run][runs.CONFIG]) | {"seed": seed}
        for name, data in (whole[run] | {runs.CONFIG: json.dumps(config).encode(), file: content}).items():
            (folder / name).write_bytes(data)
        try:
            READERS[file](folder)
        except RunError as error:
            one_line(error, folder / file)
            refused[folder] = str(error)
    return refused


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        (LCHP / runs.SUMMARY, SUMMARY_SCHEMA),
        (COMPARED / runs.SUMMARY, SUMMARY_SCHEMA),
        (COMPARED / runs.ENVIRONMENT, ENVIRONMENT_SCHEMA),
        (COMPARED / runs.DONE, DONE_SCHEMA),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_a_changed_record_is_refused_in_one_line_or_fits(file: Path, schema: TypeAdapter[Any]) -> None:
    refused = 0
    for _, record in fuzzed(json.loads(file.read_text())):
        try:
            checked(schema, record, file)
        except RunError as error:
            one_line(error, file)
            refused += 1
    assert refused > 50


SAID = {
    ("results", "lchp_r", "full_image", "mean_iou"): (
        "x",
        "results/lchp_r/full_image/mean_iou = 'x': expected a number",
    ),
    ("results", "lchp_r", "center_crop", "gt_known"): (
        None,
        "results/lchp_r/center_crop/gt_known is null, and other figures are not",
    ),
    ("results", "lchp_x"): (
        {},
        "results/lchp_x = 'lchp_x': expected 'pseudo_label', 'lchp_i' or 'lchp_r' (and 2 more)",
    ),
    ("floors", "center_crop"): (..., "lacks floors/center_crop; was it written by another version of lchp?"),
    ("classification", "top1"): (101.0, "classification/top1 = 101.0: expected less than or equal to 100.001"),
    ("kept", "count"): (0.5, "kept/count = 0.5: expected a multiple of 1"),
    ("kept", "odd"): (math.nan, "kept/odd = nan: expected a finite number"),
    ("kept",): ({"tau": 0.5}, "kept: lacks total, count"),
}


@pytest.mark.parametrize("path", SAID, ids="/".join)
def test_what_is_said_names_the_field(tmp_path: Path, path: tuple[str, ...]) -> None:
    value, said = SAID[path]
    record = changed(json.loads((LCHP / runs.SUMMARY).read_text()), path, value)
    (tmp_path / runs.SUMMARY).write_text(json.dumps(record))
    with pytest.raises(RunError) as error:
        runs.read_summary(tmp_path)
    assert str(error.value) == f"{tmp_path / runs.SUMMARY}: {said}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "metrics.jsonl:2: cannot be read"),
        ("[]", "metrics.jsonl:2: record: expected a dictionary"),
        ('{"stage": "refinement"}', "metrics.jsonl:2: lacks epoch"),
        (
            '{"stage": "refinement", "epoch": 1, "kept": "all"}',
            "metrics.jsonl:2: kept = 'all': expected a finite number",
        ),
        ('{"stage": "refinement", "epoch": 1, "loss": NaN}', "metrics.jsonl:2: loss = nan: expected a finite number"),
        (
            '{"stage": "refinement", "epoch": 1, "epoch": 2}',
            "metrics.jsonl:2: cannot be read (key 'epoch' is there twice)",
        ),
    ],
)
def test_a_line_of_the_metrics_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / runs.METRICS).write_text(f'{{"stage": "initialization", "epoch": 1, "loss": 2.0}}\n{line}\n')
    with pytest.raises(RunError) as error:
        runs.read_metrics(tmp_path)
    assert said in str(error.value)


def test_no_changed_run_stops_what_reads_a_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = write_storage(tmp_path / "runs")
    records = collect([tmp_path / "runs"])
    named = {line for line in refused.values() if runs.METRICS not in line}
    assert named <= set(records.problems)
    assert len(records.runs) > 20
    for table in tables(records, PRESETS["cub50_cpu"], read_paper()):
        assert all([to_text(table), *(render(table) for render in FORMATS.values())])
    assert rank_text(rank(records))
    status = make_page(PageOptions(Source((tmp_path / "runs",)), tmp_path / "report.html", figures=False))
    assert status == 1
    assert named <= set(capsys.readouterr().err.splitlines())


def test_no_changed_sweep_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one gone on with: its cells are all read, or refused in a line."""
    monkeypatch.setattr(cells, "data_fingerprint", lambda _: "0" * 16)  # no need to draw the images
    base = preset("parts")
    folders = []
    for i, (_, record) in enumerate(islice(fuzzed_sweeps(), 0, None, 11)):
        folder = tmp_path / "sweeps" / f"{i:04d}"
        folder.mkdir(parents=True)
        (folder / runs.SWEEP).write_text(json.dumps(record))
        folders.append(folder)
        with contextlib.suppress(LchpError):
            assert isinstance(recorded_cells(folder, base), list)
    write_run(tmp_path / "run", base)
    records = collect([tmp_path])
    assert len(records.runs) == 1
    assert 20 < len(records.sweeps) < len(folders)
    said = [line for line in records.problems if f"/{runs.SWEEP}: " in line]
    assert len(said) >= len(folders) - len(records.sweeps)


def predicted(run: Path, *, truth: bool = True) -> pa.Table:
    """Writes the predictions of 12 images."""
    right = {"lchp_i": [True, False] * 6, "lchp_r": [True] * 12}
    return pq.read_table(write_predicted(run, right, truth=truth) / runs.PREDICTIONS)


def column_changes(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """What may stand in a column's place: other types, null, other lengths, what is not finite, in all rows or one."""
    n, values = len(column), column.to_pylist()
    yield pa.nulls(n)
    others: tuple[Any, ...] = (None, "text", -1, 10**6, 2**40, 1e300, math.nan, True, [], [1.5], [None], [[0.5] * 4])
    others += ([-1, 0, 1], [0, 1, 10**6], ["a"] * 3, [math.nan] * 4, [None] * 3, [[]], [[0.5] * 3], [[1.0, None] * 2])
    for other in others:
        for changed_values in ([other] * n, [other, *values[1:]]):
            with contextlib.suppress(pa.ArrowException):
                yield pa.array(changed_values)


def test_changed_predictions_are_refused_in_one_line_or_fit(tmp_path: Path) -> None:
    table = predicted(tmp_path)
    changed_tables = [table.drop_columns([name]) for name in table.column_names]
    for i, name in enumerate(table.column_names):
        changed_tables += [table.set_column(i, name, array) for array in column_changes(table[name])]
    refused = 0
    for other in changed_tables:
        pq.write_table(other, tmp_path / runs.PREDICTIONS)
        try:
            found = read_predictions(tmp_path)
        except RunError as error:
            one_line(error, tmp_path / runs.PREDICTIONS)
            refused += 1
            continue
        with contextlib.suppress(RunError):  # that an IoU does not follow from its boxes
            assert summarize(found)["results"].keys() == {"lchp_i", "lchp_r"}
        assert macro_gt_known(found).keys() <= {"lchp_i", "lchp_r"}
        with contextlib.suppress(RunError):  # no column `confidence`, or no truth
            assert len(read_frame(tmp_path, FRAMES[0])) == 12
    assert 0 < len(changed_tables) - refused < len(changed_tables) / 4


def with_rows(table: pa.Table, name: str, change: Callable[[list[Any]], Any]) -> pa.Table:
    values = table[name].to_pylist()
    change(values)
    return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))


PREDICTED: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "frame": (
        lambda t: with_rows(t, "frame", lambda v: v.__setitem__(3, "crop")),
        "column frame: expected center_crop or",
    ),
    "twice": (lambda t: with_rows(t, "image_id", lambda v: v.__setitem__(1, "0")), "column image_id: twice in a frame"),
    "one frame": (lambda t: t.slice(0, 20), "column image_id: in one frame only in 4 of 20 rows, first image 8"),
    "no rows": (lambda t: t.slice(0, 0), "no rows"),
    "label": (lambda t: with_rows(t, "label", lambda v: v.__setitem__(5, 10)), "column label: expected 0 to 9, found"),
    "no such class": (
        lambda t: with_rows(t, "top5", lambda v: v.__setitem__(5, [0, 1, 10])),
        "column top5: expected 0 to",
    ),
    "null": (lambda t: with_rows(t, "label", lambda v: v.__setitem__(5, None)), "column label: null in 1 of 24 rows"),
    "some truth": (
        lambda t: with_rows(t, "ground_truth", lambda v: v.__setitem__(7, None)),
        "column ground_truth: null in 1",
    ),
    "box": (
        lambda t: with_rows(t, "lchp_r_box", lambda v: v.__setitem__(0, [0.0] * 3)),
        "column lchp_r_box: another number",
    ),
    "infinite": (
        lambda t: with_rows(t, "lchp_r_box", lambda v: v.__setitem__(0, [0.0, 0.0, 1.0, math.inf])),
        "column lchp_r_box: expected a finite number, found another value in 1 of 24 rows, first image 0",
    ),
    "type": (lambda t: t.set_column(2, "label", t["image_id"]), "column label: string, expected int32"),
    "column twice": (lambda t: t.append_column("label", t["label"]), "the column label is there twice"),
    "no box": (lambda t: t.drop_columns(["lchp_i_box"]), "lacks lchp_i_box; was it written by another version"),
}


@pytest.mark.parametrize("change", PREDICTED)
def test_what_is_wrong_with_predictions_is_named(tmp_path: Path, change: str) -> None:
    run = write_run(tmp_path / "run", preset("parts"))
    make, said = PREDICTED[change]
    pq.write_table(make(predicted(run)), run / runs.PREDICTIONS)
    with pytest.raises(RunError) as error:
        summarize(read_predictions(run))
    assert str(error.value).startswith(f"{run / runs.PREDICTIONS}: {said}")


@pytest.mark.parametrize("truth", [True, False])
def test_predictions_that_pandas_wrote_anew_are_the_same(tmp_path: Path, truth: bool) -> None:
    table = predicted(tmp_path, truth=truth)
    table.to_pandas().to_parquet(tmp_path / runs.PREDICTIONS)
    found = read_predictions(tmp_path)
    assert found.cast(table.schema).equals(table)
    assert summarize(found) == summarize(table)


def test_half_a_file_of_predictions_is_named(tmp_path: Path) -> None:
    predicted(tmp_path)
    whole = (tmp_path / runs.PREDICTIONS).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 8):
            damaged[place] = generator.integers(256)
        (tmp_path / runs.PREDICTIONS).write_bytes(damaged)
        try:
            read_predictions(tmp_path)
        except RunError as error:
            one_line(error, tmp_path / runs.PREDICTIONS)


def test_a_copy_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    """A run is left out with its reason, the rest is kept."""
    for name, file in (("bad", runs.PREDICTIONS), ("line", runs.METRICS), ("good", "")):
        shutil.copytree(LCHP, tmp_path / "runs" / name)
        if file:
            (tmp_path / "runs" / name / file).write_bytes(b"{}")
    found = keep([tmp_path / "runs"], tmp_path / "kept")
    assert found.runs == 1
    assert [line.removeprefix(f"{tmp_path}/runs/").partition(":")[0] for line in found.problems] == [
        "bad/predictions.parquet",
        "line/metrics.jsonl",
    ]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "evaluate": lambda run, _: ["evaluate", "--run", str(run)],
    "predict": lambda run, images: ["predict", str(images), "--run", str(run), "--device", "cpu"],
    "export": lambda run, images: ["export", "--run", str(run), "--output", str(images / "model.pt")],
}


@pytest.mark.parametrize(
    ("command", "file", "content"),
    [
        ("evaluate", runs.SUMMARY, b'{"results": {}}'),
        ("evaluate", runs.SUMMARY, b"[]"),
        ("evaluate", runs.PREDICTIONS, b"PAR1"),
        ("evaluate", runs.ENVIRONMENT, b"{}"),
        ("evaluate", runs.CONFIG, b"{}"),
        ("predict", runs.ENVIRONMENT, b'{"class_names": "abc"}'),
        ("predict", runs.CONFIG, b"[]"),
        ("export", runs.ENVIRONMENT, b'{"class_names": ["a", 1]}'),
        ("export", runs.ENVIRONMENT, b'{"class_names": ["a"], "stage1": {"checkpoint": "x", "identity": "y"}}'),
    ],
)
def test_a_command_on_one_run_says_what_is_wrong(
    squares_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, file: str, content: bytes
) -> None:
    run = shutil.copytree(squares_run, tmp_path / "run")
    (run / file).write_bytes(content)
    assert main(COMMANDS[command](run, tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lchp: error: {run / file}: ")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (runs.METRICS, b'{"stage": "initialization"}\n'),
        (runs.METRICS, b"[1]\n"),
        (runs.SUMMARY, b'{"results": 5}'),
        (runs.ENVIRONMENT, b'{"class_names": ["a"], "stage1": "text"}'),
    ],
)
@pytest.mark.parametrize("way", ["resume", "from"])
def test_a_training_does_not_go_on_from_what_does_not_fit(
    squares_run: Path, squares_config: TrainConfig, tmp_path: Path, way: str, file: str, content: bytes
) -> None:
    from lchp.training.run import train

    run = shutil.copytree(squares_run, tmp_path / "run")
    (run / file).write_bytes(content)
    refused = (runs.METRICS, runs.ENVIRONMENT) if way == "resume" else (runs.SUMMARY, runs.ENVIRONMENT)
    if way == "resume":
        with pytest.raises(RunError) if file in refused else contextlib.nullcontext() as error:
            train(squares_config, output=run, resume=True)
        if error is not None:
            one_line(error.value, run / file)
        return
    config = dataclasses.replace(squares_config, refinement=dataclasses.replace(squares_config.refinement, tau=0.5))
    with pytest.raises(RunError) if file in refused else contextlib.nullcontext() as error:
        train(config, output=tmp_path / "second", stage="refine", source=run)
    if error is not None:
        one_line(error.value, run / file)


def test_the_records_of_the_analysis_are_read_as_they_were(tmp_path: Path) -> None:
    """The tables beside them, byte by byte, but the list of those that were made."""
    storage = RECORDS / "cub50"
    assert make_tables(Tables(Source((storage,)), tmp_path)) == 0  # no problem
    differ = [
        p.name for p in sorted((storage / "tables").iterdir()) if p.read_bytes() != (tmp_path / p.name).read_bytes()
    ]
    assert differ == ["tables.tex"]
    for run in [path.parent for path in sorted(storage.glob(f"store/*/*/{runs.PREDICTIONS}"))][::3]:
        assert runs.read_done(run).keys() >= READERS.keys() - {runs.METRICS}
        table = read_predictions(run)
        assert table.equals(pq.read_table(run / runs.PREDICTIONS))
        assert summarize(table)["results"] == runs.read_summary(run)["results"]


def test_records_of_an_older_recipe_are_read(tmp_path: Path) -> None:
    """Whose fields had other names and meanings; the figures are those that their table had then."""
    found = collect([OLDER])
    assert found.problems == ()
    assert set(found.runs["recipe"]) == {3}
    assert make_tables(Tables(Source((OLDER,)), tmp_path, numbers=(1,), recipe=Recipe("cub50_cpu"))) == 0
    text = (tmp_path / "table_1.md").read_text()
    for figures in ("62.96 (1)", "63.68 (1)", "55.84 (1)", "74.50 (1)", "70.23 (1)"):
        assert figures in text


def test_the_names_are_those_of_the_metrics() -> None:
    assert get_args(ResultName) == RESULTS
    assert tuple(LocalizationByFrame.__annotations__) == FRAMES
