"""Weights & Biases, by its own client; WANDB_MODE, WANDB_PROJECT and the client's other settings hold."""

import contextlib
import io
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lchp import __version__
from lchp.config import to_dict
from lchp.errors import ConfigError, reason
from lchp.files.runs import make_folder
from lchp.tracking.feed import Ending, Picture, Subject, scalars

EXIT = {"done": 0, "stopped": 255, "failed": 1}
"""What W&B shows as finished, killed and failed."""
UPLOAD = 50.0
"""Seconds that the end of a run waits for what is still to be uploaded; `wandb sync` uploads what is left."""


def require() -> None:
    """Raises ConfigError where the library is missing, and where it is to send and knows no account."""
    try:
        import wandb
    except ModuleNotFoundError:
        raise ConfigError("--track wandb needs its client: pip install wandb") from None
    except Exception as error:
        raise ConfigError(f"--track wandb: the library cannot be imported ({reason(error)})") from None
    logging.getLogger("wandb").setLevel(logging.WARNING)
    if wandb.setup().settings.mode == "online":
        with contextlib.redirect_stderr(io.StringIO()):  # it tells where it found the key
            there = wandb.login(prompt=False, verify=False)
        if not there:
            raise ConfigError("--track wandb: no account; run wandb login, or set WANDB_API_KEY or WANDB_MODE=offline")


def reach(_place: Path, _group: str) -> None:
    """Raises what the client raises where the server cannot be reached."""
    import wandb

    if wandb.setup().settings.mode == "online":
        wandb.Api(timeout=20).viewer  # noqa: B018  (asks the server)


def open_run(subject: Subject, known: str | None) -> "WandbRun":
    """The run `known`, else a new one, of the project $WANDB_PROJECT, by default `lchp`."""
    import wandb

    place = os.environ.get("WANDB_DIR")
    if not place:
        place = subject.place
        make_folder(place)  # else the client takes a temporary one
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "lchp",
        id=known or secrets.token_hex(4),
        resume="allow",
        reinit="create_new",
        name=subject.name,
        group=subject.group,
        dir=place,
        settings=wandb.Settings(silent=True, console="off", finish_timeout=UPLOAD, finish_timeout_raises=True),
    )
    run.config.update(
        {**to_dict(subject.config), "lchp": {"version": __version__, **subject.tags}}, allow_val_change=True
    )
    return WandbRun(run, known is None)


class WandbRun:
    """A run of W&B. Its steps must rise: odd ones are lines of the history, even ones the pictures after so many lines;
    curves go over their link's epochs."""

    def __init__(self, run: Any, new: bool) -> None:
        self.id, self.new, self._run = run.id, new, run
        self._stages: set[str] = set()

    def epochs(self, lines: Sequence[Mapping[str, Any]], before: int) -> None:
        """A row of the history for each line."""
        for number, line in enumerate(lines, before):
            stage = line["stage"]
            if stage not in self._stages:
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
                self._stages.add(stage)
            self._run.log({**scalars(line), f"{stage}/epoch": line["epoch"]}, step=2 * number + 1)

    def picture(self, stage: str, picture: Picture, before: int) -> None:
        """An image."""
        import wandb

        values = {f"{stage}/boxes": wandb.Image(picture.pixels), f"{stage}/epoch": picture.epoch}
        self._run.log(values, step=2 * before)

    def summary(self, figures: Mapping[str, float], files: Sequence[Path]) -> None:
        """The figures as the run's summary, the files as an artifact."""
        import wandb

        self._run.summary.update(figures)
        artifact = wandb.Artifact(f"run-{self.id}", type="run")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, ending: Ending) -> None:
        """Ends it; raises TimeoutError where not all is uploaded in time."""
        self._run.finish(exit_code=EXIT[ending])
