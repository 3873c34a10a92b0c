"""A run that trackers follow while it trains."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lchp.tracking import TrackerName
from lchp.tracking.feed import Ending, Feed, Picture, Subject
from lchp.tracking.sender import Sender

START, END, HURRY = 30.0, 60.0, 5.0
"""Seconds for which a tracker is waited for: before anything is trained, for each thing that is left to send at the
end, and where the training was stopped or failed."""


@dataclass(frozen=True)
class Followers:
    """The trackers that follow a run, each with its own thread. Nothing here raises or waits."""

    feeds: Sequence[tuple[Feed, Sender]]

    def __bool__(self) -> bool:
        return bool(self.feeds)

    def update(self) -> None:
        """The run folder has news."""
        for feed, sender in self.feeds:
            sender.put(feed.update)

    def picture(self, stage: str, picture: Picture) -> None:
        """A link has ended."""
        for feed, _ in self.feeds:
            feed.pictures[stage] = picture
        self.update()


@contextmanager
def followed(names: Sequence[TrackerName], subject: Callable[[TrackerName], Subject]) -> Iterator[Followers]:
    """Within the block trackers follow a run; at its start they have what an earlier session left unsent."""
    followers = Followers([(Feed(name, subject(name)), Sender(name)) for name in names])
    followers.update()
    _settle(followers, START)
    try:
        yield followers
    except BaseException as error:
        _close(followers, "stopped" if isinstance(error, KeyboardInterrupt) else "failed", HURRY)
        raise
    _close(followers, "done", END)


def _close(followers: Followers, ending: Ending, patience: float) -> None:
    for feed, sender in followers.feeds:
        sender.put(lambda feed=feed: feed.close(ending))
    _settle(followers, patience)
    for _, sender in followers.feeds:
        sender.close()


def _settle(followers: Followers, patience: float) -> None:
    for _, sender in followers.feeds:
        sender.settle(patience)
