"""TensorBoard: a folder of events, by tensorboardX's plain writer: the thread of its SummaryWriter dies on a full disk,
and training then waits for it for ever."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lchp.config import show, to_dict, to_flat
from lchp.errors import ConfigError
from lchp.files.runs import make_folder, unwritable
from lchp.tracking.feed import Ending, Picture, Subject, scalars

FOLDER = "tensorboard"


def require() -> None:
    """Raises ConfigError where the library is missing."""
    try:
        import tensorboardX.event_file_writer  # noqa: F401
    except ImportError:
        raise ConfigError("--track tensorboard needs tensorboardX: pip install tensorboardX") from None


def reach(place: Path, _group: str) -> None:
    """Raises RunError where the folder of a sweep's runs cannot be made."""
    make_folder(place / FOLDER)


def open_run(subject: Subject, known: str | None) -> "Board":
    """The events of a run; `known`: the folder that it had, below the place of its subject."""
    own = re.sub(r"[^\w.,+=-]+", "_", subject.name)[:100]
    name = known or (FOLDER if subject.group is None else f"{FOLDER}/{own}-{subject.tags['key'][:6]}")
    board = Board(name, subject)
    if board.new:
        from tensorboardX.summary import text

        board.write([text("config", f"```\n{json.dumps(to_dict(subject.config), indent=2)}\n```")], 0)
    return board


class Board:
    """A folder of events. What cannot be written raises RunError, and goes into a new file at the next try."""

    def __init__(self, name: str, subject: Subject) -> None:
        self.id, self._folder, self._subject = name, subject.place / name, subject
        self.new = not self._folder.is_dir()
        self._writer: Any = None

    def epochs(self, lines: Sequence[Mapping[str, Any]], _before: int) -> None:
        """Scalars over the epochs of their link."""
        from tensorboardX.summary import scalar

        for line in lines:
            self.write([scalar(name, value) for name, value in scalars(line).items()], line["epoch"])

    def picture(self, stage: str, picture: Picture, _before: int) -> None:
        """An image."""
        from tensorboardX.summary import image

        self.write([image(f"{stage}/boxes", picture.pixels, dataformats="HWC")], picture.epoch)

    def summary(self, figures: Mapping[str, float], _files: Sequence[Path]) -> None:
        """A row of the tab HPARAMS: the config's fields, and the summary's figures. The files lie beside it."""
        from tensorboardX.summary import hparams, scalar

        flat = to_flat(self._subject.config)
        fields = {name: v if isinstance(v, (bool, int, float)) else show(v) for name, v in flat.items()}
        self.write([*hparams(fields, dict(figures)), *(scalar(name, value) for name, value in figures.items())], 0)

    def close(self, _ending: Ending) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()

    def write(self, summaries: Sequence[Any], step: int) -> None:
        """Writes them through to the disk."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        made: Any = event_pb2  # its classes are built when it is imported
        try:
            if self._writer is None:
                make_folder(self._folder)
                # two files of one second have other names
                self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{time.time_ns()}")
            for summary in summaries:
                self._writer.write_event(made.Event(wall_time=time.time(), step=step, summary=summary))
            self._writer.flush()
        except OSError as error:
            self._writer = None
            raise unwritable(self._folder, error) from None
