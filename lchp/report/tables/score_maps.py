"""Table 8, which the paper does not have: score maps by the protocol of "Evaluating Weakly Supervised Object
Localization Methods Right" (Choe et al., CVPR 2020)."""

import math
from collections.abc import Mapping
from typing import Any

from lchp.config import PRESETS, Preset
from lchp.report.paper import Paper
from lchp.report.read import Records
from lchp.report.select import Selection
from lchp.report.tables.grid import DATA, Measure, Row, Section, Table, caption_of, finish, part_of, ranked_rows
from lchp.report.tables.methods import Found, Line, find, name_of, notes_of_lines, together

NUMBER = 8
TITLE = "Score maps of the compared methods: MaxBoxAcc and BoxAcc (%)"
HEAD = ("method", "backbone")
FRAME = "the whole image at 224 px"
_BEST = Measure("MaxBoxAcc (oracle)", "score_maps/oracle_maxboxacc", "")
_MEASURES = (
    _BEST,
    Measure("MaxBoxAccV2 (oracle)", "score_maps/oracle_maxboxacc_v2", ""),
    Measure("its threshold (oracle)", "score_maps/oracle_threshold", "", digits=3, ranked=False),
    Measure("BoxAcc", "score_maps/boxacc", ""),
    Measure("BoxAccV2", "score_maps/boxacc_v2", ""),
)
_HELD_OUT = (
    Measure("BoxAcc (oracle, held-out)", "score_maps/oracle_validation_boxacc", ""),
    Measure("BoxAccV2 (oracle, held-out)", "score_maps/oracle_validation_boxacc_v2", ""),
)
_FIXED = Measure("threshold", "score_maps/threshold", "")
_ABOUT = (
    "Scored as by wsolevaluation (Choe et al., CVPR 2020), on maps of the images' own classes. BoxAcc: the share of "
    "test images where the box around the largest contour above the threshold has an IoU of at least 0.5 with a "
    "ground-truth box; V2: the best of all contours' boxes, mean over IoU 0.3, 0.5 and 0.7. MaxBoxAcc is at the "
    "threshold that is best on the test split, which its boxes choose: an oracle's figures, not the method's. BoxAcc "
    "is at method.threshold"
)
_ABOUT_HELD_OUT = (
    "The columns `held-out` are at the threshold that is best on held-out training images, whose boxes it reads."
)


def scored(found: Found) -> tuple[Line, ...]:
    """The rows of compared methods without a localizer whose score maps were scored, in the order of Table 1."""
    return tuple(line for line in found.compared if line.maps and _values(line, _BEST))


def score_map_table(records: Records, preset: Preset, where: Mapping[str, Any] | None = None) -> Table:
    """Table 8, of the preset's data set. `where`: values of fields that the runs must have."""
    found, data = find(records, preset, where), DATA[preset.config.data.name]
    lines = scored(found)
    measures = (*_MEASURES, *(_HELD_OUT if any(_values(line, m) for line in lines for m in _HELD_OUT) else ()))
    rows = [
        Row((line.title, line.backbone), tuple(finish(_values(line, m), 0, False, m, None) for m in measures))
        for line in lines
    ]
    group = together(records, [line.group for line in lines])
    ranked = ranked_rows(rows, measures, Paper({}), NUMBER) if rows else ()
    section = Section(data, FRAME, ranked, part_of(group))
    fixed = ", ".join(sorted({f"{v:g}" for line in lines for v in _values(line, _FIXED)}))
    nothing = f"No record of {data} holds scored maps."
    about = [
        nothing if group is None else caption_of(records, Selection(group, ""), preset, PRESETS["cub"], axis=None),
        f"{_ABOUT}{fixed and f', {fixed}'}.",
        *([_ABOUT_HELD_OUT] if len(measures) > len(_MEASURES) else []),
        "The paper gives no values.",
    ]
    notes = notes_of_lines(lines, found)
    maps = [line for line in found.compared if line.maps and not _values(line, _BEST)]
    for text, without in (("no score map was scored of", False), ("all cells failed of", True)):
        names = [name_of(line, found.compared) for line in maps if (line.group is None) == without]
        notes += [f"{text}: {', '.join(names)}"] if names else []
    columns = tuple(m.title for m in measures)
    return Table(
        NUMBER, TITLE, " ".join(about), HEAD, columns, (section,) if rows else (), tuple(notes), compared=False
    )


def _values(line: Line, measure: Measure) -> list[float]:
    """Of the runs that have them."""
    if line.group is None or measure.path not in line.group.runs:
        return []
    return [float(v) for v in line.group.runs[measure.path] if not math.isnan(v)]
