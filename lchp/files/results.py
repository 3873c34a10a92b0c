"""Finished results in a storage behind a URL: the files of a run folder, and DONE, their checksums, as the last object.

So a result is whole, or it has no DONE, or its files are not those that DONE says; only what is whole comes into a
mirror. Names are those of a storage's folder: store/KIND/KEY/FILE.
"""

import hashlib
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from lchp.errors import RunError
from lchp.files.contents import checksum
from lchp.files.remote import Remote
from lchp.files.runs import CHECKPOINTS, DONE, make_folder, unwritable

SETTLE = 2.0
"""Seconds after which a result that seems damaged is looked at again: another sweep may just be uploading the same."""
ROUNDS = 6
"""Uploads of a result that another sweep uploads at the same time."""
AT_ONCE = 8
"""Results fetched at once."""
LEFT = 3600.0
"""Seconds after which the folder of a fetch that did not end is taken to be a killed process's."""


class DamagedError(RunError):
    """A result whose objects are not what DONE says."""


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path; DONE and unfinished temporary files aside."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DONE and not path.name.startswith("."):
            found[path.relative_to(folder).as_posix()] = checksum(path)
    return found


def is_read(name: str) -> bool:
    """Whether reports read a file of a run folder: all but its checkpoints."""
    return PurePosixPath(name).parts[0] != CHECKPOINTS


def put(remote: Remote, name: str, folder: Path) -> None:
    """Uploads a finished run folder, DONE last. Raises RemoteError.

    Another sweep may upload the same training's result at the same moment. Theirs and ours differ in times and host
    names: where the objects are a mixture, both wait for different times, and who comes first uploads again."""
    took = 0.0
    for attempt in range(ROUNDS):
        if attempt:
            time.sleep(random.uniform(0, 2 ** (attempt + 1) * took))
            if _agree(remote, name):
                return
        begin = time.monotonic()
        for file in (*json.loads((folder / DONE).read_bytes())["files"], DONE):
            remote.upload(folder / file, f"{name}/{file}")
        took = time.monotonic() - begin
        if is_whole(remote, name, folder):
            return


def _agree(remote: Remote, name: str) -> bool:
    """Whether the objects of a result are what its DONE says; of checkpoints, that they are there."""
    there, content = remote.list(name), remote.read(f"{name}/{DONE}")
    try:
        files = {} if content is None else _listed(content, name)
    except DamagedError:
        return False
    small = {file: remote.read(f"{name}/{file}") or b"" for file in filter(is_read, files)}
    same = all(hashlib.sha256(data).hexdigest() == files[file] for file, data in small.items())
    return bool(files) and files.keys() <= there.keys() and same


def is_whole(remote: Remote, name: str, folder: Path, *, checkpoints: bool = False) -> bool:
    """Whether the objects of a result are the files of a run folder; of checkpoints the size alone is looked at, but
    where `checkpoints` says otherwise. Raises RemoteError."""
    sizes, files = remote.list(name), json.loads((folder / DONE).read_bytes())["files"]
    if any(sizes.get(file) != (folder / file).stat().st_size for file in (*files, DONE)):
        return False
    looked_at = [DONE, *(file for file in files if checkpoints or is_read(file))]
    return all(remote.read(f"{name}/{file}") == (folder / file).read_bytes() for file in looked_at)


def fetch(remote: Remote, name: str, target: Path, *, light: bool) -> bool:
    """Brings a result into a mirror, as `target`, if there is one; whether there is. light: without its checkpoints,
    which must be there all the same. Raises DamagedError, RemoteError, and RunError where the mirror cannot be written.
    """
    try:
        return _fetch(remote, name, target, light=light)
    except DamagedError:
        time.sleep(SETTLE)
        return _fetch(remote, name, target, light=light)


def _fetch(remote: Remote, name: str, target: Path, *, light: bool) -> bool:
    content = remote.read(f"{name}/{DONE}")
    if content is None:
        return False
    files = _listed(content, name)
    wanted = {file: sha for file, sha in files.items() if is_read(file) or not light}
    if len(wanted) < len(files):
        there = remote.list(name)
        if lacking := [file for file in files if file not in there]:
            raise DamagedError(f"{lacking[0]} is missing")
    make_folder(target.parent)
    try:
        remove_left(target)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            download(remote, {file: (f"{name}/{file}", sha) for file, sha in wanted.items()}, made)
            (made / DONE).write_bytes(content)
            made.chmod(0o755)
            try:
                made.rename(target)
            except OSError:  # another process of this machine was quicker
                if not (target / DONE).is_file():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise unwritable(target, error) from None
    return True


def download(remote: Remote, files: Mapping[str, tuple[str, str]], folder: Path) -> None:
    """Fetches files into a folder: relative path -> object and SHA-256. Raises DamagedError, RemoteError, OSError."""
    for file, (name, sha) in files.items():
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise DamagedError(f"{file} is no file of a run folder")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if not remote.download(name, folder / file):
            raise DamagedError(f"{file} is missing")
        if checksum(folder / file) != sha:
            raise DamagedError(f"{file}: checksum differs")


def remove_left(target: Path) -> None:
    """Removes what fetches of killed processes left beside `target`."""
    for left in target.parent.glob(f".{target.name}-*"):
        if time.time() - left.stat().st_mtime > LEFT:
            shutil.rmtree(left, ignore_errors=True)


def _listed(content: bytes, name: str) -> dict[str, str]:
    """What a DONE object lists. Raises DamagedError."""
    try:
        done = json.loads(content)
        key, files = done["key"], dict(done["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{DONE} cannot be read: {error}") from None
    if key != PurePosixPath(name).name:
        raise DamagedError(f"{DONE} names the key {key}")
    if not all(isinstance(text, str) for pair in files.items() for text in pair):
        raise DamagedError(f"{DONE} cannot be read: expected texts")
    return files


def _has_sizes(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Whether the objects of the store, of these sizes, may be the files of a result in a mirror."""
    name = "/".join(folder.parts[-2:])
    try:
        files = _listed((folder / DONE).read_bytes(), name)
        return all(
            sizes.get(f"{name}/{file}") == (folder / file).stat().st_size
            if is_read(file)
            else f"{name}/{file}" in sizes
            for file in (*files, DONE)
        )
    except (OSError, DamagedError):
        return False


def bring_all(remote: Remote, mirror: Path) -> list[str]:
    """Makes a mirror hold what reports read of every result, and nothing that the storage does not hold any more, or
    in another size. Returns a line for each damaged one. Raises RemoteError."""
    sizes = remote.list("store")
    there = {PurePosixPath(name).parts[:2] for name in sizes if PurePosixPath(name).name == DONE}
    kept = {result for result in there if len(result) == 2 and ".." not in result}
    for folder in (mirror / "store").glob("[!.]*/[!.]*"):
        if folder.parts[-2:] not in kept or not _has_sizes(folder, sizes):
            shutil.rmtree(folder, ignore_errors=True)

    def bring(result: tuple[str, ...]) -> Iterable[str]:
        name = f"store/{'/'.join(result)}"
        try:
            if not (mirror / name).is_dir():
                fetch(remote, name, mirror / name, light=True)
        except DamagedError as error:
            yield f"{remote.under(name)}: {error}; it is damaged"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [line for lines in pool.map(lambda result: list(bring(result)), sorted(kept)) for line in lines]
