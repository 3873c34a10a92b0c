"""Two results on the same test images."""

from pathlib import Path

import numpy as np
import pytest
from report_records import write_predicted, write_run

from lchp.config import override, preset
from lchp.errors import ConfigError, RunError
from lchp.evaluation.predictions import read_predictions, write_predictions
from lchp.report.compare import Side, compare, compared, comparison_text, parse_side
from lchp.report.flags import Source
from lchp.report.read import collect

N = 40


def right(*wrong: int) -> list[bool]:
    """N images, all right but some."""
    return [i not in wrong for i in range(N)]


def test_a_side_is_a_run_and_a_result(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a:b" / "run", preset("parts"))
    assert parse_side(str(run)) == Side(run, "lchp_r")
    assert parse_side(f"{run}:lchp_i") == Side(run, "lchp_i")
    with pytest.raises(ConfigError, match=r"--compare a:best: best is no result"):
        parse_side("a:best")
    with pytest.raises(RunError, match=r"nowhere/config.json: no such file"):
        parse_side("nowhere")


def test_a_compared_method_s_side_is_its_last_result(tmp_path: Path) -> None:
    cam = override(preset("parts"), {"method.name": "cam"})
    psol = override(cam, {"method.name": "psol", "method.localizer": True})
    a = write_run(tmp_path / "cam", cam, {"pseudo_label": 50.0}, method="CAM")
    b = write_run(tmp_path / "psol", psol, {"pseudo_label": 50.0, "lchp_i": 60.0}, method="PSOL")
    write_predicted(a, {"pseudo_label": right(1, 2)})
    write_predicted(b, {"pseudo_label": right(), "lchp_i": right(1)})
    x, y = parse_side(str(a)), parse_side(str(b))
    assert (x, y) == (Side(a, "pseudo_label", "CAM"), Side(b, "lchp_i", "PSOL"))
    text = comparison_text(x, y, compare(x, y))
    assert f"A: CAM (Pseudo Label) of {a}" in text
    assert f"B: PSOL (LCHP-I) of {b}" in text
    assert "-2.50" in text
    with pytest.raises(RunError, match="lacks lchp_r_iou; a run of CAM has no LCHP-R"):
        compare(parse_side(f"{a}:lchp_r"), y)


def test_images_that_one_of_both_gets_right_decide(tmp_path: Path) -> None:
    a = write_predicted(tmp_path / "a", {"lchp_i": right(1, 2, 3, 4, 5, 6), "lchp_r": right(30)})
    known, top, _, _ = compare(Side(a, "lchp_r"), Side(a, "lchp_i"))
    assert (known.frame, known.metric, known.images) == ("center_crop", "gt_known", N)
    assert (known.a, known.b) == (97.5, 85.0)
    assert (known.only_a, known.only_b) == (6, 1)
    # McNemar's exact test: P(at least 6 of 7 heads), two-sided
    assert known.p == pytest.approx(2 * (7 + 1) / 2**7)
    # the bootstrap's spread is that of a mean of 40 differences
    d = np.array([1.0] * 6 + [-1.0] + [0.0] * 33) * 100
    error = d.std() / np.sqrt(N)
    assert known.low == pytest.approx(12.5 - 1.96 * error, abs=1.5)
    assert known.high == pytest.approx(12.5 + 1.96 * error, abs=1.5)
    # the class is right in the first half only
    assert (top.metric, top.a, top.b, top.only_a, top.only_b) == ("top1_loc", 50.0, 35.0, 6, 0)
    assert compare(Side(a, "lchp_r"), Side(a, "lchp_i")) == compare(Side(a, "lchp_r"), Side(a, "lchp_i"))


def test_a_result_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = write_predicted(tmp_path / "a", {"lchp_r": right(3)})
    for c in compare(Side(a, "lchp_r"), Side(a, "lchp_r")):
        assert (c.difference, c.low, c.high, c.p) == (0, 0, 0, 1)


def test_images_are_matched_by_name(tmp_path: Path) -> None:
    a = write_predicted(tmp_path / "a", {"lchp_r": right(3)})
    table = read_predictions(a)
    (tmp_path / "b").mkdir()
    write_predictions(tmp_path / "b", table.take(list(reversed(range(table.num_rows)))))
    assert all(c.only_a == c.only_b == 0 for c in compare(Side(a, "lchp_r"), Side(tmp_path / "b", "lchp_r")))


def test_the_text_names_both_sides(tmp_path: Path) -> None:
    a = write_predicted(tmp_path / "a", {"lchp_i": right(1), "lchp_r": right()})
    x, y = Side(a, "lchp_r"), Side(a, "lchp_i")
    text = comparison_text(x, y, compare(x, y))
    assert f"A: LCHP-R of {a}" in text
    assert f"B: LCHP-I of {a}" in text
    assert "+2.50" in text


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    a = write_predicted(tmp_path / "a", {"lchp_r": right()})
    side = Side(a, "lchp_r")
    b = write_predicted(tmp_path / "b", {"lchp_r": right()}, first=1)
    with pytest.raises(RunError, match=r"b/predictions.parquet: lacks 1 of the 40 test images of .*a, first 0 "):
        compare(side, Side(b, "lchp_r"))
    c = write_predicted(tmp_path / "c", {"lchp_i": right()})
    with pytest.raises(RunError, match=r"c/predictions.parquet: lacks lchp_r_iou; stage 2 has not run"):
        compare(side, Side(c, "lchp_r"))
    d = write_predicted(tmp_path / "d", {"lchp_r": right()}, truth=False)
    with pytest.raises(RunError, match=r"d/predictions.parquet: the test images have no ground-truth boxes"):
        compare(side, Side(d, "lchp_r"))
    with pytest.raises(RunError, match=r"nowhere: no such run folder"):
        compare(side, Side(tmp_path / "nowhere", "lchp_r"))
    path = b / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"b/predictions.parquet: damaged or not a parquet file"):
        compare(side, Side(b, "lchp_r"))


def setting(storage: Path, values: dict[str, object], seeds: tuple[int, ...], wrong: int) -> None:
    for seed in seeds:
        folder = storage / f"{'-'.join(map(str, values.values()))}-{seed}"
        write_run(folder, override(preset("parts"), {**values, "seed": seed}))
        write_predicted(folder, {"lchp_i": right(), "lchp_r": right(*range(wrong))})


def test_settings_are_compared_over_all_common_seeds(tmp_path: Path) -> None:
    setting(tmp_path, {"refinement.labeller": "frozen"}, (0, 1, 2), 4)
    setting(tmp_path, {"refinement.labeller": "online"}, (0, 1, 7), 8)
    a, b = "refinement.labeller=frozen", "refinement.labeller=online"
    text = compared([a, b], Source((tmp_path,)))
    assert f"A: LCHP-R of {a}\nB: LCHP-R of {b}\n2 common seeds, 40 test images" in text
    records = collect([tmp_path])
    known = compare(parse_side(a, records), parse_side(b, records))[0]
    assert (known.a, known.b, known.only_a, known.only_b, known.seeds) == (90.0, 80.0, 8, 0, 2)
    assert known.low < 10 < known.high
    assert "hierarchical bootstrap over seeds and test images" in text
    assert "neither knows of seeds" not in text
    of_i = compared([f"{a}:lchp_i", b], Source((tmp_path,)))
    assert f"A: LCHP-I of {a}" in of_i


def test_what_is_no_one_setting_is_refused(tmp_path: Path) -> None:
    setting(tmp_path, {"refinement.labeller": "frozen"}, (0,), 4)
    setting(tmp_path, {"refinement.labeller": "online"}, (1,), 4)
    setting(tmp_path, {"refinement.labeller": "online", "refinement.tau": 0.5}, (1,), 4)
    a, b = "refinement.labeller=frozen", "refinement.labeller=online"
    with pytest.raises(ConfigError, match=r"2 settings meet it; add what tells them apart: refinement.tau 0.5, 0.9"):
        compared([a, b], Source((tmp_path,)))
    with pytest.raises(RunError, match="have no seed in common"):
        compared([a, b], Source((tmp_path,), ("refinement.tau=0.9",)))
    with pytest.raises(RunError, match="have no seed in common"):
        compared([a, f"{b},refinement.tau=0.9"], Source((tmp_path,)))
    with pytest.raises(ConfigError, match="one is a run and the other a setting"):
        compared([a, str(tmp_path / "frozen-0")], Source((tmp_path,)))
    with pytest.raises(ConfigError, match=r"--compare labeller=frozen: labeller is no field .did you mean refinement"):
        compared(["labeller=frozen", b], Source((tmp_path,)))
    with pytest.raises(
        ConfigError, match=r"--compare refinement.labeller=ema: no run has it; there are frozen, online"
    ):
        compared(["refinement.labeller=ema", b], Source((tmp_path,)))
    with pytest.raises(ConfigError, match="expected two results"):
        compared([a], Source((tmp_path,)))


def test_other_boxes_for_the_same_image_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    a = write_predicted(tmp_path / "a", {"lchp_r": right()})
    table = read_predictions(a)
    truth = table["ground_truth"].to_pylist()
    truth[7] = [[0.0, 0.0, 0.5, 0.5]]
    at = table.column_names.index("ground_truth")
    (tmp_path / "b").mkdir()
    write_predictions(tmp_path / "b", table.set_column(at, "ground_truth", pa.array(truth)))
    with pytest.raises(RunError, match="another class or ground truth of 7 "):
        compare(Side(a, "lchp_r"), Side(tmp_path / "b", "lchp_r"))
