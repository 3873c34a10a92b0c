"""What one tracker gets of one run: what it has is noted, so that nothing is sent twice and nothing is left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from lchp.config import TrainConfig
from lchp.files import runs
from lchp.files.runs import CONFIG, ENVIRONMENT, METRICS, STAGES, SUMMARY
from lchp.files.schema import Index, Text, checked, is_figure
from lchp.tracking import TrackerName, client_of

FILES = (CONFIG, METRICS, SUMMARY, ENVIRONMENT)
"""The small files of a run folder."""

Ending = Literal["done", "stopped", "failed"]


class Picture(NamedTuple):
    """`pixels`: H x W x 3 uint8, of a link's last epoch."""

    epoch: int
    pixels: np.ndarray


class Sent(TypedDict):
    """What a tracker has of a run: its own id of it, how many lines of the history, the pictures of which links, and
    whether all."""

    run: Text
    lines: Index
    pictures: list[Text]
    done: bool


SENT_SCHEMA = TypeAdapter(Sent)


@dataclass(frozen=True)
class Subject:
    """A run that a tracker is to show.

    run: its folder; name, group: what it and its sweep are called there; tags: more to find it by; notes: the file that
    says what has been sent; place: the folder for what the tracker writes on this machine; check: raises RunError where
    the folder of `notes` is no longer ours; noted: called whenever `notes` has news.
    """

    run: Path
    name: str
    group: str | None
    config: TrainConfig
    tags: Mapping[str, str]
    notes: Path
    place: Path
    check: Callable[[], object]
    noted: Callable[[], object] = lambda: None


class TrackerRun(Protocol):
    """A run as a tracker's client has it; `new`: it holds nothing yet. Its methods raise what that raises."""

    id: str
    new: bool

    def epochs(self, lines: Sequence[Mapping[str, Any]], before: int) -> None:
        """Lines of the history; `before`: how many were sent earlier."""
        ...

    def picture(self, stage: str, picture: Picture, before: int) -> None:
        """The picture of a link; `before`: how many lines were sent earlier."""
        ...

    def summary(self, figures: Mapping[str, float], files: Sequence[Path]) -> None:
        """What came of the run."""
        ...

    def close(self, ending: Ending) -> None:
        """Nothing more comes for now."""
        ...


@dataclass
class Feed:
    """Sends a run to a tracker. `pictures`: those that are still to be sent, by link."""

    tracker: TrackerName
    subject: Subject
    pictures: dict[str, Picture] = field(default_factory=dict)
    opened: TrackerRun | None = None

    def sent(self) -> Sent | None:
        """What the notes say, None where there are none. Raises RunError where they are damaged."""
        path = self.subject.notes
        return checked(SENT_SCHEMA, runs.read_json(path), path) if path.exists() else None

    def update(self) -> None:
        """Sends what the tracker lacks. After a failure it may be called again."""
        run, sent = self._open()
        lines = history(self.subject.run)
        if len(lines) > sent["lines"]:
            run.epochs(lines[sent["lines"] :], sent["lines"])
            sent.update(lines=len(lines), done=False)
            self._note(sent)
        for stage, picture in list(self.pictures.items()):
            if stage not in sent["pictures"]:
                run.picture(stage, picture, sent["lines"])
                sent["pictures"].append(stage)
                self._note(sent)
            del self.pictures[stage]

    def close(self, ending: Ending) -> None:
        """Sends what the tracker lacks, of a run that is done its summary and files too, and says that this is all."""
        self.update()
        run, sent = self._open()
        folder = self.subject.run
        if ending == "done" and not sent["done"]:
            summary = runs.read_summary(folder) if (folder / SUMMARY).exists() else {}
            run.summary(dict(figures(summary)), [folder / name for name in FILES if (folder / name).exists()])
        run.close(ending)
        self.opened = None
        self._note({**sent, "done": ending == "done"})

    def _open(self) -> tuple[TrackerRun, Sent]:
        sent = self.sent()
        run = self.opened
        if run is None:
            run = self.opened = client_of(self.tracker).open_run(self.subject, None if sent is None else sent["run"])
        assert run is not None
        if sent is None or run.new:
            sent = Sent(run=run.id, lines=0, pictures=[], done=False)
            self._note(sent)
            run.new = False
        return run, sent

    def _note(self, sent: Sent) -> None:
        self.subject.check()
        self.subject.notes.parent.mkdir(exist_ok=True)  # not those above it: the disk may be gone
        runs.write_json(self.subject.notes, sent, parents=False)
        self.subject.noted()


def history(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of every link of a run, in the links' order; those of a link that was taken from
    another run folder stand in that one's. Raises RunError."""
    links = runs.read_environment(run).get("links")
    stages = {kind: stage for kind, stage in STAGES.items() if links is None or kind in links}
    folders = runs.link_folders(run, list(stages))
    there = {folder: runs.read_metrics(folder) for folder in set(folders.values())}
    lines = []
    for kind, stage in stages.items():
        own = [line for line in there[folders[kind]] if line["stage"] == stage]
        lines += sorted(own, key=lambda line: line["epoch"])
    return lines


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, as `stage/name`."""
    free = ("stage", "epoch", "epochs")
    return {f"{line['stage']}/{name}": value for name, value in line.items() if name not in free}


def figures(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a summary, whatever depth they lie in, as `results/lchp_r/center_crop/gt_known`."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += figures(value, f"{prefix}{name}/")
        elif is_figure(value):
            found.append((f"{prefix}{name}", value))
    return found
