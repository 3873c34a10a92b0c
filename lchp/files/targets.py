"""Paths that a user names to be written, by any command: looked at before the work, so that nothing else is lost."""

import json
import mmap
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from lchp.errors import ConfigError
from lchp.files.runs import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    PREDICTIONS,
    SECOND_CLASSIFIER,
    SUMMARY,
    TRACKERS,
)

OF_A_RUN = frozenset({CONFIG, METRICS, PREDICTIONS, SUMMARY, ENVIRONMENT, SECOND_CLASSIFIER, CHECKPOINTS, TRACKERS})
"""What lies in a run folder: only training and evaluation write it."""
KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)

Own = Callable[[Path], bool]
"""Whether a file is an earlier one of the command that is to replace it."""


def as_path(text: str) -> Path:
    """A path as a user typed it: `~` is the home folder (and stays where there is no such user). Raises ConfigError for
    an empty one, which would be the current folder, and for a URL."""
    if not text.strip():
        raise ConfigError("a path is empty; name one (. is the current folder)")
    if "://" in text:
        raise ConfigError(f"{text}: is a URL, and a path of this machine is expected here")
    return Path(os.path.expanduser(text))


def require_file(
    target: Path, option: str, own: Own | None = None, what: str = "", inputs: Iterable[Path] = ()
) -> Path:
    """The target, if the command may write it; ConfigError, one line, if not.

    It may where there is nothing yet, an empty file, or an earlier one of its own: a regular file that `own` knows
    (`what` is its name), or any that has the name where the command alone uses such names (`own` None). Never a link, a
    folder, a device, a pipe, one of the command's `inputs`, or what a run folder consists of.
    """
    said = f"--{option} {target}"
    _refuse_part_of_run(target, said)
    try:
        found = target.lstat()
    except FileNotFoundError:
        return target
    except OSError as error:
        raise ConfigError(f"{said}: cannot be written ({error.strerror})") from None
    kind = next((name for of, name in KINDS if of(found.st_mode)), None)
    if kind is not None:
        raise ConfigError(f"{said}: is {kind}; name a file")
    if any(_same(target, one) for one in inputs):
        raise ConfigError(f"{said}: is what this command reads; name another file")
    if own is not None and found.st_size and not _owns(own, target):
        raise ConfigError(f"{said}: is there already and is no {what}; name another file, or remove it")
    return target


def require_new_folder(target: Path, option: str = "output") -> Path:
    """The target, if it is not there yet or an empty folder; ConfigError, one line, if not (or if it is a link)."""
    said = f"--{option} {target}"
    _refuse_part_of_run(target, said)
    if os.path.lexists(target):
        if target.is_symlink():
            raise ConfigError(f"{said}: is a link; name a new folder")
        if not target.is_dir():
            raise ConfigError(f"{said}: is a file; name a new folder")
        if any(target.iterdir()):
            raise ConfigError(f"{said}: is there already and not empty; name another folder")
    return target


def json_of(*keys: str) -> Own:
    """Whether a file is a JSON object that has these keys."""

    def own(path: Path) -> bool:
        value = json.loads(path.read_bytes())
        return isinstance(value, dict) and value.keys() >= set(keys)

    return own


def holding(*texts: bytes) -> Own:
    """Whether a file, which is not read into memory, contains all of these."""

    def own(path: Path) -> bool:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(text) >= 0 for text in texts)

    return own


def claim(folder: Path, stem: str, suffix: str, again: str) -> Path:
    """Makes an empty file `folder`/`stem``suffix` and returns its path, or one of a name beside it where that name is
    taken: no file of several whose names become the same, on whatever file system, replaces another.

    stem: relative, with `/`. again: is put behind the stem until the name is free, and `_` behind a folder of its whose
    name a file has. Raises OSError.
    """
    *parents, name = stem.split("/")
    for part in parents:
        while (folder / part).exists() and not (folder / part).is_dir():
            part += "_"
        folder /= part
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        file = folder / f"{name}{suffix}"
        try:
            file.open("x").close()
        except FileExistsError:
            name += again
        else:
            return file


def _refuse_part_of_run(target: Path, said: str) -> None:
    try:
        place = target.parent.resolve() / target.name
    except (OSError, RuntimeError) as error:  # a link to itself
        raise ConfigError(f"{said}: cannot be written ({error})") from None
    for folder in place.parents:
        if place.relative_to(folder).parts[0] in OF_A_RUN and (folder / CONFIG).is_file():
            raise ConfigError(f"{said}: belongs to the run folder {folder}; name another")


def _same(target: Path, other: Path) -> bool:
    try:
        return target.samefile(other)
    except OSError:
        return False


def _owns(own: Own, target: Path) -> bool:
    try:
        return own(target)
    except (OSError, ValueError, RecursionError):  # not to be read, or not of the kind
        return False
