"""The command line: a file per command; the overview lists them."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

import lchp.system.imports  # noqa: F401  (before all that it explains)
from lchp import __version__
from lchp.cli.boxes import OwnBoxes
from lchp.cli.data import DataCheck, DataDownload
from lchp.cli.evaluate import Evaluate
from lchp.cli.export import Export
from lchp.cli.figures import Figures
from lchp.cli.predict import Predict
from lchp.cli.publish import Publish
from lchp.cli.report import ReportPage
from lchp.cli.score import Score
from lchp.cli.scoremaps import ScoreMaps
from lchp.cli.sweep import run_sweep
from lchp.cli.table import MakeTable
from lchp.cli.tables import Tables
from lchp.cli.train import Train
from lchp.config import PRESETS, suggest
from lchp.console import exit_program, guarded, parse, preset_config
from lchp.errors import ConfigError
from lchp.system import streams

COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "tables": Tables,
    "figures": Figures,
    "report": ReportPage,
    "evaluate": Evaluate,
    "score": Score,
    "scoremaps": ScoreMaps,
    "table": MakeTable,
    "predict": Predict,
    "boxes": OwnBoxes,
    "export": Export,
    "publish": Publish,
    "data check": DataCheck,
    "data download": DataDownload,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 1 for a fault found, or as `guarded` says."""
    streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["sweep"]:  # a program of its own: it says itself how to go on
        return run_sweep(arguments[1:])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for name in ("fontTools", "matplotlib", "torch"):  # of every table of a PDF's fonts, of torch's own caches
        logging.getLogger(name).setLevel(logging.WARNING)
    return guarded(lambda: _dispatch(arguments), "lchp: stopped", error="lchp: error")


def program() -> None:
    """`lchp` as a program: it ends as a sweep's script does where it has started Ray."""
    status = main()
    if "ray" in sys.modules:
        exit_program(status)
    raise SystemExit(status)


def script(name: str, file: str, arguments: Sequence[str]) -> int:
    """A command under the name of its script, `file`; the exit status."""
    return guarded(lambda: parse(COMMANDS[name], list(arguments), file).run())


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"lchp {__version__}")
        return 0
    for name, command in COMMANDS.items():
        words = name.split()
        if arguments[: len(words)] == words:
            rest = arguments[len(words) :]
            default = Train(preset_config(rest)) if command is Train else None
            return parse(command, rest, f"lchp {name}", default).run()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    said = " ".join(arguments[: 2 if arguments[0] == "data" else 1])
    raise ConfigError(f"{said}: no such command{suggest(said, [*COMMANDS, 'sweep'])}; lchp --help lists them")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    about = {"train": Train.__doc__, "sweep": run_sweep.__doc__} | {n: c.__doc__ for n, c in COMMANDS.items()}
    commands = "\n".join(f"  {n:<{width}}  {(text or '').strip().splitlines()[0]}" for n, text in about.items())
    presets = "\n".join(f"  {n:<{width}}  {p.about}" for n, p in PRESETS.items())
    return (
        "usage: lchp COMMAND [OPTIONS]   (lchp COMMAND --help lists the options)\n\n"
        f"commands:\n{commands}\n\npresets of lchp train --preset NAME:\n{presets}"
    )
