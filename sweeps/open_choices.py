"""Each choice the paper leaves open, one factor at a time around the recipe: Table 7."""

from pathlib import Path

from lchp.config import Preset, alternatives
from lchp.harness import Overrides, exit_program, main, paper_tables
from lchp.training.chain import method_of

PAPER = Path(__file__).parents[1] / "analysis" / "paper.csv"


def cells(preset: Preset) -> list[Overrides]:
    """The recipe, then every other value of every choice, those expected to matter most first."""
    return [{}, *({name: value} for name, value in alternatives(preset.config, method_of))]


if __name__ == "__main__":
    exit_program(main("open_choices", cells, about=__doc__, closing=paper_tables(PAPER, (7,))))
