"""The report page: one file that holds every figure, escapes every text, and works in a browser."""

import base64
import hashlib
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from report_records import (
    analysis_script,
    key,
    known,
    seal,
    store,
    store_link,
    write_grid,
    write_run,
    write_sweep,
)

from lchp.config import PRESETS, field_types, override, preset
from lchp.data import DATASETS, wsol
from lchp.files.runs import append_metrics, read_json, write_json
from lchp.report.flags import Recipe, Source
from lchp.report.page import trials
from lchp.report.page.make import PageOptions, gather, make_page, render
from lchp.report.page.trials import duration, loss_and_shares, sparkline
from lchp.report.paper import read_paper
from lchp.report.read import collect
from lchp.report.tables.grid import DATA
from lchp.report.tables.numbers import tables
from lchp.report.tables.write import TableOptions as Tables
from lchp.report.tables.write import make_tables

HOSTILE = '</td></script><script>alert("<b>")</script> & <img src="http://evil.example/x.png">\x1b[31m\x00'
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Parsed(HTMLParser):
    """Elements by (tag, attributes), tables by the id of the nearest element that has one, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[tuple[str, str | None]] = []
        self.text = ""
        self.skipped = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("meta", "img", "input", "path", "circle", "polyline"):
            return
        self.open.append((tag, dict(attrs).get("id")))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "circle", "polyline"):
            return
        assert self.open.pop()[0] == tag, f"{tag} is closed but was not the last to be opened"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "script" in tags or "style" in tags:
            return
        self.text += data
        if ("td" in tags or "th" in tags) and "title" not in tags:
            self.rows[-1][-1] += data

    @property
    def rows(self) -> list[list[str]]:
        name = next(name for _, name in reversed(self.open) if name is not None)
        return self.tables.setdefault(name, [])

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(storage: Path, preset: str | None = None, **wanted: Any) -> str:
    asked = PageOptions(Source((storage,), **wanted), figures=False, recipe=Recipe(preset))
    return render(gather(collect([storage]), asked, read_paper())).decode("ascii")


@pytest.fixture(scope="module")
def grid_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid of report_records, with metrics of a stage in half of the run folders, and one run that is damaged."""
    storage = write_grid(tmp_path_factory.mktemp("grid"))
    own = {key(override(preset("parts"), {"seed": seed})) for seed in (0, 1)}  # whose training is drawn
    folders = sorted((storage / "store" / "stage2").iterdir(), key=lambda folder: (folder.name not in own, folder.name))
    for folder in folders[: len(folders) // 2]:
        for epoch, loss in enumerate((2.0, 1.0, 0.5), 1):
            line = {"epoch": epoch, "epochs": 3, "loss": loss, "kept": 40.0 + epoch}
            append_metrics(folder, {"stage": "initialization", **line, "top1": 30.0 * epoch})
            append_metrics(folder, {"stage": "refinement", **line})
    (storage / "store" / "stage2" / "half").mkdir()
    return storage


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return analysis_script("report").main


@pytest.fixture(scope="module")
def grid_html(grid_storage: Path) -> str:
    return page_of(grid_storage)


@pytest.fixture(scope="module")
def grid_page(grid_html: str) -> Parsed:
    return Parsed(grid_html)


def test_every_cell_of_every_table_is_on_the_page(grid_storage: Path, grid_page: Parsed) -> None:
    made = tables(collect([grid_storage]), PRESETS["parts"], read_paper())
    assert [t.number for t in made] == [1, 2, 3, 4, 5, 6]
    for table in made:
        shown = grid_page.tables[f"table-{table.number}"]
        assert {s.frame for s in table.sections} == {"center_crop", "full_image"}
        for section in table.sections:
            at = next(i for i, row in enumerate(shown) if row == [section.title])
            for row, texts in zip(section.rows, shown[at + 1 :], strict=False):
                cells = [text for c in row.cells for text in (c.ours, c.paper, c.difference)]
                assert texts == [*row.labels, *cells]
        for text in (table.caption, *table.notes):
            assert text in grid_page.text


def test_a_table_without_a_figure_of_ours_is_folded(grid_html: str) -> None:
    folded = re.findall(r"<summary>Table (\d)\.", grid_html)
    assert folded == ["2"]


def test_the_page_needs_nothing_from_outside(grid_html: str, grid_page: Parsed) -> None:
    for tag, attributes in grid_page.elements:
        assert tag not in ("link", "iframe", "object", "base", "form"), tag
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], "the policy forbids inline handlers"
    for word in ("@import", "url(", "fetch(", "XMLHttpRequest"):
        assert word not in grid_html
    anchors = [a["href"] for a in grid_page.named("a")]
    ids = {attributes.get("id") for _, attributes in grid_page.elements}
    assert anchors
    assert {a.removeprefix("#") for a in anchors if a} <= ids


def test_the_policy_lets_the_pages_own_script_run(grid_html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", grid_html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', grid_html)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "makeSortable" in script


def test_the_page_opens_on_what_the_records_say(grid_html: str) -> None:
    """delta 0.5, tau 0.9: LCHP-R 65 and 68, LCHP-I 50 and 52; the centred box has 26."""
    (said, about) = re.findall(r'<p class="(?:finding|soft)">(.*?)</p>', grid_html, re.S)[:2]
    assert said == (
        "LCHP-R reaches 66.50 % GT-Known (center_crop, 2 seeds, &#177; 2.12), 15.50 points more than LCHP-I, at delta "
        "0.5 and tau 0.9; a centred 80 % box has 26.00."
    )
    assert "20 trials finished, 2 failed, 0 to come, 2 results below the floor; 11 settings, 2 seeds" in about
    assert "The sentence above is of the recipe itself (preset parts)." in about
    assert "Highest GT-Known of LCHP-R in center_crop over" in about
    assert "an oracle&#39;s choice" in about


def finding(storage: Path, values: dict[str, Any] | None = None, figures: Any = None, classes: int = 200) -> str:
    """What the page of one run says."""
    write_run(storage / "run", override(preset("cub"), values or {}), figures, classes=classes)
    return Parsed(page_of(storage, preset="cub")).text


def test_the_finding_beside_the_paper(tmp_path: Path) -> None:
    figures = {"pseudo_label": 70.0, "lchp_i": 95.0, "lchp_r": 94.0}
    said = "LCHP-R reaches 94.00 % GT-Known (center_crop, one seed), 1.00 points less than LCHP-I, at delta 0.7 and"
    floor = " tau 0.9; a centred 80 % box has 26.00, the paper 94.36 in "
    assert f"{said}{floor}the same setting." in finding(tmp_path / "a", None, figures)
    assert f"{said}{floor}another setting." in finding(tmp_path / "b", None, figures, classes=50)
    other = finding(tmp_path / "c", {"initialization.lr": 0.5}, figures)
    assert f"{said}{floor}another setting." in other
    assert "No trial has the recipe itself (preset cub)" in other
    assert "the nearest, which differs by initialization.lr 0.5." in other
    failed = finding(tmp_path / "d", None, figures | {"lchp_r": 3.0})
    assert "LCHP-R has no GT-Known in center_crop at delta 0.7 and tau 0.9: failed." in failed


def test_every_trial_has_its_figures_time_and_curves(grid_storage: Path, grid_page: Parsed) -> None:
    head, *rows = grid_page.tables["trials-parts"]
    runs = collect([grid_storage]).runs
    assert sorted(row[-1] for row in rows) == sorted(runs["key"])
    assert [h.split("\n")[0] for h in head[:4]] == ["delta", "tau", "localizer", "augmentations"]
    keys = [row[-1] for row in rows]
    recipe = rows[keys.index(key(override(preset("parts"), {"seed": 1})))]
    assert recipe[:5] == ["0.5", "0.9", "tiny_coarse", "scale+translation+flip", "1"]
    assert recipe[5:10] == ["45.00", "52.00", "68.00", "54.40", "60.00"]
    assert recipe[-4:-1] == ["-", "1.0 min", "2026-11-20 10:01"]
    svgs = [a for a in grid_page.named("svg") if a.get("class") == "spark"]
    assert len(svgs) == 2 * len(rows[::2])
    assert "No curves where there are no metrics" in grid_page.text
    flagged = [row for row in rows if "below floor" in "".join(row)]
    assert {(row[1], row[4]) for row in flagged} == {("0", "0")}


def test_curves_are_capped_and_the_page_says_so(grid_storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = len(collect([grid_storage]).runs)
    cap = total // 2 + 1  # every other trial has curves, whichever come first
    monkeypatch.setattr(trials, "MOST_CURVES", cap)
    parsed = Parsed(page_of(grid_storage))
    assert f"Curves are drawn for the first {cap} of {total} trials" in parsed.text
    assert 0 < len(parsed.named("svg")) <= 2 * cap
    assert len(parsed.tables["trials-parts"]) == total + 1


def test_many_varied_fields_share_a_column(tmp_path: Path) -> None:
    values = {"initialization.alpha": 5.0, "initialization.beta": 0.5, "initialization.lr": 0.2, "refinement.lr": 0.01}
    values |= {"refinement.momentum": 0.5, "refinement.labeller": "ema"}
    for i, (name, value) in enumerate(values.items()):
        write_run(tmp_path / f"r{i}", override(preset("parts"), {name: value}))
    head, *rows = Parsed(page_of(tmp_path)).tables["trials-parts"]
    assert [h for h in head if "lr" in h] == ["initialization.lr", "refinement.lr"]
    assert "other fields" in head
    assert {row[head.index("other fields")] for row in rows} >= {"-", "refinement.labeller ema"}


def test_failures_are_shown_with_their_errors_escaped(tmp_path: Path) -> None:
    base = preset("parts")
    config = override(base, {"initialization.delta": 0.1, "seed": 3})
    other = override(base, {"initialization.delta": 0.3})
    cells = [
        ({"initialization.delta": 0.1, "seed": 3}, config, "failed", HOSTILE),
        ({"initialization.delta": 0.3}, other, "failed", "its worker died"),
        ({}, base, "waiting", None),
    ]
    write_sweep(tmp_path, cells, base)
    store(tmp_path, other)  # another sweep ran it since
    run = write_run(tmp_path / HOSTILE.replace("/", "_").replace("\0", ""), base)
    environment = read_json(run / "environment.json")
    write_json(run / "environment.json", environment | {"class_names": [HOSTILE, "gull"], "skipped": [HOSTILE]})
    html = page_of(tmp_path)
    parsed = Parsed(html)
    assert len(parsed.named("script")) == 1
    assert not parsed.named("img")
    assert "\x1b" not in html
    assert "\0" not in html
    shown = HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}").replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert parsed.text.count(shown) >= 3  # error, class name, dropped record
    _, first, second = parsed.tables["failed-cells"]
    assert first[0] == "initialization.delta 0.3 (a result is there by now)"
    assert second[:3] == ["initialization.delta 0.1", "3", shown]
    assert "2 failed cells" in re.sub(r"\s+", " ", parsed.text)
    assert "2 trials finished, 1 failed, 1 to come" in parsed.text


def test_what_could_not_be_read_is_named(grid_page: Parsed) -> None:
    assert re.search(r"store/stage2/half: no DONE file", grid_page.text)
    assert "initialization.delta" not in grid_page.tables["failed-cells"][1][0]
    errors = [row[2] for row in grid_page.tables["failed-cells"][1:]]
    assert "its worker died" in errors
    assert any("loss is inf" in e and e.endswith("diverged") for e in errors)


def test_configs_show_what_differs_and_no_path_of_the_machine(tmp_path: Path) -> None:
    values = {"data.root": "/home/someone/data/CUB_200_2011", "refinement.tau": 0.8}
    for seed in (0, 1):
        config = override(preset("cub"), {**values, "seed": seed, "initialization.alpha": 5.0 + 5 * seed})
        write_run(tmp_path / f"r{seed}", config, classes=200)
    html = page_of(tmp_path)
    rows = [row for row in Parsed(html).tables["configs"] if len(row) == 3]
    assert rows[:4] == [
        ["field", "preset", "trials"],
        ["data.root (no effect on the networks)", "None", ".../CUB_200_2011"],
        ["initialization.alpha", "20", "5 (1), 10 (1)"],
        ["refinement.tau", "0.9", "0.8"],
    ]
    full = {row[0] for row in rows[5:]}
    assert {"initialization.delta", "precision", "evaluation.batch_size (no effect on the networks)"} <= full
    assert "/home/someone" not in html


def test_how_to_repeat_it(grid_page: Parsed, tmp_path: Path) -> None:
    assert "python sweeps/all_tables.py --data.root CUB_200_2011" in grid_page.text
    assert "/data/CUB_200_2011" not in grid_page.text
    (_, sweep) = grid_page.tables["repeat"]
    assert sweep[0] == "all_tables"
    assert sweep[3] == "20 done, 2 failed"
    write_run(tmp_path / "alone", preset("parts"))
    html = page_of(tmp_path, preset="parts", where=("refinement.tau=0.9",))
    assert "lchp train (its options are in each run&#39;s config.json)" in html
    assert "The sentence above is of the recipe with refinement.tau 0.9 (preset parts)." in html
    assert f"--storage {tmp_path.name} --preset parts --where refinement.tau=0.9" in html


def test_the_same_records_make_the_same_page(grid_storage: Path, grid_html: str, tmp_path: Path) -> None:
    copy = tmp_path / grid_storage.name
    shutil.copytree(grid_storage, copy)
    assert page_of(copy).replace(str(copy), str(grid_storage)) == grid_html


def test_trials_of_several_data_sets_have_a_table_each(tmp_path: Path) -> None:
    write_run(tmp_path / "a", preset("parts"))
    write_run(tmp_path / "b", preset("cub"), classes=200)
    write_run(tmp_path / "c", override(preset("parts"), {"seed": 1}))
    parsed = Parsed(page_of(tmp_path))
    assert len(parsed.tables["trials-parts"]) == 3
    assert len(parsed.tables["trials-cub"]) == 2
    assert "CUB-200-2011 (1), parts (embedded, synthetic) (2)" in parsed.text


def test_runs_without_boxes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", preset("folder"), dict.fromkeys(("pseudo_label", "lchp_i", "lchp_r")))
    summary = read_json(run / "summary.json") | {"consistency": {"lchp_r": 71.5}}
    write_json(run / "summary.json", summary)
    parsed = Parsed(page_of(tmp_path))
    head, row = parsed.tables["trials-folder"]
    assert row[3:8] == ["no boxes"] * 5
    assert row[[h.split("\n")[0] for h in head].index("consistencyLCHP-R, %")] == "71.50"
    assert "LCHP-R has no GT-Known in center_crop at delta auto and tau 0.9: no boxes." in parsed.text


def test_a_storage_of_failed_cells_makes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = preset("parts")
    write_sweep(tmp_path, [({}, base, "failed", "no GPU")], base)
    assert make_page(PageOptions(Source((tmp_path,)))) == 1  # no finished run
    parsed = Parsed((tmp_path / "report.html").read_text())
    assert "No finished trial of LCHP on parts (embedded, synthetic): the tables show" in parsed.text
    assert parsed.tables["failed-cells"][1][:3] == ["the preset's recipe", "0", "no GPU"]
    assert "not drawn: delta" in parsed.text
    assert "1 failed cell (" in capsys.readouterr().out


def test_figures_are_embedded(grid_storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "page.html"
    assert make_page(PageOptions(Source((grid_storage,)), out)) == 1  # a damaged run folder
    parsed = Parsed(out.read_text())
    images = {a["alt"]: a["src"] for a in parsed.named("img")}
    assert len(images) == 5  # delta, tau, localizer, augmentations, training; the grid has no predictions
    for src in images.values():
        assert src is not None
        assert base64.b64decode(src.partition(",")[2]).startswith(b"\x89PNG")
    assert "not drawn: iou: " in parsed.text
    said = capsys.readouterr()
    assert f"written to {out}: 20 trials, 6 tables, 5 figures, 2 failed cells" in said.out
    assert "figure iou not drawn" in said.err
    assert "half: no DONE file" in said.err


def test_mistakes_are_one_line(main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    mistakes = {
        ("--storage", str(tmp_path / "empty")): "nothing to report: ",
        ("--storage", str(tmp_path / "none")): "no such folder",
        ("--storage", str(tmp_path), "--out", str(tmp_path)): "is a folder; name a file",
        ("--storage", str(tmp_path), "--preset", "cubs"): "cubs",
        ("--storage", str(tmp_path), "--where", "tau=0.9"): "tau",
    }
    for arguments, message in mistakes.items():
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1, error


def test_the_script_writes_into_the_first_storage(main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", preset("parts"))
    assert main(["--storage", str(tmp_path), "--no-figures"]) == 0
    assert (tmp_path / "report.html").is_file()
    assert "preset parts: the recipe of 1 of 1 run (" in capsys.readouterr().out


def test_times_as_one_reads_them() -> None:
    assert [duration(s) for s in (21.7, 738.0, 18720.0, math.nan)] == ["22 s", "12.3 min", "5.2 h", "-"]


def test_a_stage_1_that_many_share_counts_once(tmp_path: Path) -> None:
    first = tmp_path / "store" / "stage1" / "f"
    first.mkdir(parents=True)
    write_json(first / "environment.json", {"class_names": ["a"], "wall_seconds": {"total": 600.0}})
    for tau in (0.5, 0.9):
        run = store(tmp_path, override(preset("parts"), {"refinement.tau": tau}))
        environment = read_json(run / "environment.json")
        checkpoint = "/elsewhere/store/stage1/f/checkpoints/initialization.pt"
        write_json(run / "environment.json", environment | {"stage1": {"checkpoint": checkpoint, "identity": "i"}})
        (run / "DONE").unlink()
        sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.iterdir()}
        write_json(run / "DONE", {"key": run.name, "files": sums})
    found = trials.read_trials(collect([tmp_path]), PRESETS["parts"])
    assert found.seconds == 600.0 + 2 * 60.0
    texts = [[v.text for v in row] for row in found.tables[0].trials]
    assert [row[-4:-2] for row in texts] == [["10.0 min", "1.0 min"]] * 2


def test_every_link_s_time_counts_once(tmp_path: Path) -> None:
    """Stage 1: classifier and localizer, wherever they were trained; stage 2: labels and what the run took itself."""
    for kind, seconds in (("classifier", 600.0), ("localizer", 300.0), ("labels", 120.0)):
        folder = tmp_path / "store" / kind / "k"
        folder.mkdir(parents=True)
        write_json(folder / "environment.json", {"class_names": ["a"], "wall_seconds": {"total": seconds}})
    frozen = override(preset("parts"), {"refinement.labeller": "frozen"})
    for tau, taken in ((0.5, ("classifier", "localizer", "labels")), (0.9, ("classifier",))):
        config = override(frozen, {"refinement.tau": tau})
        run = store_link(tmp_path, "refinement", config, known(config))
        environment = read_json(run / "environment.json")
        there = {kind: f"/elsewhere/store/{kind}/k" for kind in taken}
        links = {k: {"key": "k", "run": there.get(k)} for k in ("classifier", "localizer", "labels", "refinement")}
        own = {"wall_seconds": {"total": 60.0, **({} if tau == 0.5 else {"regression": 20.0})}}
        write_json(run / "environment.json", environment | {"links": links} | own)
        seal(run)
    found = trials.read_trials(collect([tmp_path]), PRESETS["parts"])
    assert found.seconds == 600.0 + 300.0 + 120.0 + 2 * 60.0
    texts = [[v.text for v in row] for row in found.tables[0].trials]
    assert [row[-4:-2] for row in texts] == [["15.0 min", "3.0 min"], ["10.3 min", "40 s"]]
    assert not any("is not in the storage" in note for note in found.notes)
    shutil.rmtree(tmp_path / "store" / "localizer")
    found = trials.read_trials(collect([tmp_path]), PRESETS["parts"])
    assert any("1 of the trials" in note and "is not in the storage" in note for note in found.notes)


@pytest.mark.parametrize("name", ["wsol", "wsol_fullsup"])
def test_a_data_set_without_a_preset_has_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """In the tables' messages and on the page, with which of its splits was the test split."""
    store(tmp_path, override(PRESETS["cub"].config, {"data.name": name}))
    store(tmp_path, override(PRESETS["cub"].config, {"data.name": name, "method.name": "cam"}), {"pseudo_label": 50.0})
    assert make_tables(Tables(Source((tmp_path,)), tmp_path / "tables")) == 0
    assert f"2 runs on {name}: not in Tables 3-6, which are of cub; no preset is of {name}" in capsys.readouterr().err
    assert make_page(PageOptions(Source((tmp_path,)), figures=False)) == 0
    text = (tmp_path / "report.html").read_text()
    assert f"wsolevaluation ({wsol.SPLITS['val' if name == 'wsol_fullsup' else 'test']})" in text


def test_every_data_set_has_its_entry() -> None:
    assert DATASETS.keys() == set(get_args(field_types()["data.name"]))
    assert len(set(DATA.values())) == len(DATASETS)
    assert all(DATASETS[preset.config.data.name].title for preset in PRESETS.values())


def points(svg: str) -> Iterator[list[tuple[float, float]]]:
    for found in re.findall(r'points="([^"]*)"', svg):
        yield [(float(x), float(y)) for x, y in (p.split(",") for p in found.split())]


def test_curves_go_from_left_to_right_and_up_with_the_value() -> None:
    first, second = points(sparkline({"a": [3.0, 2.0, 1.0], "b": [0.0, 50.0, 100.0, 100.0]}, None))
    assert [x for x, _ in first + second] == sorted(x for x, _ in first + second)
    assert first[0][1] < first[1][1] < first[2][1]  # y points down
    assert second[0][1] > second[2][1] == second[3][1]
    (half,) = points(sparkline({"share": [50.0, 50.0]}, (0.0, 100.0)))
    assert half[0][1] == pytest.approx(trials.HEIGHT / 2)
    long = [float(i) for i in range(1000)]
    (many,) = points(sparkline({"long": long}))
    assert len(many) <= trials.MOST_POINTS + 1
    assert many[-1][0] == pytest.approx(trials.WIDTH - trials.MARGIN, abs=0.1)
    assert "long: 0 to 999 in 1000 epochs" in sparkline({"long": long})


def test_metrics_with_gaps() -> None:
    lines = [
        {"stage": "initialization", "epoch": 1, "loss": 2.0, "top1": 10.0},
        {"stage": "initialization", "epoch": 2, "loss": math.nan, "top1": 20.0},
        {"stage": "refinement", "epoch": 1, "loss": None},
    ]
    loss, shares = loss_and_shares(lines)
    assert loss.order == 2.0
    assert "stage 1, loss: 2 to 2 in 1 epoch" in str(loss.drawing)
    assert "stage 2" not in str(loss.drawing)
    assert shares.order == 20.0
    assert loss_and_shares([])[0].drawing is None


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason=f"needs a browser: {', '.join(BROWSERS)}")
def test_it_works_in_a_browser(grid_html: str, tmp_path: Path) -> None:
    browser = next(found for name in BROWSERS if (found := shutil.which(name)))
    (tmp_path / "report.html").write_text(grid_html)
    column = 7  # LCHP-R in center_crop, after four fields, the seed and two results
    url = f"{(tmp_path / 'report.html').as_uri()}#sort=trials-parts,{column},descending"
    flags = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *flags]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", url]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-ready="true"' in dom
    parsed = Parsed(dom)
    head, *rows = parsed.tables["trials-parts"]
    assert head[column].startswith("LCHP-R")
    values = [float(re.match(r"[\d.]+", row[column])[0]) for row in rows]  # pyright: ignore[reportOptionalSubscript]
    assert len(values) == 20
    assert values == sorted(values, reverse=True)
    sections = [row[0] for row in parsed.tables["table-3"] if len(row) == 1]
    assert sections == ["parts (embedded, synthetic), center_crop", "parts (embedded, synthetic), full_image"]
    assert any(a.get("aria-sort") == "descending" for a in parsed.named("th"))
    assert not [a for a in parsed.named("button") if a.get("id") == "theme" and "hidden" in a]


def compared(storage: Path, name: str, title: str, figures: dict[str, float | None], **values: Any) -> Path:
    config = override(preset("parts"), {"method.name": name, **values})
    return write_run(storage / name, config, figures, method=title)


def test_a_storage_of_compared_methods_alone(tmp_path: Path) -> None:
    compared(tmp_path, "cam", "CAM", {"pseudo_label": 60.0})
    compared(tmp_path, "psol", "PSOL", {"pseudo_label": 55.0, "lchp_i": 70.0}, **{"method.localizer": True})
    parsed = Parsed(page_of(tmp_path))
    text = re.sub(r"\s+", " ", parsed.text)
    assert (
        "No finished trial of LCHP on parts (embedded, synthetic); GT-Known in center_crop of the compared methods: "
        "CAM 60.00 (one seed), PSOL 70.00 (one seed)."
    ) in text
    assert "the tables show the paper's values only" not in text
    assert "methods: CAM, PSOL" in text
    assert "preset parts: the recipe of 2 of 2 runs" in text


def test_trials_name_their_method_and_its_result(tmp_path: Path) -> None:
    write_run(tmp_path / "lchp", preset("parts"))
    run = compared(tmp_path, "psol", "PSOL", {"pseudo_label": 55.0, "lchp_i": 70.0}, **{"method.localizer": True})
    compared(tmp_path, "cam", "CAM", {"pseudo_label": 3.0})
    for epoch in (1, 2):
        append_metrics(run, {"stage": "regression", "epoch": epoch, "epochs": 2, "loss": 1.0 / epoch})
    html = page_of(tmp_path)
    parsed = Parsed(html)
    head, *body = parsed.tables["trials-parts"]
    assert [row[0] for row in body] == ["LCHP", "CAM", "PSOL"]
    names = [h.split("\n")[0] for h in head]
    assert "name" not in names
    at = names.index("result")
    assert [row[at] for row in body] == ["LCHP-R", "Pseudo Label", "LCHP-I"]
    assert head[at + 1].startswith("resultTop-1")
    assert [row[at + 1] for row in body] == ["52.00", "2.40", "56.00"]  # 80 % of GT-Known
    assert [row[at + 2] for row in body][2] == "62.00"
    assert "below floor" in "".join(body[1])
    assert "below the floor" not in parsed.text  # a map's box is no training that failed
    assert "regression, loss: 1 to 0.5 in 2 epochs" in html
    assert 'class="s3"' in html
    assert "Of a compared method Pseudo Label is the box of its score map" in parsed.text
