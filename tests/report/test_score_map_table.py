"""Table 8: the compared methods' score maps."""

from pathlib import Path
from typing import Any

from report_records import analysis_script, store, write_sweep

from lchp.config import PRESETS, override, preset
from lchp.report.flags import Source
from lchp.report.page.make import PageOptions, gather
from lchp.report.paper import read_paper
from lchp.report.read import collect
from lchp.report.tables.grid import Table
from lchp.report.tables.numbers import table, tables
from lchp.report.tables.render import FORMATS, to_text

PARTS = PRESETS["parts"]
COLUMNS = ("MaxBoxAcc (oracle)", "MaxBoxAccV2 (oracle)", "its threshold (oracle)", "BoxAcc", "BoxAccV2")
HELD_OUT = ("BoxAcc (oracle, held-out)", "BoxAccV2 (oracle, held-out)")


def scores(best: float, threshold: float = 0.213) -> dict[str, float | None]:
    return {
        "oracle_maxboxacc": best,
        "oracle_maxboxacc_v2": best - 5,
        "oracle_threshold": threshold,
        "threshold": 0.2,
        "boxacc": best - 10,
        "boxacc_v2": best - 12,
    }


def run(storage: Path, title: str, maps: dict[str, float | None] | None, **values: Any) -> None:
    config = override(preset("parts"), {"method.name": title.lower(), **values})
    figures = {"pseudo_label": 50.0, **({"lchp_i": 60.0} if config.method.localizer else {})}
    store(storage, config, figures, method=title, score_maps=maps)


def made(storage: Path) -> Table:
    return table(collect([storage]), 8, PARTS, read_paper())


def test_a_row_per_method_and_backbone(tmp_path: Path) -> None:
    store(tmp_path, preset("parts"))
    for seed in (0, 1):
        run(tmp_path, "CAM", scores(70.0 + seed, 0.213 + 0.01 * seed), seed=seed)
    run(tmp_path, "CAM", scores(80.0), **{"model.classifier": "tiny_deep"})
    run(tmp_path, "ADL", scores(60.0))
    run(tmp_path, "HaS", None)  # of before maps were scored
    run(tmp_path, "PSOL", scores(90.0), **{"method.localizer": True})  # its result is the localizer's
    failed = override(preset("parts"), {"method.name": "spg"})
    write_sweep(
        tmp_path, [({"method.name": "spg"}, failed, "failed", "no GPU")], preset("parts"), titles={"spg": "SPG"}
    )
    found = made(tmp_path)
    assert (found.head, found.columns) == (("method", "backbone"), COLUMNS)
    (section,) = found.sections
    assert section.title == "parts (embedded, synthetic), the whole image at 224 px"
    assert [row.labels for row in section.rows] == [("ADL", "tiny-GAP"), ("CAM", "tiny-GAP"), ("CAM", "tiny_deep-GAP")]
    assert [c.ours for c in section.rows[0].cells] == ["60.00 (1)", "55.00 (1)", "0.213 (1)", "50.00 (1)", "48.00 (1)"]
    assert [c.ours for c in section.rows[1].cells][:3] == [
        "70.50 ± 0.71 (2)",
        "65.50 ± 0.71 (2)",
        "0.218 ± 0.007 (2)",
    ]
    assert [[c.rank for c in row.cells] for row in section.rows] == [[0] * 5, [2, 2, 0, 2, 2], [1, 1, 0, 1, 1]]
    assert "no score map was scored of: HaS" in found.notes
    assert "all cells failed of: SPG" in found.notes
    assert "method.threshold, 0.2." in found.caption
    assert "an oracle's figures" in found.caption
    assert "held-out" not in found.caption
    assert "Seeds 0, 1" in found.caption
    assert "delta" not in found.caption
    assert all(render(found) for render in FORMATS.values())


def test_thresholds_of_held_out_images_have_columns_that_say_so(tmp_path: Path) -> None:
    more = {"oracle_validation_threshold": 0.3, "oracle_validation_boxacc": 65.0, "oracle_validation_boxacc_v2": 61.0}
    run(tmp_path, "CAM", scores(70.0) | more)
    run(tmp_path, "ADL", scores(60.0) | dict.fromkeys(more))
    found = made(tmp_path)
    assert found.columns == (*COLUMNS, *HELD_OUT)
    adl, cam = found.sections[0].rows
    assert [c.ours for c in cam.cells[-2:]] == ["65.00 (1)", "61.00 (1)"]
    assert [c.ours for c in adl.cells[-2:]] == ["not run", "not run"]
    assert "held-out training images, whose boxes it reads" in found.caption


def test_it_is_made_where_score_maps_were_scored(tmp_path: Path) -> None:
    main, paper = analysis_script("make_tables").main, read_paper()
    run(tmp_path, "HaS", None)
    empty = made(tmp_path)
    assert empty.sections == ()
    assert "No record of parts (embedded, synthetic) holds scored maps." in to_text(empty).replace("\n", " ")
    assert [t.number for t in tables(collect([tmp_path]), PARTS, paper)] == [1, 2, 3, 4, 5, 6]
    run(tmp_path, "CAM", scores(70.0))
    records = collect([tmp_path])
    assert [t.number for t in tables(records, PARTS, paper)] == [1, 2, 3, 4, 5, 6, 8]
    page = gather(records, PageOptions(Source((tmp_path,)), figures=False), paper)
    assert [(t.number, t.empty) for t in page.tables][-1] == (8, False)
    assert main(["--storage", str(tmp_path), "--table", "8", "--out", str(tmp_path / "out")]) == 0
    assert "70.0000" in (tmp_path / "out" / "table_8.csv").read_text()
