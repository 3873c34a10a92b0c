"""Table 7: the choices the paper leaves open, each beside the recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report_records import analysis_script, known, store, write_run, write_sweep

from lchp.config import OPEN_CHOICES, PRESETS, override, preset
from lchp.report.flags import Source
from lchp.report.page.make import PageOptions, gather
from lchp.report.paper import read_paper
from lchp.report.read import collect
from lchp.report.select import choose_around, parse_where
from lchp.report.tables.grid import Table, TableCell
from lchp.report.tables.numbers import tables
from lchp.report.tables.open_choices import NO_PAIR, choices_table
from lchp.report.tables.render import FORMATS, to_markdown, to_text
from lchp.report.tables.write import render_tables

PARTS = PRESETS["parts"]
LABELLER, NORMALIZATION, MARGIN = "refinement.labeller", "initialization.normalization", "refinement.crop_margin"
LESS = "LCHP-R - recipe"


def figures(pseudo: float, first: float, second: float) -> Mapping[str, float]:
    return {"pseudo_label": pseudo, "lchp_i": first, "lchp_r": second}


def run(storage: Path, seed: int, second: float, values: Mapping[str, Any] | None = None, **more: Any) -> None:
    config = override(preset("parts"), {"seed": seed, **(values or {})})
    store(storage, config, figures(40.0 + seed, 50.0 + seed, second), **more)


def made(storage: Path, *where: str) -> Table:
    return choices_table(collect([storage]), PARTS, parse_where(where))


def cell(table: Table, choice: str, value: str, column: str, frame: str = "center_crop") -> TableCell:
    (section,) = [s for s in table.sections if s.frame == frame]
    (row,) = [row for row in section.rows if row.labels == (choice, value)]
    return row.cells[table.columns.index(column)]


def test_alternatives_stand_beside_the_recipe(tmp_path: Path) -> None:
    """frozen: +2 and +5 over the recipe's 60 and 62; ema and minmax: one seed each."""
    for seed, second in ((0, 60.0), (1, 62.0)):
        run(tmp_path, seed, second)
        run(tmp_path, seed, second + (2, 5)[seed], {LABELLER: "frozen"})
    run(tmp_path, 1, 59.0, {LABELLER: "ema"})
    run(tmp_path, 2, 70.0, {NORMALIZATION: "minmax"})
    table = made(tmp_path)
    assert (table.head, table.columns) == (("choice", "value"), ("Pseudo Label", "LCHP-I", "LCHP-R", LESS))
    assert cell(table, "recipe", "-", "LCHP-R").ours == "61.00 ± 1.41 (2)"
    assert cell(table, "recipe", "-", LESS).ours == "-"
    assert cell(table, LABELLER, "frozen", "Pseudo Label").ours == "40.50 ± 0.71 (2)"
    assert cell(table, LABELLER, "frozen", "LCHP-R").ours == "64.50 ± 3.54 (2)"
    less = cell(table, LABELLER, "frozen", LESS)
    assert (less.ours, less.mean, less.n, less.rank) == ("+3.50 ± 2.12 (2)", 3.5, 2, 0)
    assert less.sd == pytest.approx(4.5**0.5)
    assert cell(table, LABELLER, "frozen", LESS, "full_image").ours == "+3.50 ± 2.12 (2)"
    assert cell(table, LABELLER, "ema", LESS).ours == "-3.00 (1)"  # of seed 1 alone
    assert cell(table, NORMALIZATION, "minmax", "LCHP-R").ours == "70.00 (1)"
    assert cell(table, NORMALIZATION, "minmax", LESS).ours == NO_PAIR
    assert cell(table, "initialization.mask", "black", LESS).ours == "not run"
    ranks = [cell(table, *row, "LCHP-R").rank for row in ((NORMALIZATION, "minmax"), (LABELLER, "frozen"))]
    assert ranks == [1, 2]
    assert {c.paper for s in table.sections for row in s.rows for c in row.cells} == {"-"}
    assert not [note for note in table.notes if note.startswith("other runs")]
    assert "Seeds 0, 1, 2" in table.caption
    assert "+3.50 ± 2.12 (2)" in to_text(table)
    assert "<u>64.50 ± 3.54 (2)</u>" in to_markdown(table)
    assert all(render(table) for render in FORMATS.values())


def test_rows_are_the_recipe_and_each_alternative(tmp_path: Path) -> None:
    run(tmp_path, 0, 60.0)
    run(tmp_path, 0, 61.0, {MARGIN: 0.1})
    (rows, _) = (s.rows for s in made(tmp_path).sections)
    assert rows[0].labels == ("recipe", "-")
    assert list(dict.fromkeys(row.labels[0] for row in rows[1:])) == list(OPEN_CHOICES)
    assert [row.labels[1] for row in rows if row.labels[0] == LABELLER] == ["frozen", "ema"]
    assert [(row.labels[1], row.cells[-1].ours) for row in rows if row.labels[0] == MARGIN] == [
        ("0.05", "not run"),
        ("0.1", "+1.00 (1)"),
    ]
    assert len(rows) == 19


def test_only_runs_that_differ_in_one_field_belong(tmp_path: Path) -> None:
    run(tmp_path, 0, 60.0)
    run(tmp_path, 0, 61.0, {LABELLER: "frozen", "refinement.tau": 0.8})
    run(tmp_path, 0, 62.0, {"refinement.tau": 0.8})
    write_run(tmp_path / "part", override(preset("parts"), {LABELLER: "ema"}), fingerprint="1" * 16)
    table = made(tmp_path)
    assert cell(table, LABELLER, "frozen", "LCHP-R").ours == "not run"
    assert cell(table, LABELLER, "ema", "LCHP-R").ours == "not run"
    assert "refinement.tau 0.8 (1 run)" in table.notes[-1]
    table = made(tmp_path, "refinement.tau=0.8")
    assert cell(table, "recipe", "-", "LCHP-R").ours == "62.00 (1)"
    assert cell(table, LABELLER, "frozen", LESS).ours == "-1.00 (1)"


def test_failed_cells(tmp_path: Path) -> None:
    """frozen: one seed below the floor; ema: diverged in its sweep; black: worker died; minmax: stage 1 diverged."""
    run(tmp_path, 0, 60.0)
    run(tmp_path, 1, 61.0)
    run(tmp_path, 0, 3.0, {LABELLER: "frozen"})
    run(tmp_path, 1, 62.0, {LABELLER: "frozen"})
    diverged = "epoch 1: loss is inf; training diverged, lower the learning rate"
    lost = {
        LABELLER: ("ema", diverged),
        "refinement.padding": ("black", "its worker died"),
        NORMALIZATION: ("minmax", f"its stage 1 (abc) failed: {diverged}"),
    }
    cells: list[tuple[dict[str, Any], Any, str, str | None]] = [
        ({name: value}, override(preset("parts"), {name: value}), "failed", error)
        for name, (value, error) in lost.items()
    ]
    write_sweep(tmp_path, cells, preset("parts"), "open_choices")
    table = made(tmp_path)
    assert [cell(table, LABELLER, "frozen", c).ours for c in ("LCHP-R", LESS)] == ["failed (1 of 2)"] * 2
    assert [cell(table, LABELLER, "ema", c).ours for c in ("LCHP-I", "LCHP-R", LESS)] == ["not run", "failed", "failed"]
    assert cell(table, NORMALIZATION, "minmax", "Pseudo Label").ours == "failed"
    assert cell(table, "refinement.padding", "black", LESS).ours == "not run"
    notes = " ".join(table.notes)
    assert "failed: labeller frozen, seed 0, LCHP-R in center_crop: GT-Known 3.00, below the whole frame's" in notes
    assert "labeller ema, seed 0 failed in its sweep: epoch 1: loss is inf" in notes
    assert "padding black, seed 0 failed in its sweep: its worker died" in notes
    run(tmp_path, 0, 63.0, {LABELLER: "ema"})  # since it failed
    assert cell(made(tmp_path), LABELLER, "ema", LESS).ours == "+3.00 (1)"


def test_a_recipe_that_failed_leaves_no_difference(tmp_path: Path) -> None:
    run(tmp_path, 0, 3.0)
    run(tmp_path, 0, 62.0, {LABELLER: "frozen"})
    table = made(tmp_path)
    assert cell(table, "recipe", "-", "LCHP-R").ours == "failed"
    assert cell(table, LABELLER, "frozen", LESS).ours == "failed"


def test_an_alternative_never_stands_in_for_the_recipe(tmp_path: Path) -> None:
    run(tmp_path, 0, 62.0, {LABELLER: "frozen"})
    table = made(tmp_path)
    assert cell(table, "recipe", "-", "LCHP-R").ours == "not run"
    assert [cell(table, LABELLER, "frozen", c).ours for c in ("LCHP-R", LESS)] == ["62.00 (1)", "not run"]
    asked = made(tmp_path, f"{LABELLER}=frozen")
    assert cell(asked, "recipe", "-", "LCHP-R").ours == "62.00 (1)"
    assert cell(asked, LABELLER, "online", "LCHP-R").ours == "not run"


def test_without_boxes_and_without_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    table = made(tmp_path / "empty")
    assert {c.ours for s in table.sections for row in s.rows for c in row.cells} == {"not run", "-"}
    for i, values in enumerate(({}, {LABELLER: "frozen"})):
        config = override(preset("parts"), values)
        write_run(tmp_path / "runs" / str(i), config, dict.fromkeys(known(config)))
    assert [cell(made(tmp_path / "runs"), LABELLER, "frozen", c).ours for c in ("LCHP-R", LESS)] == ["no boxes"] * 2


def test_a_result_found_twice_is_said_once(tmp_path: Path) -> None:
    run(tmp_path, 0, 60.0)
    write_run(tmp_path / "again", preset("parts"), figures(40.0, 50.0, 61.0))
    run(tmp_path, 0, 62.0, {LABELLER: "frozen"})
    notes = [note for note in made(tmp_path).notes if "records of the same setting" in note]
    assert len(notes) == 1


def test_it_is_made_where_an_alternative_was_run(tmp_path: Path) -> None:
    main = analysis_script("make_tables").main
    paper = read_paper()
    storage = tmp_path / "results"
    run(storage, 0, 60.0)
    assert [t.number for t in tables(collect([storage]), PARTS, paper)] == [1, 2, 3, 4, 5, 6]
    assert main(["--storage", str(storage), "--table", "7"]) == 0
    assert (storage / "tables" / "table_7.html").exists()
    run(storage, 0, 64.0, {LABELLER: "frozen"})
    records = collect([storage])
    assert [t.number for t in tables(records, PARTS, paper)] == [1, 2, 3, 4, 5, 6, 7]
    page = gather(records, PageOptions(Source((storage,)), figures=False), paper)
    assert [(t.number, t.empty) for t in page.tables][-1] == (7, False)
    assert "Table 7." in render_tables(storage, PARTS, (7,))
    around = choose_around(records, PARTS, tuple(OPEN_CHOICES))
    assert around is not None
    assert (len(around.recipe.runs), len(around.runs)) == (1, 2)
