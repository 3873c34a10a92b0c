"""Figures of any field, and of a search."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import store, write_grid, write_sweep

from lchp.cli import main
from lchp.config import PRESETS, override, preset
from lchp.errors import RunError
from lchp.harness.database import DATABASE, open_study
from lchp.report.figures.fields import field_figures, figure_of
from lchp.report.figures.make import FigureOptions, NotDrawn, draw, make_figures
from lchp.report.figures.searches import read_studies, search_figure
from lchp.report.figures.style import rendered
from lchp.report.flags import Recipe, Source
from lchp.report.paper import read_paper
from lchp.report.read import collect
from lchp.report.tables.cells import FieldTable
from lchp.report.tables.fields import field_table

PARTS = PRESETS["parts"]
ALPHA, BETA, LABELLER = "initialization.alpha", "initialization.beta", "refinement.labeller"


def run(storage: Path, values: Mapping[str, Any], second: float) -> None:
    figures = {"pseudo_label": 40.0, "lchp_i": 50.0, "lchp_r": second}
    store(storage, override(preset("parts"), dict(values)), figures)


def names(storage: Path, **where: Any) -> list[str]:
    return [name for name, _ in field_figures(collect([storage]), PARTS, where)]


def test_lines_and_bands_are_the_table_s(tmp_path: Path) -> None:
    for alpha, second in ((5.0, 60.0), (20.0, 65.0), (100.0, 62.0)):
        for seed in (0, 1):
            run(tmp_path, {ALPHA: alpha, "seed": seed}, second + seed)
    asked = FieldTable((ALPHA,))
    made = field_table(collect([tmp_path]), asked)
    drawing = figure_of(made, asked)
    center, full = drawing.figure.axes
    drawn: Any = next(line for line in center.get_lines() if line.get_label() == "LCHP-R")
    assert list(drawn.get_xdata()) == [5, 20, 100]
    assert list(drawn.get_ydata()) == [60.5, 65.5, 62.5]
    assert len(center.collections) == 3
    assert max(y.get_datalim(center.transData).y1 for y in center.collections) == pytest.approx(65.5 + 0.5**0.5)
    assert [ax.get_title() for ax in (center, full)] == ["center_crop", "full_image"]
    assert drawing.name == "alpha_by_results"
    assert "over seeds, in both frames. Data: parts" in drawing.caption
    assert rendered(drawing, "png").startswith(b"\x89PNG")


def test_words_have_points_and_no_line(tmp_path: Path) -> None:
    for labeller, second in (("ema", 60.0), ("frozen", 65.0)):
        run(tmp_path, {LABELLER: labeller}, second)
    asked = FieldTable((LABELLER,), "metrics")
    (ax, _) = figure_of(field_table(collect([tmp_path]), asked), asked).figure.axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["ema", "frozen"]
    assert {line.get_linestyle() for line in ax.get_lines()} == {"None"}


def test_metrics_that_coincide_are_both_seen(tmp_path: Path) -> None:
    """A later line is thinner, and its markers are hollow and smaller."""
    for alpha, second in ((5.0, 60.0), (20.0, 65.0)):
        run(tmp_path, {ALPHA: alpha}, second)
    asked = FieldTable((ALPHA,), "metrics")
    drawn: Any = figure_of(field_table(collect([tmp_path]), asked), asked).figure.axes[0].get_lines()
    for sizes in ([line.get_linewidth() for line in drawn], [line.get_markersize() for line in drawn]):
        assert sizes == sorted(set(sizes), reverse=True)
        assert len(sizes) == 4
    assert {line.get_markerfacecolor() for line in drawn} == {"none"}


def test_a_heatmap_holds_the_means_and_leaves_gaps(tmp_path: Path) -> None:
    for (alpha, beta), second in {(5.0, 0.5): 60.0, (5.0, 0.9): 61.0, (20.0, 0.5): 62.0}.items():
        run(tmp_path, {ALPHA: alpha, BETA: beta}, second)
    asked = FieldTable((ALPHA,), BETA)
    (ax, _) = figure_of(field_table(collect([tmp_path]), asked), asked).figure.axes
    image: Any = ax.get_images()[0].get_array()
    shown = np.ma.filled(image, np.nan)
    np.testing.assert_array_equal(shown, [[60, 61], [62, np.nan]])
    assert sorted(text.get_text() for text in ax.texts) == ["60.0", "61.0", "62.0"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("beta", "alpha")
    assert [label.get_rotation() for label in ax.get_xticklabels()] == [0, 0]
    run(tmp_path, {ALPHA: 5.0, BETA: 0.5, LABELLER: "ema"}, 60.0)
    words = FieldTable((ALPHA,), LABELLER, where={BETA: 0.5})
    (ax, _) = figure_of(field_table(collect([tmp_path]), words), words).figure.axes
    assert [label.get_rotation() for label in ax.get_xticklabels()] == [20, 20]  # or they run into each other


def test_fields_around_the_recipe_have_figures_and_pairs_that_were_crossed(tmp_path: Path) -> None:
    own = preset("parts").initialization
    run(tmp_path, {}, 60.0)
    run(tmp_path, {ALPHA: 5.0}, 61.0)
    run(tmp_path, {LABELLER: "ema"}, 62.0)
    run(tmp_path, {"initialization.delta": 0.3}, 50.0)  # which has its own
    assert names(tmp_path) == [ALPHA, LABELLER]
    run(tmp_path, {BETA: 0.5}, 63.0)
    run(tmp_path, {ALPHA: 5.0, BETA: 0.5}, 64.0)
    run(tmp_path, {ALPHA: 5.0, BETA: 0.5, LABELLER: "ema"}, 99.0)  # differs in three
    found = dict(field_figures(collect([tmp_path]), PARTS, {}))
    assert set(found) == {ALPHA, BETA, LABELLER, f"{ALPHA}, {BETA}"}
    (ax, _) = found[f"{ALPHA}, {BETA}"]().figure.axes
    assert sorted(text.get_text() for text in ax.texts) == ["60.0", "61.0", "63.0", "64.0"]
    drawn: Any = next(line for line in found[ALPHA]().figure.axes[0].get_lines() if line.get_label() == "LCHP-R")
    assert list(drawn.get_xdata()) == [5, own.alpha]
    assert list(drawn.get_ydata()) == [61, 60]


def search(storage: Path, trials: int) -> None:
    study = open_study(storage, "mine")
    study.set_user_attr("objective", "unboxed")
    for i in range(trials):
        trial = study.ask()
        delta = trial.suggest_float("initialization.delta", 0, 1)
        trial.suggest_categorical(LABELLER, ["ema", "frozen"])
        study.tell(trial, 90 - 40 * abs(delta - 0.4) + 0 * i)


def test_a_search_has_its_history_and_importance(tmp_path: Path) -> None:
    search(tmp_path, 20)
    before = (tmp_path / DATABASE).read_bytes()
    (study,) = read_studies(tmp_path)
    drawing = search_figure(study)
    axes: Any = drawing.figure.axes
    history, shares = axes
    trials, best = (line.get_ydata() for line in history.get_lines())
    values = [t.value for t in study.trials]
    assert list(trials) == values
    assert list(best) == list(np.maximum.accumulate(values))
    widths = {t.get_text(): p.get_width() for t, p in zip(shares.get_yticklabels(), shares.patches, strict=True)}
    assert sum(widths.values()) == pytest.approx(1)
    assert widths["initialization.delta"] > 0.8  # the labeller has no part in it
    assert f"the best, {max(values):.2f}".lower() in drawing.caption.lower()
    assert "20 finished trials" in drawing.caption
    assert (tmp_path / DATABASE).read_bytes() == before


def test_a_search_of_one_trial_or_none(tmp_path: Path) -> None:
    assert read_studies(tmp_path) == []
    search(tmp_path, 1)
    (study,) = read_studies(tmp_path)
    drawing = search_figure(study)
    assert len(drawing.figure.axes) == 1
    assert "too few different trials" in drawing.caption
    search(tmp_path / "none", 0)
    with pytest.raises(RunError, match="the search mine has no finished trial"):
        search_figure(read_studies(tmp_path / "none")[0])


def test_of_one_sweep_no_other_one_s_search_is_drawn(tmp_path: Path) -> None:
    search(tmp_path, 1)
    write_sweep(tmp_path, [({}, preset("parts"), "done", None)], preset("parts"), "other")
    source = Source((tmp_path,), sweep=("other",))
    (found,) = draw(FigureOptions(source, ("search",)), source.read(), PARTS, read_paper())
    assert isinstance(found, NotDrawn)
    assert found.reason == "no search was run"


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    storage = write_grid(tmp_path)
    (storage / DATABASE).write_bytes(b"no database at all, but long enough to look at" * 50)
    with pytest.raises(RunError, match=r"optuna.db: its studies cannot be read"):
        read_studies(storage)
    records = collect([storage])
    (found,) = draw(
        FigureOptions(Source((storage,)), ("search",), recipe=Recipe("parts")), records, PARTS, read_paper()
    )
    assert isinstance(found, NotDrawn)
    assert "cannot be read" in found.reason
    assert "\n" not in found.reason


def test_the_commands_draw_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for alpha in (5.0, 20.0):
        run(tmp_path, {ALPHA: alpha}, 50 + alpha)
    search(tmp_path, 3)
    assert main(["table", "--rows", ALPHA, "--storage", str(tmp_path), "--figure"]) == 0
    assert {"alpha_by_results.png", "alpha_by_results.pdf"} <= {p.name for p in (tmp_path / "tables").iterdir()}
    assert main(["table", "--rows", f"{ALPHA},seed", "--storage", str(tmp_path), "--figure"]) == 2
    assert "--figure draws one field of rows; name a second one by --columns" in capsys.readouterr().err
    run(tmp_path, {ALPHA: 5.0, BETA: 0.5, LABELLER: "ema"}, 90.0)
    assert main(["table", "--rows", ALPHA, "--storage", str(tmp_path), "--figure", "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err == (
        "lchp: error: no figure of cells that mix runs; they differ in initialization.beta, refinement.labeller: "
        "--where FIELD=VALUE or --sweep NAME chooses among the runs\n"
    )
    assert not (tmp_path / "no").exists()
    wanted = FigureOptions(Source((tmp_path,)), ("fields", "search"), recipe=Recipe("parts"))
    assert make_figures(wanted, tmp_path / "out") == 0
    assert {p.stem for p in (tmp_path / "out").iterdir()} == {"alpha_by_results", "search_mine"}
