"""`lchp table`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lchp.console import refuse
from lchp.errors import ConfigError
from lchp.report.flags import Source


@dataclass
class MakeTable:
    """Make a table of any fields from the records of sweeps and runs.

    A cell is the mean and the standard deviation over seeds, with their number. A note below the table names what else
    the runs differ in.
    """

    rows: Annotated[str | None, tyro.conf.arg(metavar="FIELD[,FIELD]")] = None
    """Fields whose values are the rows, e.g. refinement.tau."""
    columns: Annotated[str, tyro.conf.arg(metavar="FIELD|results|metrics")] = "results"
    """The values of a field; results (Pseudo Label, LCHP-I, LCHP-R); or metrics (GT-Known, Top-1, Top-5, mean IoU)."""
    result: Literal["last", "pseudo_label", "lchp_i", "lchp_r"] = "last"
    """Result that a cell shows, unless results are the columns; by default each run's last."""
    metric: Literal["gt_known", "top1_loc", "top5_loc", "mean_iou"] = "gt_known"
    """Metric that a cell shows, unless metrics are the columns."""
    baseline: Annotated[str | None, tyro.conf.arg(metavar="FIELD=VALUE")] = None
    """Show each cell's difference from the cell with this value of a row's or column's field, with a 95 % interval over
    seeds and test images, and p after Holm's correction over the table."""
    figure: bool = False
    """Also draw the table, as PNG and PDF: lines with bands over one field of rows, or a heatmap where a field is the
    columns."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="A B")] = ()
    """Compare two settings, FIELD=VALUE[,FIELD=VALUE][:RESULT], over all their common seeds, or two runs, RUN[:RESULT],
    instead of making a table."""
    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    output: Annotated[Path | None, tyro.conf.arg(aliases=("--out",))] = None
    """Folder to write to; tables/ in the first storage by default, or in the current folder where that is a URL."""

    def run(self) -> int:
        """Writes and prints the table; the exit status: 1 where a record could not be read."""
        from lchp.report.compare import compared
        from lchp.report.select import parse_where
        from lchp.report.tables.cells import FieldTable
        from lchp.report.tables.fields import field_table
        from lchp.report.tables.render import FORMATS, to_text
        from lchp.report.tables.write import write_tables

        if self.compare and self.rows is None:
            idle = ("columns", "metric", "result", "baseline", "figure", "output")
            refuse(self, idle, "does not go with --compare, which prints")
            print(compared(self.compare, self.source))
            return 0
        if self.compare or self.rows is None:
            raise ConfigError("lchp table needs --rows FIELD[,FIELD] or --compare A B, one of them")
        if self.columns in ("results", "metrics"):
            refuse(
                self, (self.columns.removesuffix("s"),), f"does not go with --columns {self.columns}, which shows each"
            )
        rows = tuple(name.strip() for name in self.rows.split(","))
        baseline = None if self.baseline is None else next(iter(parse_where([self.baseline], "--baseline").items()))
        asked = FieldTable(rows, self.columns, self.result, self.metric, self.source.conditions, baseline)
        if self.figure and len(rows) > 1:
            raise ConfigError("--figure draws one field of rows; name a second one by --columns")
        records = self.source.read()
        table = field_table(records, asked)
        out = self.output or self.source.beside / "tables"
        figure = None
        if self.figure:
            from lchp.report.figures.fields import figure_of

            figure = figure_of(table, asked)  # before anything is written
        write_tables([table], out)
        if figure is not None:
            from lchp.report.figures.style import save

            save(figure, out)
        print(to_text(table))
        drawn = f", {table.number} (.png, .pdf)" if self.figure else ""
        print(f"written to {out}: table_{table.number} ({', '.join(f'.{suffix}' for suffix in FORMATS)}){drawn}")
        for line in (*records.problems, *records.notes):
            print(line, file=sys.stderr)
        return 1 if records.problems else 0
