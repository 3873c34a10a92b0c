"""The seven non-empty subsets of {scale, translation, flip} as strong view: Table 6."""

from itertools import combinations
from pathlib import Path

from lchp.config import AUGMENTATIONS, Preset
from lchp.harness import Overrides, exit_program, main, paper_tables

PAPER = Path(__file__).parents[1] / "analysis" / "paper.csv"


def cells(_: Preset) -> list[Overrides]:
    """Single augmentations, pairs, all three."""
    subsets = [s for size in (1, 2, 3) for s in combinations(AUGMENTATIONS, size)]
    return [{"refinement.augmentations": list(s)} for s in subsets]


if __name__ == "__main__":
    exit_program(main("augmentations", cells, about=__doc__, closing=paper_tables(PAPER, (6,))))
