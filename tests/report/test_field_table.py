"""Tables of any fields: which runs a cell holds, what is named, and differences from a baseline."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report_records import key, store, store_link, write_grid, write_predicted, write_run, write_sweep

from lchp.cli import main
from lchp.config import override, preset
from lchp.errors import ConfigError, RunError
from lchp.report.figures.fields import figure_of
from lchp.report.flags import Source
from lchp.report.read import Records, collect
from lchp.report.tables.cells import FieldTable
from lchp.report.tables.fields import field_table
from lchp.report.tables.grid import Table, TableCell
from lchp.report.tables.render import FORMATS, to_csv, to_markdown, to_text

DELTA, TAU, LABELLER = "initialization.delta", "refinement.tau", "refinement.labeller"
N = 60


def run(storage: Path, values: Mapping[str, Any], known: tuple[float, float, float] = (40.0, 50.0, 60.0)) -> Path:
    config = override(preset("parts"), dict(values))
    return store(storage, config, dict(zip(("pseudo_label", "lchp_i", "lchp_r"), known, strict=True)))


def made(storage: Path, rows: str, columns: str = "results", **more: Any) -> Table:
    return field_table(collect([storage]), FieldTable(tuple(rows.split(",")), columns, **more))


def cell(table: Table, labels: tuple[str, ...], column: str, frame: str = "center_crop") -> TableCell:
    (section,) = [s for s in table.sections if s.frame == frame]
    (row,) = [row for row in section.rows if row.labels == labels]
    return row.cells[table.columns.index(column)]


def test_a_cell_is_a_mean_over_seeds(tmp_path: Path) -> None:
    for seed, known in ((0, 60.0), (1, 64.0)):
        run(tmp_path, {TAU: 0.5, "seed": seed}, (40.0, 50.0, known))
        run(tmp_path, {TAU: 0.9, "seed": seed}, (40.0, 50.0, known + 5))
    table = made(tmp_path, TAU)
    assert (table.head, table.columns) == (("tau",), ("Pseudo Label", "LCHP-I", "LCHP-R"))
    assert [row.labels for row in table.sections[0].rows] == [("0.5",), ("0.9",)]
    assert cell(table, ("0.5",), "LCHP-R").ours == "62.00 ± 2.83 (2)"
    assert cell(table, ("0.9",), "LCHP-R").rank == 1
    assert cell(table, ("0.9",), "LCHP-R", "full_image").ours == "59.00 ± 2.83 (2)"  # 8 points below
    assert not [note for note in table.notes if "--where" in note]
    assert "Seeds 0, 1" in table.caption
    assert table.title == "GT-Known (%) by refinement.tau"
    assert to_markdown(table).startswith("### Table. GT-Known (%) by refinement.tau\n")
    assert all(render(table) for render in FORMATS.values())


def test_columns_are_a_field_or_metrics(tmp_path: Path) -> None:
    for delta in (0.3, 0.5):
        for tau in (0.5, 0.9):
            run(tmp_path, {DELTA: delta, TAU: tau}, (40.0, 100 * delta, 100 * tau))
    table = made(tmp_path, DELTA, TAU)
    assert (table.columns, table.title) == (
        ("0.5", "0.9"),
        "GT-Known (%) of the last result by initialization.delta and refinement.tau",
    )
    assert cell(table, ("0.3",), "0.9").ours == "90.00 (1)"
    of_i = made(tmp_path, DELTA, TAU, result="lchp_i", metric="top1_loc")
    assert cell(of_i, ("0.5",), "0.9").ours == "40.00 (1)"  # 80 % of GT-Known
    metrics = made(tmp_path, f"{DELTA},{TAU}", "metrics")
    assert (metrics.head, metrics.columns) == (("delta", "tau"), ("GT-Known", "Top-1", "Top-5", "mean IoU"))
    assert [c.ours for c in metrics.sections[0].rows[-1].cells] == ["90.00 (1)", "72.00 (1)", "85.50 (1)", "90.00 (1)"]


def test_a_result_below_the_whole_frame_is_no_figure_but_is_said() -> None:
    """The published record of what learns from boxes of heads."""
    table = made(Path(__file__).parents[2] / "analysis" / "records" / "cub50_boxes", "method.boxes")
    assert cell(table, ("oracle_head.csv",), "LCHP-R", "full_image").ours == "failed"
    assert [note for note in table.notes if note.startswith("failed: ")] == [
        f"failed: method.boxes oracle_head.csv, seed 0, {result} in {frame}: GT-Known {known}, below the whole frame's "
        f"{floor}"
        for result, frame, known, floor in (
            ("LCHP-I", "center_crop", 5.13, 41.03),
            ("LCHP-I", "full_image", "6.70", 19.94),
            ("LCHP-R", "center_crop", 6.55, 41.03),
            ("LCHP-R", "full_image", 11.68, 19.94),
        )
    ]
    assert cell(table, ("oracle_truth.csv",), "LCHP-R").ours == "95.16 (1)"


def test_what_differs_besides_is_named_and_counted(tmp_path: Path) -> None:
    """At delta 0.5 the labeller differs within the cell, at 0.3 tau from the other rows."""
    run(tmp_path, {DELTA: 0.5}, (40.0, 50.0, 60.0))
    run(tmp_path, {DELTA: 0.5, LABELLER: "ema"}, (40.0, 50.0, 64.0))
    run(tmp_path, {DELTA: 0.3, TAU: 0.8}, (40.0, 50.0, 70.0))
    table = made(tmp_path, DELTA)
    assert cell(table, ("0.5",), "LCHP-R").ours == "62.00 ± 2.83 (2; 2 settings)"
    assert cell(table, ("0.5",), "LCHP-I").ours == "50.00 (1)"  # one training, whatever the labeller
    assert cell(table, ("0.3",), "LCHP-R").ours == "70.00 (1)"
    assert list(table.notes[:3]) == [
        "cells differ too in refinement.tau (delta 0.3: 0.8; delta 0.5: 0.9)",
        "cells mix runs that differ in refinement.labeller (delta 0.5: ema and online; delta 0.3: online)",
        "--where FIELD=VALUE or --sweep NAME chooses among the runs; a column in which a cell mixes runs has no best",
    ]
    ranks = [[c.rank for c in row.cells] for row in table.sections[0].rows]
    assert ranks == [[1, 1, 0], [1, 1, 0]]  # of LCHP-R neither the mean nor what it would be measured against
    assert table.mixed == (LABELLER,)
    alone = made(tmp_path, DELTA, where={LABELLER: "online", TAU: 0.9})
    assert [row.labels for row in alone.sections[0].rows] == [("0.5",)]
    assert cell(alone, ("0.5",), "LCHP-R").ours == "60.00 (1)"
    assert not [note for note in alone.notes if "--where" in note]


def test_a_note_names_few_cells_and_sums_up_the_others(tmp_path: Path) -> None:
    for delta in (0.3, 0.4, 0.5):
        for tau in (0.5, 0.8, 0.9):
            run(tmp_path, {DELTA: delta, TAU: tau})
    assert "cells mix runs that differ in refinement.tau (all: 0.5, 0.8 and 0.9)" in made(tmp_path, DELTA).notes
    run(tmp_path, {DELTA: 0.6})
    said = "cells mix runs that differ in refinement.tau (delta 0.6: 0.9; the others: 0.5, 0.8 and 0.9)"
    assert said in made(tmp_path, DELTA).notes


def test_a_table_of_one_sweep_has_its_cells_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One is the recipe; mine shares a run with it, and lost a cell that a run of another storage has."""
    base = preset("parts")
    short = {"initialization.epochs": 1}
    for name, cells in (("one", [{}, {DELTA: 0.3}]), ("mine", [{}, {TAU: 0.5, **short}, {TAU: 0.8, **short}])):
        configs = [override(base, values) for values in cells]
        states = ["done" if values.get(TAU) != 0.8 else "failed" for values in cells]
        write_sweep(tmp_path, [*zip(cells, configs, states, [None] * len(cells), strict=True)], base, name)
        for config, state in zip(configs, states, strict=True):
            if state == "done" and not (tmp_path / "store" / "stage2" / key(config)).exists():
                store(tmp_path, config)
    write_run(tmp_path / "alone", override(base, {TAU: 0.7}))

    def read(*names: str) -> Records:
        return Source((tmp_path,), sweep=names).read()

    assert [len(read(*names).runs) for names in ((), ("one",), ("mine",), ("mine", "one"))] == [4, 2, 2, 3]
    assert [len(read(name).failures) for name in ("one", "mine")] == [0, 1]
    assert [sweep.name for sweep in read("mine").sweeps] == ["mine"]
    storage = ["--storage", str(tmp_path)]
    assert main(["table", "--rows", TAU, "--sweep", "mine", *storage]) == 0
    table = csv.DictReader(io.StringIO((tmp_path / "tables" / "table_tau_by_results.csv").read_text()))
    assert {row["tau"] for row in table} == {"0.5", "0.8", "0.9"}
    assert main(["tables", "--table", "3", "--sweep", "one", *storage]) == 0
    assert main(["table", "--compare", f"{TAU}=0.9", f"{TAU}=0.5", "--sweep", "mine", *storage]) == 2
    assert "predictions" in capsys.readouterr().err  # both were found
    assert main(["report", "--no-figures", "--sweep", "mine", *storage]) == 0
    assert f"--storage {tmp_path.name} --sweep mine" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    for command in (["table", "--rows", TAU], ["tables"], ["figures"], ["report"]):
        assert main([*command, "--sweep", "mien", *storage]) == 2
        said = "--sweep mien: no such sweep (did you mean mine?); there are mine, one"
        assert capsys.readouterr().err == f"lchp: error: {said}\n"
    with pytest.raises(ConfigError, match=r"^--sweep mine: no such sweep; the storages have none$"):
        Source((tmp_path / "alone",), sweep=("mine",)).read()


def test_fields_of_one_last_name_have_different_names(tmp_path: Path) -> None:
    for first, second in ((0.01, 0.02), (0.02, 0.01)):
        run(tmp_path, {"initialization.lr": first, "refinement.lr": second})
    both = made(tmp_path, "initialization.lr,refinement.lr")
    assert both.head == ("initialization.lr", "refinement.lr")
    assert both.number == "initialization_lr_refinement_lr_by_results"
    alone = {made(tmp_path, name).number for name in ("initialization.lr", "refinement.lr", TAU)}
    assert alone == {"initialization_lr_by_results", "refinement_lr_by_results", "tau_by_results"}
    crossed = FieldTable(("initialization.lr",), "refinement.lr")
    drawn = figure_of(field_table(collect([tmp_path]), crossed), crossed)
    assert {(ax.get_xlabel(), ax.get_ylabel()) for ax in drawn.figure.axes} == {("refinement.lr", "initialization.lr")}


def of_file(storage: Path, path: str, content: str | None, seed: int = 0, **more: Any) -> None:
    config = override(preset("parts"), {"method.name": "boxes", "method.boxes": path, "seed": seed, **more})
    files = {} if content is None else {"files": {"method.boxes": content}}
    store(storage, config, dict(zip(("pseudo_label", "lchp_i", "lchp_r"), (40.0, 50.0, 60.0), strict=True)), **files)


def test_files_go_by_what_they_hold_and_by_their_name_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_file(tmp_path, "/home/me/good.csv", "a" * 16)
    of_file(tmp_path, "/scratch/renamed.csv", "a" * 16, seed=1)  # the same file, elsewhere
    of_file(tmp_path, "/home/me/bad.csv", "b" * 16)
    of_file(tmp_path, "/scratch/bad.csv", "c" * 16)  # another one of that name
    of_file(tmp_path, "/home/me/older.csv", None)  # a record without contents goes by the path
    table = made(tmp_path, "method.boxes")
    names = [row.labels[0] for row in table.sections[0].rows]
    assert [name.partition(" ")[0] for name in names] == ["bad.csv", "bad.csv", "good.csv", "older.csv"]
    assert len(set(names)) == 4
    assert cell(table, ("good.csv",), "LCHP-R").n == 2
    for where in ("good.csv", "/anywhere/good.csv"):
        assert main(["table", "--rows", "seed", "--where", f"method.boxes={where}", "--storage", str(tmp_path)]) == 0
    assert main(["table", "--rows", "seed", "--storage", str(tmp_path)]) == 0
    assert main(["report", "--no-figures", "--storage", str(tmp_path)]) == 0
    capsys.readouterr()
    page = (tmp_path / "report.html").read_text()
    written = page + "".join(path.read_text() for path in (tmp_path / "tables").iterdir())
    assert "/home/me" not in written
    assert "/scratch" not in written
    assert all(f"Boxes of {name}" in page for name in names)
    assert "learn from that file" in page


def test_weights_go_by_what_they_and_their_classes_hold(tmp_path: Path) -> None:
    for k, (weights, classes) in enumerate((("a", "a"), ("a", "b"), ("b", "b"), ("a", "a"))):
        folder = f"/home/{k}"
        named = {"weights": f"{folder}/w.pth", "classes": f"{folder}/names.txt"}
        values = {f"model.classifier_{name}": path for name, path in named.items()}
        config = override(preset("parts"), {"method.name": "cam", "model.head": "gap", "seed": k, **values})
        files = {"model.classifier_weights": weights, "model.classifier_classes": classes}
        store_link(tmp_path, "boxes", config, {"pseudo_label": 40.0}, files=files)
    table = made(tmp_path, "model.classifier_weights")
    assert sorted(row.cells[0].n for row in table.sections[0].rows) == [1, 1, 2]
    assert {row.labels[0].partition(" ")[0] for row in table.sections[0].rows} == {"w.pth"}


def test_other_images_and_recipes_are_never_averaged_in_silence(tmp_path: Path) -> None:
    for fingerprint, recipe in (("a", None), ("b", None), ("a", 2)):
        write_run(tmp_path / f"{fingerprint}{recipe}", preset("parts"), fingerprint=fingerprint, recipe=recipe)
    table = made(tmp_path, TAU)
    assert "3 settings" in cell(table, ("0.9",), "LCHP-R").ours
    notes = " ".join(table.notes)
    assert "data_fingerprint (all: a and b)" in notes
    assert "recipe (all: 2 and None)" in notes


def test_a_result_found_twice_counts_once(tmp_path: Path) -> None:
    run(tmp_path, {}, (40.0, 50.0, 60.0))
    write_run(tmp_path / "again", preset("parts"), {"pseudo_label": 40.0, "lchp_i": 50.0, "lchp_r": 61.0})
    table = made(tmp_path, TAU)
    assert cell(table, ("0.9",), "LCHP-R").n == 1
    assert any("2 records of the same setting with other figures" in note for note in table.notes)


def test_failed_cells_and_compared_methods(tmp_path: Path) -> None:
    base = preset("parts")
    run(tmp_path, {}, (40.0, 50.0, 60.0))
    cam = override(base, {"method.name": "cam"})
    store(tmp_path, cam, {"pseudo_label": 3.0}, method="CAM")
    error = "refinement, epoch 2: loss is inf; training diverged, lower the learning rate"
    lost = override(base, {TAU: 0.5})
    write_sweep(tmp_path, [({TAU: 0.5}, lost, "failed", error)], base)
    table = made(tmp_path, "method.name", "metrics")
    assert cell(table, ("cam",), "GT-Known").ours == "3.00 (1)"  # a map below the floor is no failed training
    by_tau = made(tmp_path, TAU, where={"method.name": "lchp"})
    assert cell(by_tau, ("0.5",), "LCHP-R").ours == "failed"
    assert cell(by_tau, ("0.5",), "LCHP-I").ours == "not run"
    assert any("loss is inf" in note for note in by_tau.notes)
    both = made(tmp_path, "method.name")
    assert cell(both, ("cam",), "LCHP-R").ours == "not run"
    assert cell(both, ("lchp",), "LCHP-R").ours == "failed (1 of 2)"


def test_a_failed_last_result_is_named_whatever_the_columns(tmp_path: Path) -> None:
    run(tmp_path, {}, (40.0, 50.0, 3.0))
    for columns in ("metrics", "initialization.alpha"):
        table = made(tmp_path, TAU, columns)
        assert any("the last result in center_crop: GT-Known 3.00, below" in note for note in table.notes)


def predicted(storage: Path, values: Mapping[str, Any], seed: int, wrong: int, first: int = 0) -> None:
    """A run whose last result is wrong on `wrong` of N images, from `first` on."""
    right = [not first <= i < first + wrong for i in range(N)]
    folder = run(storage, {**values, "seed": seed}, (40.0, 50.0, 100.0 * sum(right) / N))
    write_predicted(folder, {"pseudo_label": right, "lchp_i": right, "lchp_r": right})


def resealed(storage: Path) -> None:
    from report_records import seal

    for folder in (storage / "store" / "stage2").iterdir():
        seal(folder)


def test_the_difference_from_a_baseline(tmp_path: Path) -> None:
    """frozen is right on ten more images in each of three seeds; ema, of one common seed, on one."""
    for seed in (0, 1, 2):
        predicted(tmp_path, {LABELLER: "online"}, seed, 20)
        predicted(tmp_path, {LABELLER: "frozen"}, seed, 10)
    predicted(tmp_path, {LABELLER: "ema"}, 0, 19)
    predicted(tmp_path, {LABELLER: "ema"}, 9, 19)
    resealed(tmp_path)
    table = made(tmp_path, LABELLER, where={}, baseline=(LABELLER, "online"))
    assert cell(table, ("online",), "LCHP-R").less is None
    found = cell(table, ("frozen",), "LCHP-R").less
    assert found is not None
    assert (found.seeds, found.images, found.mean) == (3, N, pytest.approx(100 * 10 / N))
    assert 0 < found.low < found.mean < found.high
    assert found.adjusted is not None
    assert found.p < 0.05
    assert found.p <= found.adjusted
    one = cell(table, ("ema",), "LCHP-R").less
    assert one is not None
    assert (one.seeds, one.p) == (1, 1.0)  # McNemar's: one image
    assert cell(table, ("frozen",), "LCHP-I").less is None  # the labeller has no part in it
    assert any("Holm's correction over 4 differences" in note for note in table.notes)  # two labellers, two frames
    assert "in points; 95 % interval by a paired hierarchical bootstrap" in " ".join(table.notes)
    assert any("seeds are not in the interval" in note for note in table.notes)
    assert "less labeller online" in to_text(table)
    assert f"+{100 * 10 / N:.2f} (" in to_text(table)
    (row,) = [
        r
        for r in csv.DictReader(io.StringIO(to_csv(table)))
        if (r["frame"], r["labeller"], r["column"]) == ("center_crop", "frozen", "LCHP-R")
    ]
    assert (float(row["less"]), row["seeds"], row["images"]) == (pytest.approx(found.mean, abs=1e-3), "3", str(N))
    assert all(render(table) for render in FORMATS.values())


def test_a_baseline_among_the_columns(tmp_path: Path) -> None:
    for tau, wrong in ((0.5, 20), (0.9, 10)):
        predicted(tmp_path, {TAU: tau}, 0, wrong)
    resealed(tmp_path)
    table = made(tmp_path, LABELLER, TAU, baseline=(TAU, 0.5))
    assert cell(table, ("online",), "0.5").less is None
    less = cell(table, ("online",), "0.9").less
    assert less is not None
    assert less.mean == pytest.approx(100 * 10 / N)


def test_what_has_no_difference_says_why(tmp_path: Path) -> None:
    """0.8: without predictions; 0.7: no common seed; 0.6: another delta, which is said."""
    predicted(tmp_path, {TAU: 0.9}, 0, 20)
    predicted(tmp_path, {TAU: 0.7}, 5, 20)
    predicted(tmp_path, {TAU: 0.6, DELTA: 0.3}, 0, 20)
    run(tmp_path, {TAU: 0.8})
    resealed(tmp_path)
    notes = made(tmp_path, TAU, baseline=(TAU, 0.9)).notes
    assert any(n.startswith("no difference of tau 0.8: ") and "kept without predictions" in n for n in notes)
    assert "no difference of tau 0.7: no seed is common to both" in notes
    assert "tau 0.6 differs from the baseline, in brackets, also in initialization.delta 0.3 (0.5)" in notes


@pytest.mark.parametrize("columns", ["results", TAU])
def test_where_the_baseline_was_not_run_a_note_says_so(tmp_path: Path, columns: str) -> None:
    for values in ({TAU: 0.9}, {TAU: 0.9, LABELLER: "ema"}, {TAU: 0.5, LABELLER: "ema"}):
        predicted(tmp_path, values, 0, 20)
    resealed(tmp_path)
    rows = LABELLER if columns == TAU else f"{LABELLER},{TAU}"
    notes = made(tmp_path, rows, columns, baseline=(LABELLER, "online")).notes
    assert "no difference of labeller ema, tau 0.5: the baseline was not run there" in notes
    with pytest.raises(ConfigError, match=r"^--baseline refinement.labeller=online: no run has it; there are ema$"):
        made(tmp_path, rows, columns, baseline=(LABELLER, "online"), where={TAU: 0.5})


def test_seeds_have_no_difference(tmp_path: Path) -> None:
    for seed in (0, 1):
        predicted(tmp_path, {}, seed, 20)
    resealed(tmp_path)
    assert "no difference of seed 1: no seed is common to both" in made(tmp_path, "seed", baseline=("seed", 0)).notes


def test_a_setting_that_both_have_is_compared(tmp_path: Path) -> None:
    """The baseline was run with two deltas, the other with one of them."""
    predicted(tmp_path, {LABELLER: "online"}, 0, 20)
    predicted(tmp_path, {LABELLER: "online", DELTA: 0.3}, 0, 5)
    predicted(tmp_path, {LABELLER: "ema"}, 0, 10)
    resealed(tmp_path)
    table = made(tmp_path, LABELLER, "metrics", baseline=(LABELLER, "online"))
    less = cell(table, ("ema",), "GT-Known").less
    assert less is not None
    assert less.mean == pytest.approx(100 * 10 / N)
    assert "the difference of labeller ema is of the one setting that both have" in table.notes


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests only read it."""
    return write_grid(tmp_path_factory.mktemp("grid"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rows refinement.tua", "--rows: refinement.tua is no field (did you mean refinement.tau?)"),
        ("--rows tau", "--rows: tau is no field (did you mean refinement.tau?)"),
        ("--rows tua", "--rows: tua is no field (did you mean refinement.tau?)"),
        ("--rows lr", "--rows: lr is no field (did you mean initialization.lr or refinement.lr?)"),
        ("--rows seed --columns metric", "metric is no field (did you mean metrics?)"),
        ("--rows lr", "(did you mean initialization.lr or refinement.lr?)"),
        ("--rows refinement.tau --columns result", "--columns takes results, metrics or a field: result is no field"),
        ("--rows refinement.tau,refinement.tau", "refinement.tau is there twice"),
        ("--rows refinement.tau --baseline seed=0", "--baseline seed: is no field of this table"),
        (
            "--rows refinement.tau --baseline refinement.tau=0.33",
            "--baseline refinement.tau=0.33: no run has it; there are",
        ),
        ("--rows refinement.tau --baseline refinement.tau=x", "--baseline refinement.tau=x: expected a number"),
        ("--rows refinement.tau --baseline refinement.tau", "--baseline refinement.tau: expected FIELD=VALUE"),
        ("--rows refinement.tau --where seed=77", "--where seed=77: no run has it"),
        ("--rows ,", "is no field"),
        ("--rows refinement.tau --colums metrics", "did you mean --columns?"),
        ("--columns results", "needs --rows FIELD[,FIELD] or --compare A B"),
        ("--rows refinement.tau --compare a b", "one of them"),
        ("--rows seed --result lchp_i", "--result does not go with --columns results"),
        ("--rows seed --columns metrics --metric top1_loc", "--metric does not go with --columns metrics"),
        ("--compare a b --figure", "--figure does not go with --compare"),
        ("--compare a b", "--storage does not go with --compare RUN RUN"),
        ("--compare refinement.tau=0.9", "expected two results"),
        ("--compare refinement.tau=0.9 refinement.tau=0.8", "add what tells them apart: model.localizer"),
    ],
)
def test_a_mistake_is_one_line(grid: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", *options.split(), "--storage", str(grid)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (grid / "tables").exists()


def test_the_command_writes_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path)
    command = ["table", "--rows", DELTA, "--where", "refinement.tau=0.9", "--storage", str(tmp_path)]
    for _ in range(2):  # over its own earlier one
        assert main([*command, "--where", "model.localizer=tiny_coarse"]) == 0
    out = capsys.readouterr().out
    assert "66.50" not in out.partition("delta")[0]
    assert "0.1    " in out
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == {f"table_delta_by_results.{suffix}" for suffix in FORMATS}
    assert main(["table", "--rows", DELTA, "--storage", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["table", "--rows", DELTA, "--storage", str(tmp_path / "empty")]) == 2
    assert "no finished run to make a table of" in capsys.readouterr().err


def test_the_errors_of_python_are_the_command_s(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one field"):
        FieldTable(())
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no finished run"):
        made(tmp_path / "empty", TAU)


def test_a_setting_whose_images_have_no_boxes_is_not_counted(tmp_path: Path) -> None:
    for labeller, known in (("online", 60.0), ("ema", 64.0)):
        run(tmp_path, {LABELLER: labeller}, (40.0, 50.0, known))
    boxless = run(tmp_path, {LABELLER: "frozen"})
    summary = json.loads((boxless / "summary.json").read_text())
    for part in ("results", "floors"):
        text = json.dumps(summary[part])
        summary[part] = json.loads(text, parse_float=lambda _: None, parse_int=lambda _: None)
    (boxless / "summary.json").write_text(json.dumps(summary))
    (boxless / "DONE").unlink()
    boxless.rename(tmp_path / "boxless")  # a run folder of its own, without checksums
    table = made(tmp_path, DELTA)
    assert cell(table, ("0.5",), "LCHP-R").ours == "62.00 ± 2.83 (2; 2 settings)"
    assert not [note for note in table.notes if note.startswith("no boxes")]
    assert any("rank_unboxed.py ranks LCHP's settings without any" in note for note in made(tmp_path, LABELLER).notes)
