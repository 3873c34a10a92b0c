"""Figures: what is drawn is what the records say, on the pixels it was predicted for, and the same every time."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from report_records import analysis_script, write_grid, write_run

from lchp.config import PRESETS, TrainConfig, override, preset
from lchp.data import load
from lchp.data.base import DataSet, Split
from lchp.errors import ConfigError, DataError, RunError
from lchp.evaluation.frames import FRAMES, Frame
from lchp.evaluation.metrics import RESULTS
from lchp.evaluation.predictions import TITLES
from lchp.files.runs import link_folder, read_json, write_json
from lchp.pictures import STYLES
from lchp.report.figures import curves
from lchp.report.figures.grids import Picked, grid, pick_images
from lchp.report.figures.images import Predicted, read_frame, read_pixels
from lchp.report.figures.make import FigureOptions, Material, draw, make_figures
from lchp.report.figures.panel import follow, panel
from lchp.report.figures.run_files import config_of, metrics_of
from lchp.report.figures.style import _RC, CURVES, Drawing, rendered
from lchp.report.flags import Shown, Source
from lchp.report.paper import read_paper
from lchp.report.read import collect
from lchp.report.select import preset_of
from lchp.report.tables.numbers import table
from lchp.training.run import train

PARTS = PRESETS["parts"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return analysis_script("make_figures")


@pytest.fixture
def run_copy(squares_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(squares_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def squares(squares_run: Path) -> tuple[DataSet, TrainConfig]:
    config = config_of(collect([squares_run]).runs.iloc[0])
    return load(config.data), config


def line(ax: Axes, label: str) -> Any:
    return next(drawn for drawn in ax.get_lines() if drawn.get_label() == label)


def predicted(ious: dict[str, list[float]], **more: Any) -> Predicted:
    """Predictions of as many images as there are IoUs, all of the same boxes."""
    n = len(next(iter(ious.values())))
    box = np.tile([0.1, 0.2, 0.5, 0.6], (n, 1))
    values: dict[str, Any] = {
        "run": Path("run"),
        "frame": "center_crop",
        "image_ids": tuple(f"image_{i}" for i in range(n)),
        "boxes": dict.fromkeys(RESULTS, box),
        "ious": {r: np.array(ious.get(r, [0.0] * n)) for r in RESULTS},
        "truth": tuple(box[:1] for _ in range(n)),
        "confidence": np.linspace(0, 1, n),
    }
    return Predicted(**(values | more))


# curves over delta and tau


def test_curves_show_the_figures_of_tables_3_and_4(storage: Path) -> None:
    records, paper = collect([storage]), read_paper()
    for number, drawing, title in (
        (3, curves.over_delta(records, PARTS, paper), "Pseudo Label"),
        (4, curves.over_tau(records, PARTS, paper), "LCHP-R"),
    ):
        made = table(records, number, PARTS, paper)
        for ax, section in zip(drawing.figure.axes, made.sections, strict=False):
            cells = {float(r.labels[0]): r.cells[made.columns.index(title)] for r in section.rows}
            there = {x: c for x, c in cells.items() if c.mean is not None}
            x, y = line(ax, title).get_data()
            assert x[np.isfinite(y)].tolist() == list(there)
            assert y[np.isfinite(y)].tolist() == [c.mean for c in there.values()]
            band = ax.collections[0].get_datalim(ax.transData)
            assert band.y1 == pytest.approx(max((c.mean or 0) + (c.sd or 0) for c in there.values()))
        assert "2 seeds" in drawing.caption
        assert "synthetic" in drawing.caption
        assert "In each cell" not in drawing.caption


def test_the_papers_curve_stands_in_its_own_frame_only(storage: Path) -> None:
    drawing = curves.over_delta(collect([storage]), PARTS, read_paper())
    lines: Any = [ax.get_lines() for ax in drawing.figure.axes]
    hollow = [[d for d in drawn if d.get_markerfacecolor() == "white"] for drawn in lines]
    assert [len(found) for found in hollow] == [3, 0]
    assert list(hollow[0][2].get_xdata()) == [0.5, 0.6, 0.7, 0.8]
    assert list(hollow[0][2].get_ydata()) == [88.63, 93.09, 94.36, 89.96]


def test_failed_trainings_are_marked_and_have_no_point(storage: Path) -> None:
    drawing = curves.over_tau(collect([storage]), PARTS, read_paper())
    center, full, kept = drawing.figure.axes
    assert [t.get_text() for t in center.texts] == ["failed, as the paper's"]
    assert [t.get_text() for t in full.texts] == ["failed"]
    x, y = line(center, "LCHP-R").get_data()
    assert x[~np.isfinite(y)].tolist() == [0]
    assert line(kept, "share kept").get_ydata()[0] == pytest.approx(100)  # at tau 0


def test_floors_are_those_of_each_frame(storage: Path) -> None:
    for ax, floors in zip(
        curves.over_delta(collect([storage]), PARTS, read_paper()).figure.axes, ((5, 26), (1, 15)), strict=True
    ):
        drawn = [line(ax, f"floor: {name}").get_ydata()[0] for name in ("whole frame", "80 % box")]
        assert drawn == pytest.approx(floors)


def test_curves_without_figures_say_why(tmp_path: Path) -> None:
    paper = read_paper()
    boxless = write_run(tmp_path / "run", preset("parts"), dict.fromkeys(RESULTS))
    with pytest.raises(RunError, match="no ground-truth boxes"):
        curves.over_delta(collect([boxless]), PARTS, paper)
    with pytest.raises(RunError, match="no finished run"):
        curves.over_tau(collect([boxless]), PRESETS["cub"], paper)


def test_curves_can_be_told_apart_without_colour() -> None:
    assert len({m.marker for m in CURVES.values()}) == len(CURVES)
    assert len({str(m.line) for m in CURVES.values()}) == len(CURVES)


# over the threshold, confidence, training


def test_accuracy_at_one_half_is_gt_known(squares_run: Path) -> None:
    known = read_json(squares_run / "summary.json")["results"]
    at = int(np.flatnonzero(curves.THRESHOLDS == 0.5)[0])
    for frame in FRAMES:
        ious = read_frame(squares_run, frame).ious
        for result in RESULTS:
            assert curves.accuracy(ious[result])[at] == known[result][frame]["gt_known"]


def test_accuracy_over_the_threshold_is_averaged_over_seeds() -> None:
    seeds = [{f: predicted({"lchp_r": ious}) for f in FRAMES} for ious in ([0.2, 0.7, 0.7, 0.7], [0.2, 0.2, 0.7, 0.7])]
    drawing = curves.over_threshold(seeds, "About.")
    ys = line(drawing.figure.axes[0], "LCHP-R").get_ydata()
    assert ys[curves.THRESHOLDS == 0.5] == pytest.approx(62.5)
    assert ys[0] == 100
    assert ys[-1] == 0
    assert "over 2 seeds" in drawing.caption


def test_correlation_is_scipys_with_an_interval_around_it() -> None:
    from scipy.stats import spearmanr  # a second, which not every process of the suite need wait for

    rng = np.random.default_rng(3)
    p = rng.uniform(size=80)
    iou = p + rng.normal(scale=0.5, size=80)
    words = curves.correlation(p, iou)
    found: Any = spearmanr(p, iou)
    assert words.startswith(f"rho = {found.statistic:.2f} [")
    low, high = map(float, words.split("[")[1].split("]")[0].split(","))
    assert low < found.statistic < high
    assert words == curves.correlation(p, iou)
    assert "undefined" in curves.correlation(np.ones(5), iou[:5])


def test_groups_by_confidence_are_equally_large_and_cover_all() -> None:
    p = np.random.default_rng(0).uniform(size=100)
    centres, mean, right = curves.binned(p, np.where(p > 0.5, 0.9, 0.1))
    assert len(centres) == 5
    assert mean.mean() == pytest.approx(np.where(p > 0.5, 0.9, 0.1).mean())
    assert (right[0], right[-1]) == (0, 1)


def test_confidence_needs_ground_truth() -> None:
    bare = predicted({"lchp_r": [np.nan] * 3}, truth=None)
    with pytest.raises(RunError, match="no ground-truth boxes"):
        curves.against_iou(dict.fromkeys(FRAMES, bare), 0.9, "")


def test_training_draws_both_stages_one_after_the_other(squares_run: Path) -> None:
    metrics = metrics_of(squares_run)
    top, bottom = curves.training(metrics, "About.").figure.axes
    assert line(top, r"$L_{cls}$").get_ydata().tolist() == [metrics[0]["l_cls"]]
    assert line(top, r"$L_{reg}$").get_xdata().tolist() == [2]
    assert line(top, r"$L_{reg}$").get_ydata().tolist() == [metrics[1]["l_reg"]]
    assert line(bottom, "pseudo box area").get_ydata().tolist() == [metrics[0]["pseudo_area"]]
    assert line(bottom, "confidence above tau").get_xdata().tolist() == [3]


def test_a_joint_stage_1_of_an_older_record_is_drawn_as_one_training() -> None:
    first = [
        {"stage": "initialization", "epoch": e, "loss": 9.0, "l_cls": 2.0 / e, "l_reg": 0.1 / e, "pseudo_area": 40.0}
        for e in (1, 2)
    ]
    made = curves.training([*first, {"stage": "refinement", "epoch": 1, "loss": 0.3, "kept": 50.0}], "")
    top, bottom = made.figure.axes
    assert line(top, r"$L_{cls}$").get_ydata().tolist() == [2.0, 1.0]
    assert line(top, r"$L_{reg}$").get_xdata().tolist() == [1, 2]
    assert line(bottom, "pseudo box area").get_xdata().tolist() == [1, 2]
    assert line(bottom, "confidence above tau").get_xdata().tolist() == [3]
    assert "Epochs of stage 1: 2, stage 2: 1." in made.caption


def test_metrics_come_in_the_order_of_the_chain_from_wherever_links_were_trained(tmp_path: Path) -> None:
    """What a run trained itself counts, and not the same link of the whole run that it began from."""
    run, earlier = tmp_path / "run", tmp_path / "earlier"
    places = {"classifier": earlier, "localizer": earlier, "refinement": None}
    links = {kind: {"key": "k", "run": None if at is None else str(at)} for kind, at in places.items()}
    write_json(run / "environment.json", {"class_names": ["a"], "links": links})
    earlier.mkdir()
    stages = ("refinement", "regression", "initialization")
    (earlier / "metrics.jsonl").write_text("".join(f'{{"stage": "{s}", "epoch": 1, "loss": 1.0}}\n' for s in stages))
    (run / "metrics.jsonl").write_text('{"stage": "refinement", "epoch": 1, "loss": 2.0}\n')
    assert [(m["stage"], m["loss"]) for m in metrics_of(run)] == [
        ("initialization", 1.0),
        ("regression", 1.0),
        ("refinement", 2.0),
    ]


def test_training_of_a_moved_sweep_finds_stage_1_in_its_own_storage(tmp_path: Path) -> None:
    run, first = tmp_path / "store" / "stage2" / "b", tmp_path / "store" / "stage1" / "a"
    gone = "/elsewhere/store/stage1/a/checkpoints/initialization.pt"
    stage1 = {"checkpoint": gone, "identity": "x"}
    write_json(run / "environment.json", {"class_names": ["a"], "stage1": stage1})
    first.mkdir(parents=True)
    (first / "metrics.jsonl").write_text('{"stage": "initialization", "epoch": 1, "l_cls": 2.0}\n')
    (run / "metrics.jsonl").write_text('{"stage": "refinement", "epoch": 1, "loss": 0.1}\n')
    assert link_folder(run, "classifier") == first
    assert [m["stage"] for m in metrics_of(run)] == ["initialization", "refinement"]
    (first / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"metrics\.jsonl: no epoch"):
        metrics_of(run)


# images


def test_picks() -> None:
    p = predicted({"lchp_r": [0.1, 0.6, 0.9, 0.4, 0.6, 0.7], "lchp_i": [0.6, 0.1, 0.9, 0.4, 0.1, 0.1]})
    assert pick_images(p, "best", 2, 0).positions.tolist() == [2, 5]
    assert pick_images(p, "worst", 2, 0).positions.tolist() == [0, 3]
    gained, lost = pick_images(p, "gained", 10, 0), pick_images(p, "lost", 10, 0)
    assert (gained.positions.tolist(), gained.of) == ([1, 4, 5], 3)
    assert lost.positions.tolist() == [0]
    assert pick_images(p, "gained", 10, 0, "pseudo_label").of == 4
    drawn = [tuple(pick_images(p, "random", 3, seed).positions) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    with pytest.raises(RunError, match="no image on which LCHP-I is right and LCHP-R is wrong"):
        pick_images(predicted({"lchp_r": [0.9]}), "lost", 1, 0)
    with pytest.raises(RunError, match="no ground-truth boxes"):
        pick_images(replace(p, truth=None), "best", 1, 0)


@pytest.mark.parametrize("frame", FRAMES)
def test_pixels_are_what_the_networks_saw(squares_run: Path, squares, frame: str) -> None:
    dataset, config = squares
    p = read_frame(squares_run, frame)
    shown = read_pixels(dataset, config, p, range(len(p)))
    whole = read_pixels(dataset, config, replace(p, frame="full_image", truth=None), range(len(p)))
    seen = Frame.of(frame, config.data).see(torch.from_numpy(np.stack(whole)))
    ours = Frame("full_image", len(shown[0]), config.data.image_size).see(torch.from_numpy(np.stack(shown)))
    assert torch.equal(seen, ours)
    assert shown[0].shape[0] == {"center_crop": 32, "full_image": 40}[frame]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_box_is_drawn_around_the_pixels_it_is_of(squares_run: Path, squares, frame: str) -> None:
    """The squares' own pixels fill the red box of the ground truth to within the blur of resizing."""
    dataset, config = squares
    p = read_frame(squares_run, frame)
    drawing = grid(dataset, config, p, Picked(np.arange(len(p)), len(p), "all"), "name", "")
    red = tuple(c / 255 for c in STYLES["ground_truth"].colour)
    assert len(drawing.figure.axes) == len(p) > 2
    for ax in drawing.figure.axes:
        image = ax.get_images()[0]
        assert list(image.get_extent()) == [0, 1, 1, 0]
        pixels = np.asarray(image.get_array())
        side = len(pixels)
        (box,) = [a for a in ax.patches if isinstance(a, Rectangle) and to_rgb(a.get_edgecolor()) == pytest.approx(red)]
        ys, xs = np.nonzero(pixels.max(2) > 150)
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / side
        x, y = box.get_xy()
        assert np.array([x, y, x + box.get_width(), y + box.get_height()]) == pytest.approx(found, abs=1.01 / side)


def in_memory(boxes: np.ndarray, size: int = 20) -> tuple[DataSet, TrainConfig]:
    """One test image of noise with several boxes (px), seen whole or cut to 16 px."""
    pixels = np.random.default_rng(0).integers(0, 255, (1, size, size, 3), dtype=np.uint8)
    split = Split(("image_0",), np.zeros(1, np.int64), images=pixels, boxes=(boxes.astype(np.float32),))
    config = override(preset("folder"), {"data.resize": 20, "data.image_size": 16})
    return DataSet("folder", ("a",), split, split), config


def test_every_ground_truth_box_is_drawn_and_the_ious_are_written() -> None:
    boxes = np.array([[2, 2, 10, 10], [8, 10, 18, 18]])
    dataset, config = in_memory(boxes)
    truth = Frame("center_crop", 40, 32).truth([boxes], np.array([[20, 20]]))
    ours = truth.boxes[0, :1]
    ious = {"pseudo_label": [1.0], "lchp_i": [0.25], "lchp_r": [1.0]}
    p = predicted(ious, truth=(truth.boxes[0],), boxes=dict.fromkeys(RESULTS, ours))
    drawing = grid(dataset, config, p, Picked(np.array([0]), 1, "one"), "name", "")
    assert len(drawing.figure.axes[0].patches) == 3 + 2
    assert [(t.get_text(), t.get_fontweight()) for t in drawing.figure.texts] == [
        ("1.00", "bold"),
        ("0.25", "normal"),
        ("1.00", "bold"),
    ]
    legend = [t.get_text() for t in drawing.figure.legends[0].get_texts()]
    assert legend == [*(TITLES[r] for r in RESULTS), "ground truth"]


def test_images_without_boxes_are_shown_without_ious() -> None:
    dataset, config = in_memory(np.array([[2, 2, 10, 10]]))
    bare = replace(predicted({"lchp_r": [np.nan]}), truth=None)
    drawing = grid(dataset, config, bare, pick_images(bare, "random", 4, 0), "name", "")
    assert not drawing.figure.texts
    assert "IoU" not in drawing.caption


def test_pixels_of_other_data_are_refused() -> None:
    boxes = np.array([[2, 2, 10, 10]])
    truth = Frame("center_crop", 40, 32).truth([boxes], np.array([[20, 20]]))
    p = predicted({"lchp_r": [0.5]}, truth=(truth.boxes[0],))
    dataset, config = in_memory(boxes)
    assert len(read_pixels(dataset, config, p, [0])) == 1
    with pytest.raises(DataError, match="image image_0 has another box there"):
        read_pixels(in_memory(boxes + 2)[0], config, p, [0])
    with pytest.raises(DataError, match="has no test image other"):
        read_pixels(dataset, config, replace(p, image_ids=("other",)), [0])
    with pytest.raises(DataError, match=r"images of 24 px, and data\.resize = 20"):
        read_pixels(in_memory(boxes, size=24)[0], config, p, [0])


# the panel


def test_the_panel_shows_the_boxes_of_the_run(squares_run: Path, squares) -> None:
    dataset, config = squares
    p = read_frame(squares_run, "center_crop")
    (pixels,) = read_pixels(dataset, config, p, [1])
    steps = follow(squares_run, config, pixels, 0)
    for result, box in (("pseudo_label", steps.pseudo), ("lchp_i", steps.b), ("lchp_r", steps.result)):
        assert box == pytest.approx(p.boxes[result][1], abs=1e-4)
    enclosing = np.r_[np.minimum(steps.l_r[:2], steps.l_m[:2]), np.maximum(steps.l_r[2:], steps.l_m[2:])]
    assert steps.pseudo == pytest.approx(enclosing)
    assert 0 < steps.confidence <= 1
    assert steps.strong.shape == steps.crop.shape == steps.masked.shape == (32, 32, 3)
    drawing = panel(steps, config, p, 1, "panel", "About.")
    assert len(drawing.figure.axes) == 10
    assert p.image_ids[1] in drawing.caption
    with pytest.raises(RunError, match="another box"):
        panel(replace(steps, result=steps.result + 0.2), config, p, 1, "panel", "")


def test_the_panel_needs_both_checkpoints(run_copy: Path, squares) -> None:
    _, config = squares
    for name in ("initialization", "refinement"):  # the later one is looked for first
        (run_copy / "checkpoints" / f"{name}.pt").unlink()
        with pytest.raises(RunError, match=rf"{name}\.pt: no such checkpoint"):
            follow(run_copy, config, np.zeros((32, 32, 3), np.uint8), 0)


# files


def test_the_same_records_give_the_same_bytes(
    storage: Path, coarse_figures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_RC, "pdf.fonttype", coarse_figures)
    paper, before = read_paper(), dict(matplotlib.rcParams)

    def files() -> list[bytes]:
        drawing = curves.over_delta(collect([storage]), PARTS, paper)
        return [rendered(drawing, "png"), rendered(drawing, "pdf")]

    first = files()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):  # whatever the user's own settings are
        assert files() == first
    assert b"CreationDate" not in first[1]
    assert b"/FontFile2" in first[1]  # letters as TrueType, which journals take, and none as drawings
    assert b"/Type3" not in first[1]
    assert b"tEXtSoftware\0lchp" in first[0]  # no version of Matplotlib's


def test_the_recipes_lowest_seed_is_shown(storage: Path, tmp_path: Path) -> None:
    def shown(wanted: FigureOptions) -> Material:
        return Material(wanted, collect(wanted.source.storage), PARTS, read_paper())

    material = shown(FigureOptions(Source((storage,))))
    assert material.rows["seed"].tolist() == [0, 1]
    assert (material.config.initialization.delta, material.config.refinement.tau) == (0.5, 0.9)
    assert "No run of the recipe" not in material.about
    where = shown(FigureOptions(Source((storage,), where=("refinement.tau=0.5",))))
    assert where.config.refinement.tau == 0.5
    assert "No run of the recipe" not in where.about
    write_run(tmp_path / "run", override(preset("parts"), {"refinement.tau": 0.6}))
    assert "differs by refinement.tau 0.6" in shown(FigureOptions(Source((tmp_path,)))).about


# the command


def test_the_command_writes_png_pdf_and_caption(script: ModuleType, squares_run: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--run", str(squares_run), "--figure", "grid", "panel", "--pick", "random", "worst", "--images", "2"]
    assert script.main([*arguments, "--out", str(tmp_path)]) == 0
    names = ("grid_random_center_crop", "grid_worst_center_crop", "panel_center_crop")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "pdf", "txt")}
    out = capsys.readouterr().out
    caption = (tmp_path / "grid_worst_center_crop.txt").read_text().strip()
    assert caption in out
    assert "2 of " in caption
    assert "center_crop" in caption
    assert str(squares_run) not in caption


def test_what_cannot_be_drawn_is_said_and_the_rest_is_made(
    script: ModuleType, run_copy: Path, tmp_path: Path, capsys
) -> None:
    config = json.loads((run_copy / "config.json").read_text())
    config["data"]["root"] = "/nowhere"
    (run_copy / "config.json").write_text(json.dumps(config))
    shutil.rmtree(run_copy / "checkpoints")
    arguments = ["--run", str(run_copy), "--out", str(tmp_path / "out")]
    assert script.main([*arguments, "--figure", "grid", "training", "panel"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("grid, random: not drawn: data.root = '/nowhere': no such folder")
    assert "--data-root" in said[0]
    assert said[1].startswith("panel: not drawn: ")
    assert (tmp_path / "out" / "training.pdf").exists()
    parquet = run_copy / "predictions.parquet"
    parquet.write_bytes(parquet.read_bytes()[:500])
    assert script.main([*arguments, "--figure", "iou", "confidence"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all("predictions.parquet: damaged" in text for text in said)


def test_data_that_moved_can_be_named(run_copy: Path, squares_root: Path, tmp_path: Path) -> None:
    config = json.loads((run_copy / "config.json").read_text())
    config["data"]["root"] = "/nowhere"
    (run_copy / "config.json").write_text(json.dumps(config))
    wanted = FigureOptions(Source(), run=run_copy, figures=("grid",), shown=Shown(images=1, data_root=squares_root))
    assert make_figures(wanted, tmp_path / "out") == 0


def test_a_storage_without_runs(script: ModuleType, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert script.main(["--storage", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 + 7
    assert "no finished run" in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--storage", "nowhere"], "nowhere: no such folder"),
        (["--run", "nowhere"], "--storage does not go with --run"),
        (["--figure", "grid", "--image", "1"], "--image goes with --figure panel"),
        (["--figure", "iou", "--pick", "best"], "--pick goes with --figure grid or panel"),
        (["--against", "pseudo_label"], "--against goes with --pick gained or lost"),
        (["--figure", "grids"], "grids"),
        (["--pick", "first"], "first"),
        (["--images", "0"], "--images 0"),
        (["--preset", "cubs"], "did you mean cub"),
        (["--where", "tau=1"], "tau is no field"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_mistakes_are_one_line(script: ModuleType, storage: Path, arguments: list[str], message: str, capsys) -> None:
    assert script.main(["--storage", str(storage), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert script.main(["--run", "nowhere"]) == 2
    assert "--run nowhere: no such run folder" in capsys.readouterr().err


def test_an_unknown_image_and_a_sweeps_figure_of_one_run_are_mistakes(squares_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--image nothing"):
        make_figures(
            FigureOptions(Source(), run=squares_run, figures=("panel",), shown=Shown(image="nothing")), tmp_path
        )
    with pytest.raises(ConfigError, match="name their --storage"):
        FigureOptions(Source(), run=squares_run, figures=("delta",))


def test_a_drawing_is_named_and_described(squares_run: Path) -> None:
    drawing = curves.training(metrics_of(squares_run), "About.")
    assert isinstance(drawing, Drawing)
    assert drawing.caption.endswith("About.")


@pytest.mark.parametrize(
    ("name", "more", "results", "trained", "said"),
    [
        ("cam", {}, 1, ["classifier"], "CAM (Pseudo Label is the box of its score map, of DDT, or of a file), lchp"),
        ("psol", {"method.localizer": True}, 2, ["classifier", "localizer"], "LCHP-I the localizer regressed on such"),
        (
            "psol",
            {"method.localizer": True, "method.refine": True},
            3,
            ["classifier", "localizer", "stage 2"],
            "PSOL, refined by LCHP (Pseudo Label",
        ),
    ],
)
def test_a_compared_methods_run_is_drawn_with_the_results_it_has(
    squares_config: TrainConfig, tmp_path: Path, capsys, name: str, more: dict, results: int, trained: list, said: str
) -> None:
    """Its TensorBoard file has pictures of each result; the panel, of LCHP's stages, is refused if asked for."""
    run, titles = tmp_path / "run", [TITLES[r] for r in RESULTS[:results]]
    train(
        override(squares_config, {"method.name": name, "tensorboard": True, "refinement.tau": 0.0, **more}), output=run
    )
    records = collect([run])
    drawn = list(draw(FigureOptions(Source(), run=run), records, PRESETS[preset_of(records)[0]], read_paper()))
    assert all(isinstance(one, Drawing) and rendered(one, "png") for one in drawn)
    made = {one.name: one.caption for one in drawn if isinstance(one, Drawing)}
    assert set(made) == {"iou", "confidence", "training", "grid_random_center_crop"}
    assert all(said in caption for caption in made.values())
    assert all(
        (title in made["grid_random_center_crop"].partition(" Run ")[0]) == (title in titles)
        for title in TITLES.values()
    )
    assert f"on the crop in {titles[-1]}'s box" in made["confidence"]
    assert f"Epochs of {', '.join(f'{t}: 1' for t in trained)}." in made["training"]
    upper = curves.training(metrics_of(run), "").figure.axes[0]
    losses = [curve for curve in upper.get_lines() if str(curve.get_label()).startswith("$L")]
    assert [list(np.asarray(curve.get_xdata())) for curve in losses] == [[i + 1] for i in range(len(trained))]
    events = b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
    stages = [line["stage"] for line in metrics_of(run) if line["stage"] != "initialization"]
    assert all(f"{stage}/boxes".encode() in events for stage in stages)
    capsys.readouterr()
    assert make_figures(FigureOptions(Source(), run=run, figures=("panel",)), tmp_path / "none") == 1
    assert "the panel shows LCHP's own stages" in capsys.readouterr().err
    predicted = read_frame(run, "center_crop")
    assert predicted.last == RESULTS[results - 1]
    assert titles[-1] in pick_images(predicted, "best", 3, 0).rule
    with pytest.raises(RunError, match="compares two results"):
        pick_images(replace(predicted, boxes={"lchp_i": predicted.boxes["pseudo_label"]}), "gained", 3, 0)
    own = {"lchp_r": predicted.ious["pseudo_label"]}  # a file may have boxes of training images alone
    with pytest.raises(RunError, match="has no LCHP-I, which --pick lost compares with, but LCHP-R"):
        pick_images(replace(predicted, boxes=own, ious=own), "lost", 3, 0)
