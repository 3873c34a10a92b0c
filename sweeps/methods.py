"""The methods that the paper compares LCHP with, beside LCHP itself: Tables 1, 2 and 8."""

from collections import Counter
from pathlib import Path

from lchp.config import Preset

from lchp.harness import Overrides, exit_program, main, paper_tables  # isort: skip  (before torch: it explains faults)
from lchp.baselines import METHODS

PAPER = Path(__file__).parents[1] / "analysis" / "paper.csv"


def cells(preset: Preset) -> list[Overrides]:
    """Every compared method as published, on each of the preset's classifiers, those first that share a classifier with
    most others; on the recipe's own, a localizer regressed on CAM's boxes, and LCHP's refinement of PSOL; and LCHP
    itself, which other sweeps train too."""
    compared = {name: method for name, method in METHODS.items() if not method.complete}
    sharing = Counter(method.scheme.name for method in compared.values())
    ordered = sorted(compared.items(), key=lambda item: -sharing[item[1].scheme.name])
    own, found = preset.config.model.classifier, list[Overrides]()
    for classifier in dict.fromkeys((own, *preset.classifiers)):
        on = {} if classifier == own else {"model.classifier": classifier}
        found += [{"method.name": n, **({} if m.map else {"method.localizer": True}), **on} for n, m in ordered]
    regressed = {"method.localizer": True}
    refined = {"method.name": "psol", **regressed, "method.refine": True}
    return [*found, {"method.name": "cam", **regressed}, refined, {"method.name": "lchp"}]


if __name__ == "__main__":
    exit_program(main("methods", cells, about=__doc__, closing=paper_tables(PAPER, (1, 2, 8))))
