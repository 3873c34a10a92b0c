"""The command line: lchp train | evaluate | predict | export | data."""

import argparse
import contextlib
import io
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lchp.config import PRESETS, TrainConfig, field_types, preset, suggest
from lchp.errors import ConfigError, LchpError

INTERRUPTED = 130


@dataclass
class Train:
    """Train both stages, predict the test images, and write a run folder."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    preset: str = "parts"
    """Recipe that every other option overrides."""
    output: Path | None = None
    """Run folder; runs/DATA-seedN-TIME by default."""
    resume: bool = False
    """Go on after the last finished epoch in --output."""
    stage: Literal["both", "init", "refine"] = "both"
    """Both stages, stage 1 alone, or stage 2 alone from a run folder that holds stage 1."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="DIR")] = None
    """Run folder that holds stage 1, for --stage refine."""

    def run(self) -> int:
        from lchp.records import summary_table
        from lchp.train import train

        if self.resume and self.output is None:
            raise ConfigError("--resume needs --output DIR, the run folder to go on with")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        output = self.output or Path("runs") / f"{self.config.data.name}-seed{self.config.seed}-{stamp}"
        result = train(
            self.config,
            output=output,
            stage=self.stage,
            source=self.source,
            resume=self.resume,
            show_progress=True,
        )
        print(f"\n{summary_table(result.summary)}\n\nrun folder: {result.run}")
        return 0


@dataclass
class Evaluate:
    """Compute every metric again from a run's predictions.parquet."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run", metavar="DIR")]
    """Run folder."""
    json: bool = False
    """Print JSON instead of the table."""

    def run(self) -> int:
        import json

        from lchp.records import read_predictions, summarize, summary_table

        summary = summarize(read_predictions(self.run_folder))
        print(json.dumps(summary, indent=2) if self.json else summary_table(summary))
        return 0


@dataclass
class DataCheck:
    """Report a data set's counts, and everything that is wrong with it by file and line."""

    name: tyro.conf.Positional[Literal["parts", "cub", "tiny_imagenet", "imagenet", "folder"]]
    root: tyro.conf.Positional[Path | None] = None
    """Folder that holds the data set."""
    workers: int = 0
    """Threads that decode images; 0: one per core."""

    def run(self) -> int:
        from lchp.config import DataConfig
        from lchp.data import DATASETS
        from lchp.data.check import check, summary

        dataset = DATASETS[self.name](DataConfig(name=self.name, root=None if self.root is None else str(self.root)))
        problems = check(dataset, workers=self.workers)
        print(summary(dataset))
        for problem in problems:
            print(problem)
        print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'}")
        return 1 if problems else 0


@dataclass
class DataDownload:
    """Fetch a data set: resumed after a break, checked against its checksum, unpacked safely."""

    name: tyro.conf.Positional[Literal["cub", "tiny_imagenet", "imagenet"]]
    target: tyro.conf.Positional[Path] = Path("data")
    """Folder to unpack into."""

    def run(self) -> int:
        from lchp.data.download import download, imagenet_instructions

        if self.name == "imagenet":
            print(imagenet_instructions())
        else:
            print(download(self.name, self.target))
        return 0


COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "data check": DataCheck,
    "data download": DataDownload,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 1 for a fault found, 2 for a user's mistake, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        return _dispatch(arguments)
    except LchpError as error:
        print(f"lchp: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nlchp: stopped; finished epochs are kept, go on with the same command, --output and --resume",
            file=sys.stderr,
        )
        return INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"lchp {version('lchp')}")
        return 0
    for name, command in COMMANDS.items():
        words = name.split()
        if arguments[: len(words)] == words:
            rest = arguments[len(words) :]
            default = Train(_chosen_preset(rest)) if command is Train else None
            return parse(command, rest, f"lchp {name}", default).run()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    said = " ".join(arguments[: 2 if arguments[0] == "data" else 1])
    raise ConfigError(f"{said}: no such command{suggest(said, COMMANDS)}; lchp --help lists them")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {n:<{width}}  {(c.__doc__ or '').strip().splitlines()[0]}" for n, c in COMMANDS.items())
    presets = "\n".join(f"  {n:<{width}}  {p.about}" for n, p in PRESETS.items())
    return (
        "usage: lchp COMMAND [OPTIONS]   (lchp COMMAND --help lists the options)\n\n"
        f"commands:\n{commands}\n\npresets of lchp train --preset NAME:\n{presets}"
    )


def _chosen_preset(arguments: list[str]) -> TrainConfig:
    """The preset is read first, since it sets the defaults of all other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="parts", nargs="?", const="")
    return preset(parser.parse_known_args(arguments)[0].preset)


def parse(command: Callable[..., Any], arguments: list[str], program: str, default: Any = None) -> Any:
    """Arguments to an instance of the dataclass `command`; raises ConfigError, one line, for what does not fit."""
    extra = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(command, args=arguments, prog=program, return_unknown_args=True, **extra)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            print(printed.getvalue(), end="")
            raise
        raise ConfigError(_one_line(printed.getvalue()) + f"; {program} --help lists the options") from None
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name in field_types()] + [
            "--preset",
            "--output",
            "--resume",
            "--from",
        ]
        raise ConfigError(f"{unknown[0]}: no such option of {program}{suggest(unknown[0], flags)}")
    return value


def _one_line(box: str) -> str:
    """What tyro says in a box of several lines, up to its first rule, as one line."""
    lines = []
    for line in box.splitlines():
        if re.search("[─-]{20}", line):
            if lines:
                break
            continue
        text = re.sub("[│╭╮╰╯─|]", " ", line).strip()
        if text and not text.endswith(("error", "Error")):
            lines.append(text)
    return " ".join(lines)
