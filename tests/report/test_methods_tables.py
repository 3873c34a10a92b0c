"""Tables 1 and 2: the compared methods' rows beside LCHP's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report_records import store, write_run, write_sweep

from lchp.config import PRESETS, TrainConfig, override, preset
from lchp.report.paper import Paper, read_paper
from lchp.report.read import METHOD, collect
from lchp.report.tables.grid import Row, Table
from lchp.report.tables.numbers import table

TITLES = {"cam": "CAM", "adl": "ADL", "spg": "SPG", "has": "HaS", "gr": "GR", "psol": "PSOL", "lchp": "LCHP"}
DIVERGED = "regression, epoch 1: loss is inf; training diverged, lower the learning rate"


@pytest.fixture(scope="module")
def paper() -> Paper:
    return read_paper()


def of(name: str, values: Mapping[str, Any] | None = None, recipe: str = "parts") -> TrainConfig:
    return override(preset(recipe), {"method.name": name, **(values or {})})


def run(storage: Path, config: TrainConfig, known: float, **more: Any) -> None:
    """A stored run of a compared method; its map's box has 50."""
    figures = {"pseudo_label": 50.0, "lchp_i": known} if config.method.localizer else {"pseudo_label": known}
    store(storage, config, figures, method=TITLES[config.method.name], **more)


def rows(made: Table, title: str, frame: str = "center_crop") -> list[Row]:
    """The first section's in the frame."""
    section = next(s for s in made.sections if s.frame == frame)
    return [row for row in section.rows if row.labels[0] == title]


def known(made: Table, title: str, frame: str = "center_crop") -> str:
    (row,) = rows(made, title, frame)
    return row.cells[made.columns.index("GT-Known")].ours


def test_a_row_per_backbone_the_recipe_s_own_first(tmp_path: Path, paper: Paper) -> None:
    for classifier, figure in (("resnet50", 60.0), ("inception_v3", 50.0), ("densenet161", 55.0)):
        run(tmp_path, of("cam", {"model.classifier": classifier}, "cub"), figure, classes=200)
    psol = {"method.localizer": True, "model.classifier": "resnet50"}
    run(tmp_path, of("psol", psol, "cub"), 70.0, classes=200)
    made = table(collect([tmp_path]), 1, PRESETS["cub"], paper)
    cam = rows(made, "CAM")
    assert [row.labels[1] for row in cam] == [
        "GoogLeNet-GAP (ours: InceptionV3-GAP)",
        "DenseNet161-GAP",
        "ResNet50-GAP",
    ]
    assert [(row.cells[2].ours, row.cells[2].paper, row.cells[2].difference) for row in cam] == [
        ("50.00 (1)", "41.00", "+9.00"),
        ("55.00 (1)", "-", "-"),
        ("60.00 (1)", "-", "-"),
    ]
    assert rows(made, "CAM", "full_image")[0].labels[1] == cam[0].labels[1]
    (psol_row,) = rows(made, "PSOL")
    assert psol_row.labels[1] == "DenseNet161 (ours: InceptionV3, classifier ResNet50)"
    assert psol_row.cells[2].paper == "92.54"
    assert not [note for note in made.notes if "with model.classifier" in note]
    assert any("GT-Known of a box over the whole frame" in note for note in made.notes)  # LCHP was not run


def test_table_2_names_backbones_where_there_are_several(tmp_path: Path, paper: Paper) -> None:
    run(tmp_path, of("gr", recipe="tiny_imagenet"), 50.0, classes=200)
    made = table(collect([tmp_path]), 2, PRESETS["tiny_imagenet"], paper)
    assert made.head == ("method",)
    assert known(made, "GR") == "50.00 (1)"
    run(tmp_path, of("gr", {"model.classifier": "resnet50"}, "tiny_imagenet"), 45.0, classes=200)
    made = table(collect([tmp_path]), 2, PRESETS["tiny_imagenet"], paper)
    assert made.head == ("method", "backbone")
    assert [row.labels for row in rows(made, "GR")] == [("GR", "InceptionV3-GAP"), ("GR", "ResNet50-GAP")]
    assert [row.cells[1].paper for row in rows(made, "GR")] == ["57.82", "-"]
    assert {len(row.labels) for s in made.sections for row in s.rows} == {2}


def test_a_failed_cell_reads_failed_in_its_row(tmp_path: Path, paper: Paper) -> None:
    """SPG: its worker died; CAM: one of two seeds diverged; ADL: one of two died otherwise; PSOL: its second half
    diverged. All with other epochs than the recipe's."""
    base = override(preset("parts"), {"initialization.epochs": 3})
    cells = []
    for name, seed, error in (("spg", 0, "its worker died"), ("cam", 1, DIVERGED), ("adl", 1, "its worker died")):
        cells.append((name, {"seed": seed}, error))
    cells.append(("psol", {"method.localizer": True}, DIVERGED))
    written = [
        ({k: v for k, v in values.items() if k != "seed"} | {"method.name": name}, values, error)
        for name, values, error in cells
    ]
    made_of = [(o, override(base, o | values), "failed", error) for o, values, error in written]
    write_sweep(tmp_path, made_of, base, "methods", titles=TITLES)
    for name in ("cam", "adl"):
        run(tmp_path, override(base, {"method.name": name}), 60.0)
    made = table(collect([tmp_path]), 1, PRESETS["parts"], paper)
    assert known(made, "SPG") == known(made, "PSOL") == "failed"
    assert known(made, "SPG", "full_image") == "failed"
    assert known(made, "CAM") == "failed (1 of 2)"
    assert known(made, "ADL") == "60.00 (1)"
    assert rows(made, "SPG")[0].labels[1] == "tiny-GAP"
    notes = " ".join(made.notes)
    for said in ("SPG on tiny, seed 0 failed in its sweep: its worker died", "ADL on tiny, seed 1 failed in its sweep"):
        assert notes.count(said) == 1
    run(tmp_path, override(base, {"method.name": "spg"}), 61.0)  # since it failed
    since = table(collect([tmp_path]), 1, PRESETS["parts"], paper)
    assert known(since, "SPG") == "61.00 (1)"
    assert "SPG on tiny" not in " ".join(since.notes)


def test_a_sweep_of_before_titles_has_its_failures_in_the_notes(tmp_path: Path, paper: Paper) -> None:
    write_sweep(tmp_path, [({"method.name": "has"}, of("has"), "failed", "its worker died")], preset("parts"))
    run(tmp_path, of("cam"), 60.0)
    made = table(collect([tmp_path]), 1, PRESETS["parts"], paper)
    assert not rows(made, "HaS")
    assert any("has on tiny, seed 0 failed in its sweep: its worker died" in note for note in made.notes)


def test_what_is_below_a_floor_is_shown_and_named(tmp_path: Path, paper: Paper) -> None:
    """Floors in center_crop: 5 and 26. A poor map is no failed training; a localizer below the whole frame is."""
    store(tmp_path, preset("parts"))
    for name, figure in (("cam", 26.0), ("adl", 3.0), ("spg", 30.0)):
        run(tmp_path, of(name), figure)
    run(tmp_path, of("psol", {"method.localizer": True}), 3.0)
    made = table(collect([tmp_path]), 1, PRESETS["parts"], paper)
    assert [known(made, title) for title in ("CAM", "ADL", "SPG", "PSOL")] == [
        "26.00 (1)",
        "3.00 (1)",
        "30.00 (1)",
        "failed",
    ]
    below = [note.partition("no better in ")[2] for note in made.notes if "no better in" in note]
    box = "than a centred 80 % box, GT-Known"
    assert below == [f"center_crop {box} 26.00: ADL 3.00, CAM 26.00", f"full_image {box} 15.00: ADL 0.00"]
    notes = " ".join(made.notes)
    assert "PSOL: failed: seed 0, LCHP-I in center_crop: GT-Known 3.00, below the whole frame's 5.00" in notes
    assert "ADL: failed" not in notes


def test_rows_are_of_the_same_images(tmp_path: Path, paper: Paper) -> None:
    """LCHP was not run: the images that most runs saw."""
    for seed in (0, 1):
        write_run(tmp_path / f"cam{seed}", of("cam", {"seed": seed}), {"pseudo_label": 60.0}, method="CAM")
    write_run(tmp_path / "adl", of("adl"), {"pseudo_label": 70.0}, method="ADL", fingerprint="1" * 16)
    made = table(collect([tmp_path]), 1, PRESETS["parts"], paper)
    assert known(made, "CAM") == "60.00 ± 0.00 (2)"
    assert not rows(made, "ADL")
    assert any("on another part of the data set, not in this table: 1" in note for note in made.notes)


def test_other_runs_of_a_row_are_named(tmp_path: Path, paper: Paper) -> None:
    for threshold in (0.2, 0.5):
        run(tmp_path, of("cam", {"method.threshold": threshold}), 60.0)
    notes = table(collect([tmp_path]), 1, PRESETS["parts"], paper).notes
    assert any("CAM: other runs" in note and "method.threshold 0.5 (1 run)" in note for note in notes)


def test_a_sweep_s_record_names_the_rows(tmp_path: Path, squares_config: TrainConfig) -> None:
    from lchp.harness import Options, Sweep
    from lchp.harness.plan import make_plan
    from lchp.harness.record import write_record

    cells: list[dict[str, Any]] = [{}, {"method.name": "cam"}, {"method.name": "cam", "method.localizer": True}]
    plan = make_plan(Sweep("methods", squares_config, cells, range(1)), Options(storage=tmp_path))
    for cell in plan.cells:
        plan.schedule.failed(plan.job_of(cell), "no GPU")
    write_record(plan)
    assert list(collect([tmp_path]).failures[METHOD]) == ["LCHP", "CAM", "PSOL on CAM boxes"]


def test_what_is_said_of_several_rows_is_said_once(tmp_path: Path, paper: Paper) -> None:
    """Rows that differ from the recipe alike share a note; one that differs otherwise has its own. Fields of trainings
    that a map's row has not had do not count."""
    store(tmp_path, preset("parts"))
    for name, epochs, idle in (("cam", 2, 3), ("adl", 2, 4), ("spg", 9, 3)):
        values = {"initialization.epochs": epochs, "refinement.epochs": idle, "initialization.localizer_lr": 0.01}
        run(tmp_path, override(of(name), values), 30.0)
    notes = [
        n.partition(": ")[2] for n in table(collect([tmp_path]), 1, PRESETS["parts"], paper).notes if ": with " in n
    ]
    assert notes == ["ADL, CAM: with initialization.epochs 2", "SPG: with initialization.epochs 9"]
