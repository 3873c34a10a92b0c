"""Storages behind a URL, as reports read them: what they need of it, brought into a mirror on this machine's disk."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from lchp.files.locks import LOCK
from lchp.files.marks import holder_of, is_fresh
from lchp.files.remote import Remote, Storage
from lchp.files.results import bring_all
from lchp.files.runs import DATABASE, SWEEP, write_atomically


def local(storages: Iterable[Storage]) -> tuple[dict[Path, Storage], list[str]]:
    """The folders of storages, each with its storage, and a line for each result behind a URL that is damaged. Raises
    ConfigError for a URL that cannot be read, RemoteError."""
    places, problems = dict[Path, Storage](), list[str]()
    for storage in dict.fromkeys(storages):
        if isinstance(storage, Remote):
            storage.check(write=False)
            mirror = storage.mirror("reports")
            mirror.mkdir(parents=True, exist_ok=True)
            problems += bring_all(storage, mirror)
            _bring_sweeps(storage, mirror)
            places[mirror] = storage
        else:
            places[Path(storage)] = storage
    return places, problems


def as_named(text: str, places: Mapping[Path, Storage]) -> str:
    """A message with the URL, less its query, in place of its mirror's folder, which nobody has named."""
    for mirror, storage in places.items():
        if isinstance(storage, Remote):
            text = text.replace(str(mirror), storage.url.partition("?")[0])
    return text


def _bring_sweeps(remote: Remote, mirror: Path) -> None:
    """The records of sweeps, the studies of searches, and who runs them."""
    there = [name for name in remote.list("sweeps") if len(PurePosixPath(name).parts) == 2 and ".." not in name]
    names = {PurePosixPath(name).parts[0] for name in there} | {f.name for f in (mirror / "sweeps").glob("*")}
    for name in sorted(names):
        for file in (SWEEP, DATABASE):
            remote.bring(f"sweeps/{name}/{file}", mirror / "sweeps" / name / file)
        held, lock = holder_of(remote, f"sweeps/{name}/{LOCK}"), mirror / "sweeps" / name / LOCK
        if held is not None and is_fresh(held[1]):  # as a lock file says it
            text = held[0]
            write_atomically(lock, lambda file, text=text: file.write(f"{text}\n".encode()))
        else:
            lock.unlink(missing_ok=True)
