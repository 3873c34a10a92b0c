"""File systems that lack calls: what no result depends on is passed over, everything else is named."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

import pytest
import torch

from lchp.config import preset
from lchp.errors import RunError
from lchp.files import locks, runs
from lchp.files.filesystem import name_new, sync_folder
from lchp.files.locks import HeldError, locked
from lchp.training.checkpoints import load_checkpoint, previous, save_checkpoint

LACKING = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF]
REAL = [errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EDQUOT]


def refuse(monkeypatch: pytest.MonkeyPatch, code: int, *calls: str) -> None:
    """Lets calls of os (or fcntl.flock) fail as a file system without them does."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    for name in calls:
        monkeypatch.setattr(fcntl if name == "flock" else os, name, refused)


@pytest.mark.parametrize("code", LACKING, ids=errno.errorcode.get)
def test_what_a_file_system_lacks_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    refuse(monkeypatch, code, "fsync", "chmod", "link")
    for epoch in (1, 2):
        save_checkpoint(tmp_path / "c.pt", {"identity": "mine", "modules": {"w": torch.ones(3)}, "epoch": epoch})
    assert [load_checkpoint(p)["epoch"] for p in (tmp_path / "c.pt", previous(tmp_path / "c.pt"))] == [2, 1]
    runs.write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert runs.read_json(tmp_path / "a" / "b.json") == {"x": 1}
    runs.write_config(tmp_path, preset("parts"), new=True)
    with pytest.raises(FileExistsError):
        runs.write_config(tmp_path, preset("cub"), new=True)
    assert runs.read_config(tmp_path) == preset("parts")
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("code", REAL, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["fsync", "chmod"])
def test_what_is_wrong_is_said_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    refuse(monkeypatch, code, call)
    with pytest.raises(RunError) as error:
        runs.write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert str(error.value).startswith(f"{tmp_path / 'file'}: cannot be written ({os.strerror(code)}); ")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_listed_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EACCES, "open")
    sync_folder(tmp_path)
    refuse(monkeypatch, errno.ENOENT, "open")
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        refuse(monkeypatch, errno.EPERM, "link")
    for content in ("first", "second"):
        (tmp_path / content).write_text(content)
    name_new(str(tmp_path / "first"), tmp_path / "name")
    with pytest.raises(FileExistsError):
        name_new(str(tmp_path / "second"), tmp_path / "name")
    assert (tmp_path / "name").read_text() == "first"
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("code", [*LACKING, errno.ENOLCK], ids=errno.errorcode.get)
def test_without_locks_one_may_work_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    refuse(monkeypatch, code, "flock")
    with caplog.at_level(logging.WARNING), locked(tmp_path / "lock") as claim:
        claim.check()
        (tmp_path / "lock").rename(tmp_path / "other")
        with pytest.raises(RunError, match="is gone or was replaced"):
            claim.check()
    assert (
        f"{tmp_path}: this file system has no locks; start nothing on another machine that writes into this folder"
        in caplog.text
    )


def test_without_locks_a_living_process_of_this_machine_keeps_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.ENOTSUP, "flock")
    monkeypatch.setattr(locks, "_SAME_TIME", 0.01)
    path = tmp_path / "lock"
    with locked(path) as claim:
        with pytest.raises(HeldError, match=rf"held by a process that is still running \(pid {os.getpid()} on "):
            locked(path).__enter__()
        claim.check()
    assert path.read_text() == ""
    # of a process that was killed, whose number this one has got
    path.write_text(f"pid {os.getpid()} on {socket.gethostname()}, 1 x\n")
    with locked(path, remove=True):
        pass
    assert not path.exists()
    path.write_text(f"pid {2**22 - 1} on {socket.gethostname()}, x\n")  # of one that is gone
    with locked(path):
        path.write_text("pid 1 on another-machine, x\n")
    assert path.read_text() == "pid 1 on another-machine, x\n"  # who took it over keeps it
    with locked(path) as claim:
        path.write_text("pid 1 on another-machine, y\n")
        with pytest.raises(RunError, match="its lock is another's"):
            claim.check()


def test_without_locks_one_of_two_that_come_at_the_same_time_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.ENOTSUP, "flock")
    path = tmp_path / "lock"
    start = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    other = f"pid {os.getppid()} on {socket.gethostname()}, {start} x\n"
    monkeypatch.setattr(locks.time, "sleep", lambda _: path.write_text(other))
    with pytest.raises(HeldError, match=f"pid {os.getppid()} on "):
        locked(path).__enter__()
    assert path.read_text() == other


@pytest.mark.parametrize("code", REAL, ids=errno.errorcode.get)
def test_a_lock_that_cannot_be_taken_is_said_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse(monkeypatch, code, "flock")
    with pytest.raises(RunError) as error, locked(tmp_path / "lock"):
        pass
    assert str(error.value).startswith(f"{tmp_path / 'lock'}: cannot be written ({os.strerror(code)}); ")
