"""A sweep in trackers: each cell is a run there, sent when its result is in the store. Links are shared between cells;
a cell's run has the curves of all of its own, from the store."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import cast

import numpy as np

from lchp.config import DataConfig, TrainConfig
from lchp.data import DataSet, load
from lchp.files import runs
from lchp.harness.cells import Cell
from lchp.harness.places import send_notes
from lchp.harness.store import Store
from lchp.report.figures.images import read_frame, read_pixels
from lchp.tracking import TrackerName, client_of
from lchp.tracking.feed import Feed, Picture, Subject
from lchp.tracking.follow import END, HURRY, START
from lchp.tracking.samples import FRAME, sample_grid, shown_images
from lchp.tracking.sender import Sender
from lchp.training.chain import Kind, label


class CellSender:
    """Sends cells of the sweep whose folder is `folder`, and notes there what the trackers have; for a storage behind a
    URL in the storage too, since the next start may be on another machine. What W&B keeps offline lies there too, or
    below the current folder where `folder` is a mirror. check: raises RunError where the folder is no longer
    ours. Nothing here raises or waits."""

    def __init__(
        self, trackers: Sequence[TrackerName], folder: Path, store: Store, check: Callable[[], object]
    ) -> None:
        self._folder, self._store, self._check = folder, store, check
        self._place = folder if store.remote is None else Path(runs.TRACKERS).absolute() / folder.name
        self.senders: dict[TrackerName, Sender] = {tracker: Sender(tracker) for tracker in trackers}
        self._taken: set[tuple[TrackerName, str]] = set()

    def reach(self) -> None:
        """Asks the trackers whether they are there."""
        for tracker, sender in self.senders.items():
            sender.put(partial(client_of(tracker).reach, self._folder, self._folder.name))

    def send(self, cells: Iterable[tuple[Cell, str]]) -> None:
        """Cells whose results are in the store, each with its name; but not those that have been sent."""
        for cell, name in cells:
            for tracker, sender in self.senders.items():
                if (tracker, cell.key) not in self._taken:
                    self._taken.add((tracker, cell.key))
                    sender.put(partial(self._send, tracker, cell, name))

    def settle(self, patience: float) -> None:
        """As `Sender.settle`, for every tracker."""
        for sender in self.senders.values():
            sender.settle(patience)

    def _send(self, tracker: TrackerName, cell: Cell, name: str) -> None:
        link = cell.chain.last
        run, notes = (
            self._store.fetched(link.kind, cell.key),
            self._folder / runs.TRACKERS / f"{tracker}-{cell.key}.json",
        )
        for kind, place in runs.read_environment(run).get("links", {}).items():  # whose curves are read, too
            if place["run"] is not None:
                self._store.fetched(cast("Kind", kind), Path(place["run"]).name)
        tags = {"method": label(cell.config), "key": cell.key}
        # TensorBoard's events go into the storage; W&B's files are its own to send, by `wandb sync`
        place = self._place if tracker == "wandb" else self._folder
        subject = Subject(run, name, self._folder.name, cell.config, tags, notes, place, self._check)
        if (remote := self._store.remote) is not None:
            subject = replace(subject, noted=partial(send_notes, self._folder, remote, notes))
        feed = Feed(tracker, subject)
        try:
            if (sent := feed.sent()) is None or not sent["done"]:
                feed.pictures[link.stage] = Picture(link.epochs, picture_of(run, cell.config))
                feed.close("done")
        except BaseException:
            self._taken.discard((tracker, cell.key))
            raise


@contextmanager
def cells_sent(
    trackers: Sequence[TrackerName], folder: Path, store: Store, check: Callable[[], object]
) -> Iterator[CellSender]:
    """Within the block cells can be sent; at its end all that were are waited for."""
    sender, patience = CellSender(trackers, folder, store, check), HURRY
    sender.reach()
    sender.settle(START)
    try:
        yield sender
        patience = END
    finally:
        sender.settle(patience)
        for each in sender.senders.values():
            each.close()


def picture_of(run: Path, config: TrainConfig) -> np.ndarray:
    """Test images with the boxes that a run folder holds of them, H x W x 3 uint8. Raises an LchpError where they
    cannot be read."""
    predicted, data = read_frame(run, FRAME), config.data
    shown = shown_images(len(predicted), config.seed)
    layers = {name: list(boxes[shown][:, None]) for name, boxes in predicted.boxes.items()}
    if predicted.truth is not None:
        layers["ground_truth"] = [predicted.truth[i] for i in shown]
    pixels = read_pixels(_dataset(data.name, data.root, data.skip_bad), config, predicted, shown)
    return sample_grid(np.stack(pixels), layers, data.image_size)


@cache
def _dataset(name: str, root: str | None, skip_bad: bool) -> DataSet:
    return load(DataConfig(name=name, root=root, skip_bad=skip_bad))  # pyright: ignore[reportArgumentType]
