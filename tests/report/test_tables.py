"""Tables 1-6 beside the paper's values: which runs, which figures, and the text they become."""

import csv
import hashlib
import io
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from report_records import GOLDEN, golden_texts, known, store, write_grid, write_run, write_sweep

from lchp.config import FIELDS, FILES, PRESETS, SHAPE, Preset, field_types, override, preset, to_flat
from lchp.errors import ConfigError, DataError
from lchp.report.dependence import WITHOUT_EFFECT, counts, results
from lchp.report.figures.curves import points
from lchp.report.paper import Paper, read_paper
from lchp.report.read import Records, collect
from lchp.report.select import DELTA, IDENTITY, choose, differences, parse_where, preset_of, require
from lchp.report.tables.grid import Table, TableCell, as_typed
from lchp.report.tables.numbers import OF_PAPER, table, tables
from lchp.report.tables.render import FORMATS, to_csv, to_html, to_latex, to_markdown, to_text
from lchp.report.tables.write import write_tables
from lchp.training.chain import chain_of, depends_on, results_of

PARTS = PRESETS["parts"]


@pytest.fixture(scope="module")
def paper() -> Paper:
    return read_paper()


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return collect([write_grid(tmp_path_factory.mktemp("grid"))])


def cell(made: Table, labels: str, column: str, frame: str = "center_crop", data: str = "") -> TableCell:
    (row,) = [
        row
        for section in made.sections
        if section.frame == frame and section.data.startswith(data)
        for row in section.rows
        if row.labels[0] == labels
    ]
    return row.cells[made.columns.index(column)]


# --- the paper's values


def of_method_md(text: str) -> dict[tuple[int, str, str], str]:
    """The values listed in method.md, `The paper's numbers`, by table, row and column."""
    text = text.partition("## The paper's numbers")[2]
    found: dict[tuple[int, str, str], str] = {}

    def put(number: int, row: str, columns: list[str], values: str) -> None:
        parts = [v.strip() for v in values.split(" / ")]
        if parts == ["-"]:
            return
        for column, value in zip(columns, parts, strict=True):
            if value != "-":
                found[number, row, column] = value

    metrics = ["Top-1", "Top-5", "GT-Known"]
    for line in re.findall(r"^\| (?!method)([^-|].*) \|$", text, re.MULTILINE):
        method, backbone, cub, imagenet = line.split(" | ")
        found[1, method, "backbone"] = backbone
        put(1, method, [f"CUB {m}" for m in metrics], cub)
        put(1, method, [f"ImageNet {m}" for m in metrics], imagenet)
    for entry in re.search(r"\(Table 2; .*?\): (.*)\.\n", text).group(1).split("; "):  # type: ignore[union-attr]
        row, values = re.fullmatch(r"(\S+(?: Label)?) (\d.*)", entry).groups()  # type: ignore[union-attr]
        put(2, row, ["Top-1", "GT-Known"], values)
    results = ["Pseudo Label", "LCHP-I", "LCHP-R"]
    columns = {3: results, 4: ["kept training boxes", "GT-Known of the kept", "LCHP-R"], 5: results[1:], 6: results[2:]}
    for number, names in columns.items():
        listed = re.search(rf"^Table {number}, .*?: (?=\S+:? \d)(.*)\.$", text, re.MULTILINE).group(1)  # type: ignore[union-attr]
        for entry in listed.split("; "):
            row, values = re.fullmatch(r"(\S+?):? ([\d.]+.*)", entry).groups()  # type: ignore[union-attr]
            put(number, row, names, values)
    return found


def test_paper_csv_holds_every_value_of_method_md(paper: Paper, shared_data: Path) -> None:
    expected = of_method_md((shared_data.parent / "method.md").read_text(encoding="utf-8"))
    assert len(expected) == 115
    assert dict(paper.values) == expected


def test_paper_csv_has_not_moved(paper: Paper) -> None:
    """Where method.md is not at hand: count and checksum."""
    lines = "\n".join(f"{t},{r},{c},{v}" for (t, r, c), v in sorted(paper.values.items()))
    assert len(paper.values) == 115
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "b8271fa51a20b4f6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("table,row,value\n", "line 1: expected table,row,column,value"),
        ("table,row,column,value\n3,0.5,LCHP-R\n", "line 2: expected table,row,column,value, found '3,0.5,LCHP-R'"),
        ("table,row,column,value\n3,0.5,LCHP-R,1\n3,0.5,LCHP-R,2\n", "line 3: table 3, 0.5, LCHP-R stands there twice"),
    ],
)
def test_a_faulty_paper_csv_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "paper.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_paper(path)


def test_paper_values_are_found_by_number_too(paper: Paper) -> None:
    assert paper.at(4, 0.0, "LCHP-R") == "failed"
    assert paper.at(3, 0.55, "LCHP-R") is None
    assert paper.curve(4, "LCHP-R") == {0.5: 88.36, 0.6: 91.18, 0.7: 92.8, 0.8: 93.98, 0.9: 94.36}


# --- which runs stand together


def other_value(name: str, value: Any) -> Any:
    """Another value that the field may have; None if there is only one."""
    hint = field_types()[name]
    if get_origin(hint) in (Union, UnionType) and name.startswith("initialization."):
        return {"initialization.delta": 0.3}.get(name)  # masks apart from boxes are another chain
    if get_origin(hint) is Literal:
        return next((v for v in get_args(hint) if v not in (value, "auto", "cuda")), None)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value * 0.5 + 0.01
    if isinstance(value, tuple):
        return value[:1] if isinstance(value[0], str) else (value[0] * 0.5, value[1])
    return {"classifier": "tiny_deep", "localizer": "tiny_deep"}.get(name.rpartition(".")[2], "elsewhere")


def test_fields_that_count_are_those_of_the_training_identity() -> None:
    """Of LCHP's runs; those of compared methods follow."""
    fixed = {"model.pretrained": False, "model.localizer": "tiny", "model.classifier": "tiny"}
    base = override(preset("cub"), fixed | {"data.name": "folder", "initialization.attention": "features"})
    before = chain_of(base, "data").last.key
    for name, value in to_flat(base).items():
        values: dict[str, Any] = {name: other_value(name, value)}
        # there are no weights to choose without pretrained ones
        if values[name] is None or name == "model.weights_dir" or name.startswith("method.") or name in FILES:
            continue
        if name == "initialization.auto_after":  # of what is chosen
            continue
        if name == "data.name":
            values = {name: "cub"}
        if name in ("data.image_size", "data.resize"):
            values = {"data.image_size": base.data.image_size, "data.resize": base.data.resize} | values
        if name == "initialization.localizer_start":
            values[name] = 1
        changed = chain_of(override(base, values), "data").last.key != before
        assert changed == (name in IDENTITY or name == "seed"), name
    assert set(IDENTITY) | WITHOUT_EFFECT | {"seed"} == set(field_types())


@pytest.mark.parametrize(
    "whose",
    [
        {},
        {"refinement.labeller": "frozen"},
        {"method.name": "cam"},
        {"method.name": "psol"},
        {"method.name": "cam", "method.localizer": True},
        {"method.name": "psol", "method.localizer": True, "method.refine": True, "refinement.labeller": "frozen"},
        {"method.name": "acol", "model.pretrained": True},
    ],
    ids=str,
)
def test_fields_that_a_table_speaks_of_are_those_of_the_chain(whose: dict[str, Any]) -> None:
    """Whatever else a config says: what its method, its links and its weights are decides."""
    fixed = {"model.pretrained": False, "model.localizer": "tiny", "model.classifier": "tiny", **whose}
    base = override(preset("cub"), {"initialization.attention": "features", "data.image_size": 64, **fixed})
    expected = depends_on(base)
    for name in IDENTITY:
        own = name == "data.name" or (name in SHAPE and not FIELDS[name].changes)  # these tell all runs apart
        assert counts(name, to_flat(base)) == (own or name in expected), name
        value = other_value(name, to_flat(base)[name])
        if value is not None and name not in (*SHAPE, "data.name", "initialization.localizer_start", "auto_batch"):
            assert depends_on(override(base, {name: value})) == expected, name
    assert results(to_flat(base)) == results_of(base)
    maps = whose.get("method.name") in ("cam", "acol")
    assert differences({"method.threshold": 0.5}, base) == ({"method.threshold": 0.5} if maps else {})


def test_the_recipe_is_chosen_and_the_rest_is_named(grid: Records) -> None:
    choice = choose(grid, PARTS, DELTA)
    assert choice.group is not None
    assert sorted(choice.group.values()) == [0.1, 0.3, 0.5]
    assert set(choice.group.runs["refinement.tau"]) == {0.9}
    assert "refinement.tau 0, 0.5, 0.6, 0.7, 0.8 (9 runs)" in choice.others
    assert "model.localizer tiny_deep (1 run)" in choice.others


def test_auto_is_the_last_row_of_table_3_and_no_point_of_its_curve(tmp_path: Path) -> None:
    figures = {"pseudo_label": 40.0, "lchp_i": 50.0, "lchp_r": 60.0}
    for delta in (0.3, "auto", 0.5):
        masks = {"initialization.mask_delta": 0.5, "initialization.mask_attention": "attention_maps"}
        masks |= {"initialization.mask_normalization": "max", "initialization.delta": delta}
        write_run(tmp_path / str(delta), override(preset("parts"), masks), figures)
    made = table(collect([tmp_path]), 3, PARTS, read_paper())
    labels = [row.labels[0] for row in made.sections[0].rows]
    assert labels[-1] == "auto"
    assert {"0.3", "0.5"} <= set(labels)
    assert cell(made, "auto", "LCHP-R").mean == 60
    assert list(points(made, "center_crop", "LCHP-R").x) == [0.3, 0.5]
    assert all("auto" in render(made) for render in (to_html, to_latex, to_csv))


def test_where_chooses_another_group(grid: Records) -> None:
    choice = choose(grid, PARTS, DELTA, parse_where(["refinement.tau=0.8"]))
    assert choice.group is not None
    assert set(choice.group.runs["refinement.tau"]) == {0.8}
    assert choose(grid, PARTS, DELTA, parse_where(["refinement.labeller=frozen"])).group is None
    # a condition on the table's own axis would leave it one row
    assert choose(grid, PARTS, DELTA, parse_where([f"{DELTA}=0.5"])).group is not None


def test_without_the_recipe_the_group_with_most_rows_is_chosen(tmp_path: Path) -> None:
    for attention, deltas in (("features", (0.1, 0.3)), ("attention_maps", (0.1,))):
        for delta in deltas:
            values = {"initialization.attention": attention, DELTA: delta, "initialization.epochs": 2}
            store(tmp_path, override(preset("parts"), values))
    choice = choose(collect([tmp_path]), PARTS, DELTA)
    assert choice.group is not None
    assert choice.group.base["initialization.attention"] == "features"
    assert choice.others == "initialization.attention attention_maps (1 run)"


def test_parts_of_a_data_set_do_not_mix(tmp_path: Path) -> None:
    for seed, fingerprint in ((0, "whole"), (1, "whole"), (0, "part")):
        config = override(preset("parts"), {"seed": seed})
        write_run(tmp_path / f"{seed}-{fingerprint}", config, fingerprint=fingerprint)
    choice = choose(collect([tmp_path]), PARTS, None)
    assert choice.group is not None
    assert list(choice.group.runs["data_fingerprint"]) == ["whole", "whole"]
    assert choice.others == "another part of the data set (1 run)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("initialization.delta=0.5", 0.5),
        ("data.image_size=64", 64),
        ("model.pretrained=false", False),
        ("refinement.augmentations=flip+scale", ("scale", "flip")),
        ("refinement.scale=0.8,1.2", (0.8, 1.2)),
        ("model.weights_dir=None", None),
        ("initialization.attention=features", "features"),
    ],
)
def test_conditions_are_typed(text: str, value: Any) -> None:
    assert parse_where([text]) == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("initialization.delta", "expected FIELD=VALUE"),
        ("initialization.delt=1", "initialization.delt is no field .did you mean initialization.delta"),
        ("initialization.delta=x", "initialization.delta=x: expected a number"),
        ("model.pretrained=yes", "expected True or False"),
        ("refinement.labeller=best", "expected one of online, frozen, ema"),
    ],
)
def test_a_faulty_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_where([text])


def test_the_preset_is_the_one_that_most_runs_follow(tmp_path: Path, grid: Records) -> None:
    assert preset_of(grid) == ("parts", "preset parts: the recipe of 20 of 20 runs (--preset names another)")
    config = override(preset("cub50_cpu"), {"refinement.epochs": 3})
    write_run(tmp_path / "run", config)
    name, why = preset_of(collect([tmp_path]))
    assert (name, why.partition(":")[0]) == ("cub50_cpu", "preset cub50_cpu")
    assert "nearest" in why
    (tmp_path / "empty").mkdir()
    assert preset_of(collect([tmp_path / "empty"]))[0] == "cub"


# --- cells


def test_a_cell_is_mean_and_deviation_over_seeds(grid: Records, paper: Paper) -> None:
    made = table(grid, 3, PARTS, paper)
    c = cell(made, "0.5", "LCHP-R")
    values = [known(override(preset("parts"), {"seed": s}))["lchp_r"] for s in (0, 1)]
    assert c.mean == pytest.approx(sum(values) / 2)
    assert c.sd == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (c.ours, c.n, c.paper, c.difference) == ("66.50 ± 2.12 (2)", 2, "88.63", "-22.13")
    assert cell(made, "0.5", "LCHP-R", "full_image").paper == "-"
    assert cell(made, "0.1", "LCHP-R").paper == "-"


def test_what_was_not_run_says_so(grid: Records, paper: Paper) -> None:
    for made in tables(grid, PARTS, paper):
        for section in made.sections:
            for row in section.rows:
                for c in row.cells:
                    assert c.ours
                    assert c.mean is not None or c.ours in ("not run", "failed", "-")
    assert cell(table(grid, 3, PARTS, paper), "0.7", "LCHP-I").ours == "not run"
    assert cell(table(grid, 5, PARTS, paper), "tiny_deep", "LCHP-R").ours == "68.00 (1)"


def test_diverged_runs_are_failed(grid: Records, paper: Paper) -> None:
    """One seed below the floor, the other to infinity; a worker that died is no divergence."""
    made = table(grid, 4, PARTS, paper)
    assert (cell(made, "0", "LCHP-R").ours, cell(made, "0", "LCHP-R").paper) == ("failed", "failed")
    assert cell(made, "0", "LCHP-R", "full_image").ours == "failed"
    assert cell(made, "0", "LCHP-R").rank == 0
    assert any("tau 0, seed 0, LCHP-R in center_crop: GT-Known 3.00" in note for note in made.notes)
    assert any("tau 0, seed 1 failed in its sweep: refinement, epoch 2: loss is inf" in n for n in made.notes)
    assert cell(made, "0", "kept training boxes").ours == "3000 ± 0 (2)"
    assert any("diagnostic that reads training boxes" in note for note in made.notes)
    assert any("localizer tiny_deep, seed 1 failed in its sweep" in n for n in table(grid, 5, PARTS, paper).notes)


def test_one_diverged_seed_is_counted_beside_the_others(tmp_path: Path, paper: Paper) -> None:
    for seed, value in ((0, 60.0), (1, 4.99), (2, 5.0)):
        config = override(preset("parts"), {"seed": seed})
        write_run(tmp_path / str(seed), config, known(config) | {"lchp_r": value})
    made = table(collect([tmp_path]), 3, PARTS, paper)
    assert cell(made, "0.5", "LCHP-R").ours == "failed (1 of 3)"
    assert cell(made, "0.5", "LCHP-R").difference == "-"
    assert cell(made, "0.5", "LCHP-I").n == 3


def test_a_stage_1_that_diverged_fails_all_results(tmp_path: Path, paper: Paper) -> None:
    config = preset("parts")
    error = "its stage 1 (abc) failed: initialization, epoch 1: loss is nan; training diverged, lower the learning rate"
    write_sweep(tmp_path, [({}, config, "failed", error)], config)
    made = table(collect([tmp_path]), 3, PARTS, paper)
    assert {cell(made, "0.5", column).ours for column in made.columns} == {"failed"}
    assert cell(made, "0.3", "LCHP-R").ours == "not run"


def test_without_boxes_nothing_failed(tmp_path: Path, paper: Paper) -> None:
    write_run(tmp_path / "run", preset("parts"), dict.fromkeys(known(preset("parts"))))
    records = collect([tmp_path])
    assert cell(table(records, 3, PARTS, paper), "0.5", "LCHP-R").ours == "no boxes"
    made = table(records, 4, PARTS, paper)
    assert cell(made, "0.9", "GT-Known of the kept").ours == "no boxes"
    assert cell(made, "0.9", "kept training boxes").ours == "1200 (1)"


def test_the_best_is_bold_and_the_second_underlined(grid: Records, paper: Paper) -> None:
    made = table(grid, 3, PARTS, paper)
    assert [cell(made, d, "LCHP-R").rank for d in ("0.1", "0.3", "0.5", "0.7")] == [0, 2, 1, 0]
    # the paper's second is at 0.6, which is no row here
    assert [cell(made, d, "LCHP-R").paper_rank for d in ("0.5", "0.7")] == [0, 1]
    assert "**66.50 ± 2.12 (2)**" in to_markdown(made)
    assert "<u>54.50 ± 2.12 (2)</u>" in to_markdown(made)
    assert r"\textbf{66.50 $\pm$ 2.12 (2)}" in to_latex(made)
    assert "<b>66.50 &#177; 2.12 (2)</b>" in to_html(made)
    assert "66.50 ± 2.12 (2) *" in to_text(made)
    alone = table(grid, 5, replace(PARTS, localizers=("tiny_coarse",)), paper, {"model.localizer": "tiny_coarse"})
    assert cell(alone, "tiny_coarse", "LCHP-R").rank == 2  # tiny_deep is better
    counts = table(grid, 4, PARTS, paper)
    assert {cell(counts, "0.9", "kept training boxes").rank, cell(counts, "0.9", "kept training boxes").paper_rank} == {
        0
    }


def test_the_same_result_found_twice_counts_once(tmp_path: Path, paper: Paper) -> None:
    config = preset("parts")
    for name in ("a", "b"):
        store(tmp_path / name, config)
    moved = override(config, {"data.cache": "off", "threads": 2, "evaluation.batch_size": 7})
    write_run(tmp_path / "c", moved, known(config))
    made = table(collect([tmp_path / n for n in "abc"]), 3, PARTS, paper)
    assert cell(made, "0.5", "LCHP-R").ours == "65.00 (1)"
    assert not any("seed 0" in note for note in made.notes)
    write_run(tmp_path / "d", config, known(config) | {"lchp_r": 50.0})
    made = table(collect([tmp_path / n for n in "abcd"]), 3, PARTS, paper)
    assert cell(made, "0.5", "LCHP-R").ours == "65.00 (1)"
    assert any("0.5, seed 0: 4 records of the same setting with other figures" in note for note in made.notes)


def test_mixed_data_sets_stay_apart(tmp_path: Path, paper: Paper, grid: Records) -> None:
    cub = write_run(tmp_path / "cub", preset("cub"), classes=200)
    records = collect([*grid.storages, cub])
    made = tables(records, PARTS, paper)
    assert cell(made[0], "LCHP-R", "GT-Known", data="CUB").n == 1
    assert cell(made[0], "LCHP-R", "GT-Known", data="parts").n == 2
    assert cell(made[2], "0.5", "LCHP-R").n == 2
    assert "0.7" in [row.labels[0] for row in table(records, 3, PRESETS["cub"], paper).sections[0].rows]
    assert cell(table(records, 3, PRESETS["cub"], paper), "0.7", "LCHP-R").n == 1


def test_there_are_eight_tables(grid: Records, paper: Paper) -> None:
    with pytest.raises(ConfigError, match="--table 9: the paper has Tables 1 to 6; 7 is of the choices"):
        table(grid, 9, PARTS, paper)


# --- layout and caption


LAYOUT: Mapping[int, tuple[str, list[str], tuple[str, ...]]] = {
    3: ("delta", ["0.5", "0.6", "0.7", "0.8"], ("Pseudo Label", "LCHP-I", "LCHP-R")),
    4: ("tau", ["0", "0.5", "0.6", "0.7", "0.8", "0.9"], ("kept training boxes", "GT-Known of the kept", "LCHP-R")),
    5: ("localizer", ["VGG19-BN", "ResNet50", "InceptionV3"], ("LCHP-I", "LCHP-R")),
    6: ("strong view", ["S", "T", "F", "S+T", "S+F", "T+F", "S+T+F"], ("LCHP-R",)),
}


@pytest.mark.parametrize("number", OF_PAPER)
def test_the_layout_is_the_papers(tmp_path: Path, paper: Paper, number: int) -> None:
    """Every value of the paper stands in its table, with the paper's recipe and no record of ours."""
    made = table(collect([tmp_path]), number, PRESETS["tiny_imagenet" if number == 2 else "cub"], paper)
    printed = sorted(c.paper for s in made.sections for row in s.rows for c in row.cells if c.paper != "-")
    assert printed == sorted(v for (t, _, c), v in paper.values.items() if t == number and c != "backbone")
    assert {c.ours for s in made.sections for row in s.rows for c in row.cells} <= {"not run", "-"}
    if number in LAYOUT:
        head, rows, columns = LAYOUT[number]
        assert (made.head, made.columns) == ((head,), columns)
        assert [[row.labels[0] for row in s.rows] for s in made.sections] == [rows, rows]
    else:
        assert [row.labels[0] for row in made.sections[0].rows] == list(paper.rows(number))


def test_a_part_of_cub_stands_beside_the_paper_and_says_what_differs(tmp_path: Path, paper: Paper) -> None:
    recipe = PRESETS["cub50_cpu"]
    for delta in recipe.deltas:
        config = override(recipe.config, {DELTA: delta, "data.root": "/data/CUB_200_2011"})
        write_run(tmp_path / f"{delta}", config, classes=50)
    made = table(collect([tmp_path]), 3, recipe, paper)
    assert [row.labels[0] for row in made.sections[0].rows] == ["0.2", "0.3", "0.4", "0.5"]
    assert cell(made, "0.5", "LCHP-I").paper == "81.69"
    for said in ("50 of 200 classes", "data.image_size 160 (448)", "model.classifier mobilenet_v2 (inception_v3)"):
        assert said in made.caption
    assert made.sections[0].title == "CUB-200-2011, 50 of 200 classes, center_crop"
    assert "/data" not in to_text(made)
    first = table(collect([tmp_path]), 1, recipe, paper).sections[0].rows[-1]
    assert first.labels == ("LCHP-R", "InceptionV3 (ours: MobileNetV2)")


def test_the_caption_says_where_the_records_come_from(grid: Records, paper: Paper) -> None:
    caption = table(grid, 3, PARTS, paper).caption
    for said in (
        "10 classes, 3000 training images",
        "Seeds 0, 1",
        "lchp 0.1.0",
        "records of 2026-11-20",
        "made by python sweeps/all_tables.py --data.root CUB_200_2011",
        "Data: parts (embedded, synthetic)",
        "Differs from the paper in data.name parts (cub), data.resize 72 (512), data.image_size 64 (448)",
        "; where it leaves the choice open, in refinement.padding mean (black).",
    ):
        assert said in caption
    assert "no box chose anything; a cell: mean ± standard deviation" in to_text(table(grid, 3, PARTS, paper))
    assert "/home" not in caption
    assert as_typed(["/env/lchp/__main__.py", "sweep", "/home/mine.toml"]) == "lchp sweep mine.toml"


def test_floors_are_in_a_footnote(grid: Records, paper: Paper) -> None:
    assert any("center_crop 5.00 and 26.00; full_image 1.00 and 15.00" in n for n in table(grid, 6, PARTS, paper).notes)


# --- texts


def test_the_tables_are_byte_for_byte_those_kept(tmp_path: Path) -> None:
    """Renew with `python tests/report_records.py --write` after a change that is meant to move them."""
    for name, text in golden_texts(write_grid(tmp_path / "somewhere")).items():
        assert text == (GOLDEN / name).read_text(encoding="utf-8"), name


def test_files_do_not_depend_on_the_order_of_storages(tmp_path: Path, paper: Paper) -> None:
    parts = preset("parts")
    a, b = tmp_path / "a", tmp_path / "b"
    for i, delta in enumerate(PARTS.deltas):
        store((a, b)[i % 2], override(parts, {DELTA: delta}))
    one, other = (tables(collect(storages), PARTS, paper) for storages in ([a, b], [b, a]))
    for suffix, render in FORMATS.items():
        assert [render(t) for t in one] == [render(t) for t in other], suffix


def test_csv_reads_back(grid: Records, paper: Paper) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table(grid, 4, PARTS, paper)))))
    assert len(rows) == 2 * 6 * 3
    (row,) = [r for r in rows if (r["frame"], r["tau"], r["column"]) == ("center_crop", "0.9", "LCHP-R")]
    assert (row["mean"], row["n"], row["paper"], row["rank"]) == ("66.5000", "2", "94.36", "best")
    assert not [r for r in rows if "" in r.values()]


def test_signs_are_escaped(grid: Records, paper: Paper) -> None:
    made = replace(table(grid, 6, PARTS, paper), caption=r"50 % of_a & <b> ~^\ {x} #1 $2 |", notes=("*note*",))
    assert r"50 \% of\_a \& \textless{}b\textgreater{} " in to_latex(made)
    assert "50 % of_a &amp; &lt;b&gt;" in to_html(made)
    assert r"of\_a \& \<b\> \~^\\ {x} #1 \$2 \|" in to_markdown(made)
    assert r"\*note\*" in to_markdown(made)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path: Path, grid: Records, paper: Paper) -> None:
    made = tables(grid, PARTS, paper)
    rough = replace(made[5], number=6, caption=r"50 % of_a & <b> ~^\ {x} #1 $2 | --flag " + '"')
    write_tables([*made[:5], rough], tmp_path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000


def test_presets_with_their_own_grid_are_served(paper: Paper, tmp_path: Path) -> None:
    """Rows are those of the records and of the grid."""
    store(tmp_path, override(preset("parts"), {DELTA: 0.45}))
    mine = Preset(preset("parts"), deltas=(0.2,), about="")
    made = table(collect([tmp_path]), 3, mine, paper)
    assert [row.labels[0] for row in made.sections[0].rows] == ["0.2", "0.45"]


def test_recipes_of_two_versions_are_never_averaged(tmp_path: Path, paper: Paper) -> None:
    config = preset("parts")
    for seed, recipe in ((0, 1), (1, 2)):
        write_run(tmp_path / str(seed), replace(config, seed=seed), recipe=recipe)
    made = table(collect([tmp_path]), 3, PARTS, paper)
    assert cell(made, "0.5", "LCHP-R").n == 1
    assert "recipe 1 (1 run)" in " ".join(made.notes)  # the newer one is in the table


def test_an_infinite_figure_is_a_failure(tmp_path: Path, paper: Paper) -> None:
    config = preset("parts")
    path = "results/lchp_r/center_crop/gt_known"
    run = write_run(tmp_path / "run", config)
    records = collect([run])
    records.runs[path] = math.inf
    assert cell(table(records, 3, PARTS, paper), "0.5", "LCHP-R").ours == "failed"


def test_letters_that_latex_lacks_are_named_by_their_code_point() -> None:
    from lchp.report.tables.render import _latex

    assert _latex("\u03b4 0.5") == "[U+03B4] 0.5"


def test_a_condition_that_no_run_meets_is_refused(grid: Records) -> None:
    with pytest.raises(ConfigError, match=r"--where refinement.tau=0.123: no run has it; there are 0, 0.5, 0.6"):
        require(grid, {"refinement.tau": 0.123})


def test_compared_methods_have_rows_of_their_own_and_never_lchp_s(tmp_path: Path, paper: Paper) -> None:
    lchp = preset("parts")
    store(tmp_path, lchp)
    cam = override(lchp, {"method.name": "cam"})
    for threshold, known_ in ((0.1, 11.0), (0.2, 70.0), (0.5, 55.0)):
        config = override(cam, {"method.threshold": threshold})
        figures = {"pseudo_label": known_}
        store(tmp_path, config, figures, method="CAM")
    records = collect([tmp_path])
    made = table(records, 1, PARTS, paper)
    assert cell(made, "CAM", "GT-Known", data="parts").ours == "70.00 (1)"  # at the recipe's threshold
    assert cell(made, "LCHP-R", "GT-Known", data="parts").n == 1
    assert cell(table(records, 3, PARTS, paper), "0.5", "LCHP-R").n == 1
    longer = override(cam, {"initialization.epochs": 9})
    store(tmp_path / "other", longer, {"pseudo_label": 60.0}, method="CAM")
    alone = table(collect([tmp_path / "other"]), 1, PARTS, paper)
    assert "CAM: with initialization.epochs 9" in " ".join(alone.notes)
    assert "nothing of ours was run" not in alone.caption.split("CUB-200-2011")[0]
