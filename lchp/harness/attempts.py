"""An unfinished training behind a URL: after every epoch its checkpoint goes to the storage, so that a lost node costs
an epoch at most.

Objects are named by their content, and MANIFEST, the last one written, says which of them are a work folder. So half an
upload is never used: the last whole one counts.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lchp.errors import RunError
from lchp.files import runs
from lchp.files.contents import checksum
from lchp.files.remote import Remote
from lchp.files.results import DamagedError, download, remove_left
from lchp.training.checkpoints import previous

MANIFEST = "MANIFEST"


@dataclass(frozen=True)
class Attempt:
    """What the storage has of the training in the folder `work`; `name` is what its objects begin with."""

    remote: Remote
    name: str
    work: Path

    def send(self) -> None:
        """Uploads what a training goes on from. Raises RemoteError, RunError."""
        files = {path.relative_to(self.work).as_posix(): checksum(path) for path in self._needed()}
        there = self.remote.list(self.name)
        for file, sha in files.items():
            if sha not in there:
                self.remote.upload(self.work / file, f"{self.name}/{sha}")
        manifest = {"epochs": len(runs.read_metrics(self.work)), "files": files}
        self.remote.write(f"{self.name}/{MANIFEST}", json.dumps(manifest).encode())
        for old in there.keys() - {*files.values(), MANIFEST}:
            self.remote.remove(f"{self.name}/{old}")

    def fetch(self) -> None:
        """Puts what an earlier attempt has sent in the place of `work`, where that is further than what this node has.
        What is damaged is left alone: the training begins anew. Raises RemoteError, OSError."""
        content = self.remote.read(f"{self.name}/{MANIFEST}")
        if content is None:
            return
        try:
            said = json.loads(content)
            epochs, files = int(said["epochs"]), {str(file): str(sha) for file, sha in said["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if self.work.exists() and self._epochs() >= epochs:
            return
        remove_left(self.work)
        made = Path(tempfile.mkdtemp(prefix=f".{self.work.name}-", dir=self.work.parent))
        try:
            download(self.remote, {file: (f"{self.name}/{sha}", sha) for file, sha in files.items()}, made)
            shutil.rmtree(self.work, ignore_errors=True)
            made.chmod(0o755)
            made.rename(self.work)
        except DamagedError:
            return
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def remove(self) -> None:
        """Removes it from the storage. Raises RemoteError."""
        self.remote.remove(self.name, folder=True)

    def _needed(self) -> list[Path]:
        """The files of `fetch`: without the checkpoints before the newest, and what loggers may be writing."""
        there = set((self.work / runs.CHECKPOINTS).glob("[!.]*.pt"))
        newest = there - {previous(path) for path in there}
        records = [self.work / name for name in (runs.CONFIG, runs.ENVIRONMENT, runs.METRICS)]
        return [path for path in (*records, *sorted(newest)) if path.is_file()]

    def _epochs(self) -> int:
        try:
            return len(runs.read_metrics(self.work))
        except RunError:
            return 0
