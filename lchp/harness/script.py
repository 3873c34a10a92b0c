"""The flags that all sweeps share, and what a sweep's script does: `main` is its whole machinery."""

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from lchp.config import PRESETS, Preset, TrainConfig, masked_as, override, preset, show, to_flat
from lchp.console import guarded, parse, preset_config
from lchp.errors import ConfigError
from lchp.harness.cells import Overrides, Sweep
from lchp.harness.options import Options
from lchp.harness.plan import make_plan
from lchp.harness.printout import closing_table, dry_run_text, timing_line
from lchp.harness.sweep import SweepResult, run
from lchp.system import streams

Cells = Callable[[Preset], Sequence[Overrides]]
"""What a sweep varies, given the preset with its lists of deltas, taus and localizers."""
Closing = Callable[[SweepResult, Preset], str]
"""Text that a script prints below the closing table, given the preset with the flags' config."""


@dataclass(frozen=True)
class Program:
    """The words that start a sweep: by default `python` and the script that runs."""

    words: tuple[str, ...] = field(default_factory=lambda: ("python", sys.argv[0]))

    @property
    def name(self) -> str:
        """As --help and messages call it: `delta_tau.py`, `lchp sweep delta_tau`."""
        return Path(self.words[-1]).name if self.words[0] == "python" else " ".join(self.words)

    @property
    def error(self) -> str:
        """What its errors begin with."""
        return "error" if self.words[0] == "python" else "lchp: error"

    def to_go_on(self, arguments: Sequence[str]) -> str:
        """What to say after Ctrl-C, SIGTERM or SIGHUP. A dry run keeps nothing that one could go on with."""
        if "--dry-run" in arguments:
            return "stopped"
        again = [*self.words, *arguments] + ([] if "--resume" in arguments else ["--resume"])
        return f"stopped; finished epochs are kept, go on with: {shlex.join(again)}"


@dataclass
class Flags:
    """Run a sweep."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
    preset: str = "parts"
    """Recipe that every other option overrides, and whose lists of deltas, taus and localizers the sweep takes."""
    seeds: int = 1
    """Seeds per cell, from the config's seed upwards."""
    name: str | None = None
    """Name of the sweep's record; the script's own by default."""
    limit: int | None = None
    """Train only the first N cells in the order that --dry-run prints (the most useful come first)."""
    dry_run: bool = False
    """Print the cells, the trainings that are left, and their time and disk, and stop."""
    price_per_hour: float | None = None
    """Price per hour of the place that one training takes (a GPU, a machine): --dry-run says what all would cost."""

    def __post_init__(self) -> None:
        self.config = masked_as(self.config, preset(self.preset))

    def check_price(self) -> None:
        """Raises ConfigError for a price without an estimate, or one that is none."""
        if self.price_per_hour is not None and not self.dry_run:
            raise ConfigError("--price-per-hour: goes with --dry-run, which says what all would cost")
        if self.price_per_hour is not None and not (math.isfinite(self.price_per_hour) and self.price_per_hour >= 0):
            raise ConfigError(f"--price-per-hour = {self.price_per_hour}: expected at least 0")

    def sweep(self, name: str, cells: Cells) -> Sweep:
        """The sweep that these flags ask for. Raises ConfigError."""
        if self.seeds < 1:
            raise ConfigError(f"--seeds = {self.seeds}: expected at least 1")
        self.check_price()
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit = {self.limit}: expected at least 1")
        first = self.config.seed
        overrides = cells(replace(PRESETS[self.preset], config=self.config))
        recipe = to_flat(PRESETS[self.preset].config)
        for field_name, value in to_flat(self.config).items():
            values = [show(c[field_name]) for c in overrides if field_name in c]
            asked = value != recipe[field_name]
            if asked and len(values) == len(overrides) and show(value) not in values:
                listed = ", ".join(dict.fromkeys(values))
                raise ConfigError(f"--{field_name} {show(value)}: this sweep sets it in every cell ({listed})")
        if self.seeds > 1 and all("seed" in cell for cell in overrides):
            raise ConfigError(f"--seeds = {self.seeds}: this sweep sets the seed in every cell; leave one of them out")
        if self.limit is not None:  # of different cells: those of several tables may be the same
            distinct: dict[TrainConfig, Overrides] = {}
            for cell in overrides:
                distinct.setdefault(override(self.config, cell), cell)
            overrides = list(distinct.values())[: self.limit]
        return Sweep(self.name or name, self.config, overrides, range(first, first + self.seeds))


def main(
    name: str,
    cells: Cells,
    *,
    about: str | None = None,
    closing: Closing | None = None,
    argv: Sequence[str] | None = None,
    program: Program | None = None,
) -> int:
    """Runs a sweep's script: parses the common flags, runs, prints the closing table (and what `closing` adds).

    Returns the exit status: 0, 1 where cells failed, 2 for a user's mistake, 129, 130 and 143 for SIGHUP, Ctrl-C and
    SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = program or Program()

    def body() -> int:
        flags: Flags = parse(Flags, arguments, program.name, Flags(preset_config(arguments)), about=about)
        return conduct(flags, flags.sweep(name, cells), closing)

    return guarded(body, program.to_go_on(arguments), error=program.error)


def conduct(flags: Flags, sweep: Sweep, closing: Closing | None = None) -> int:
    """Runs what the flags ask for, or says what would be run; the exit status."""
    if flags.dry_run:
        print(dry_run_text(make_plan(sweep, flags.options, look_only=True), flags.price_per_hour))
        return 0
    streams.outlast()
    result = run(sweep, flags.options, show_progress=True)
    print(f"\n{closing_table(result)}")
    if closing is not None:
        print(f"\n{closing(result, replace(PRESETS[flags.preset], config=flags.config))}")
    print(f"\n{timing_line(result)}\nrecords: {result.record}")
    return 1 if result.failed else 0


def paper_tables(numbers: Sequence[int], then: str | None = None) -> Closing:
    """What a sweep's script prints at its end: the tables of these numbers, made from the storage beside the paper's
    values, and the command to try next."""

    def closing(result: SweepResult, preset: Preset) -> str:
        from lchp.report.tables.write import render_tables

        text = render_tables(result.storage, preset, numbers).rstrip()
        return f"{text}\n\nnext: {then}" if then else text

    return closing
