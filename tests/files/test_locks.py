"""Lock files: one holder, whose death or end sets them free, and by which a folder is known again."""

import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lchp.errors import RunError
from lchp.files import filesystem, locks
from lchp.files.locks import HeldError, locked


def test_a_second_holder_is_refused_by_name(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(HeldError) as error, locked(tmp_path / "lock"):
        pass
    assert str(error.value) == (
        f"{tmp_path / 'lock'}: held by a process that is still running (pid {os.getpid()} on {socket.gethostname()}); "
        "wait for its end, or name another folder"
    )
    with locked(tmp_path / "lock"):
        pass


def test_a_lock_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"lock: cannot be written \(No such file"), locked(tmp_path / "gone" / "lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_goes_with_its_holder_where_that_is_wished(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("pid 1 on nowhere, 00\n")  # of one that was killed
    with locked(tmp_path / "lock", remove=True):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()
    with locked(tmp_path / "lock", remove=True):  # what stands there by now is another's
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").write_text("another's")
    assert (tmp_path / "lock").read_text() == "another's"


def test_a_lock_that_was_removed_while_it_was_opened_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def late(path: Path) -> tuple[int, bool]:
        handle, held = filesystem.lock(path)
        if not seen:
            path.unlink()
        seen.append(held)
        return handle, held

    monkeypatch.setattr(locks, "lock", late)
    with locked(tmp_path / "lock") as claim:
        claim.check()
    assert seen == [True, True]


def test_a_folder_that_was_moved_or_replaced_is_no_longer_claimed(tmp_path: Path) -> None:
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    with locked(folder / "lock") as claim:
        claim.check()
        folder.rename(moved)
        with pytest.raises(RunError) as error:
            claim.check()
        assert str(error.value) == (
            f"{folder}: the folder is gone or was replaced (lock: No such file or directory); is its disk still "
            "mounted? Once it is back, give the same command with --resume"
        )
        folder.mkdir()
        with locked(folder / "lock"), pytest.raises(RunError, match="its lock is another's"):
            claim.check()
        (folder / "lock").unlink()
        folder.rmdir()
        moved.rename(folder)
        claim.check()


def test_what_a_killed_process_leaves_behind_is_waited_for(tmp_path: Path) -> None:
    """Its forked children have its locks too, for seconds."""
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    begin = time.monotonic()
    with locked(tmp_path / "lock"):
        (tmp_path / "lock").write_text(f"pid {gone} on another.machine, 00\n")
        with pytest.raises(HeldError), locked(tmp_path / "lock"):
            pass
    assert time.monotonic() - begin < locks._ORPHANED
    free, held = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path / "lock"):
            (tmp_path / "lock").write_text(f"pid {gone} on {socket.gethostname()}, 00\n")
            held.set()
            free.wait(10)

    child = threading.Thread(target=hold)
    child.start()
    assert held.wait(10)
    threading.Timer(0.3, free.set).start()
    with locked(tmp_path / "lock") as claim:
        claim.check()
    child.join()
