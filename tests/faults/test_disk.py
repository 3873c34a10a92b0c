"""Disks that fill up, are read-only or vanish: one line, exit status 2, nothing lost or left behind, and on it goes.

A disk here is a tmpfs or a bind mount in a mount namespace that a child process holds (`unshare`), seen from outside by
way of /proc. Where none may be made, what needs it is skipped; a limit on the size of files then stands for the full
disk, and renamed folders for the vanished one.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_records import analysis_script, write_run
from squares import small_config, small_flags, small_values, write_images

from lchp.cli import main
from lchp.config import TrainConfig, override, preset
from lchp.console import guarded
from lchp.data import images
from lchp.errors import RunError
from lchp.files import runs
from lchp.tracking.feed import Feed, Subject
from lchp.training.checkpoints import load_checkpoint
from lchp.training.run import train

INIT, REGRESS, REFINE = (f"{runs.CHECKPOINTS}/{name}.pt" for name in ("initialization", "regression", "refinement"))
ONE_THREAD = {"threads": 1}
"""Networks as small as these gain nothing by more, and lose much beside other programs."""


class Namespace:
    """A shell in a mount namespace of its own; `root`: its root folder, as seen from here."""

    def __init__(self) -> None:
        command = ["unshare", "--map-root-user", "--mount", "sh"]
        if shutil.which(command[0]) is None:
            pytest.skip("no unshare on this machine, so no file system can be mounted for a test")
        self.shell = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.root = Path(f"/proc/{self.shell.pid}/root")

    def run(self, command: str) -> str:
        """What the command says; empty for those that go well."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        said = []
        try:
            self.shell.stdin.write(f"{command}\necho end\n")
            self.shell.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.shell.stdout:
            if line == "end\n":
                return "".join(said)
            said.append(line)
        return "".join(said) or "the shell has ended"

    def mount(self, arguments: str, place: Path) -> Path:
        """Mounts something; where it is seen from here. Skips the test where that is not allowed."""
        place.mkdir(exist_ok=True)
        if said := self.run(f"mount {arguments} '{place}'"):
            pytest.skip(f"nothing can be mounted on this machine: {said.strip()}")
        return self.root / place.relative_to("/")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    found = Namespace()
    yield found
    found.shell.kill()
    found.shell.communicate()


@dataclass(frozen=True)
class Disk:
    """full(room): a context in which so many bytes more fit into `folder`, or, where it is no file system of its own
    (`mounted`), into any one file; reason: what the system then says."""

    folder: Path
    full: Callable[[int], AbstractContextManager[None]]
    reason: str
    mounted: bool


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    """A disk that can be made full: a small file system, or, anywhere, a limit on the size of every file."""
    return _tmpfs(request.getfixturevalue("namespace"), tmp_path) if request.param == "tmpfs" else _limited(tmp_path)


def _tmpfs(namespace: Namespace, tmp_path: Path) -> Disk:
    folder = namespace.mount("-t tmpfs -o size=16m tmpfs", tmp_path / "disk")

    @contextmanager
    def full(room: int) -> Iterator[None]:
        ballast = folder / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - room)
        yield
        ballast.unlink()

    return Disk(folder, full, "No space left on device", mounted=True)


def _limited(tmp_path: Path) -> Disk:
    @contextmanager
    def full(room: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return Disk(tmp_path, full, "File too large", mounted=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), classes=2, train=4, test=2)


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    train(small_config(root, ONE_THREAD), output=run)
    return run


def training(root: Path, run: Path, *more: str) -> list[str]:
    return ["train", *small_flags(small_values(root) | ONE_THREAD), "--output", str(run), "--no-forecast", *more]


def refusal(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line with which a program of status 2 has ended, below what it had shown before."""
    assert status == 2
    err = capsys.readouterr().err.replace("\r", "\n")
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if "error: " in line)
    assert err.rstrip().endswith(line)
    return line


def left_behind(folder: Path) -> list[str]:
    """Temporary files."""
    return [str(p) for p in folder.rglob(".*")]


def test_a_training_on_a_full_disk(disk: Disk, root: Path, straight: Path, capsys) -> None:
    run = disk.folder / "run"
    first, second = ((straight / name).stat().st_size for name in (INIT, REGRESS))
    # on the small disk the classifier fits, the localizer only in part; under the limit no checkpoint does
    with disk.full(2 * first + second if disk.mounted else first - 1000):
        line = refusal(capsys, main(training(root, run)))
        there = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
        assert runs.read_config(run) == small_config(root, ONE_THREAD)
        metrics = runs.read_metrics(run)
    assert f"cannot be written ({disk.reason}); " in line
    assert "--resume" in line
    assert left_behind(run) == []
    assert metrics, "an epoch was recorded before its checkpoint"
    if INIT in there:
        assert load_checkpoint(run / INIT)["epoch"] == 2
    else:
        assert INIT in line
    assert runs.PREDICTIONS not in there
    assert main(training(root, run, "--resume")) == 0
    assert (run / runs.PREDICTIONS).read_bytes() == (straight / runs.PREDICTIONS).read_bytes()


def interrupted(
    root: Path, run: Path, at: tuple[str, int], event: Callable[[], object], *, resume: bool = False
) -> int:
    """Exit status of a training during which `event` happens at the end of an epoch of a stage."""

    def on_epoch(metrics: dict[str, object]) -> None:
        if (metrics["stage"], metrics["epoch"]) == at:
            event()

    def body() -> int:
        train(small_config(root, ONE_THREAD), on_epoch, output=run, resume=resume)
        return 0

    return guarded(body, error="lchp: error")


def test_a_disk_that_turns_read_only(namespace: Namespace, root: Path, straight: Path, tmp_path: Path, capsys) -> None:
    """As ext4 does after an error of the disk."""
    inside = tmp_path / "disk"
    disk = namespace.mount("-t tmpfs -o size=16m tmpfs", inside)
    run = disk / "run"

    def turn(mode: str) -> None:
        assert namespace.run(f"mount -o remount,{mode} '{inside}'") == ""

    line = refusal(capsys, interrupted(root, run, ("initialization", 1), lambda: turn("ro")))
    assert "metrics.jsonl: cannot be written (Read-only file system); make the folder writable or name another" in line
    assert load_checkpoint(run / INIT)["epoch"] == 1
    assert [(m["stage"], m["epoch"]) for m in runs.read_metrics(run)] == [("initialization", 1)]
    for resume in ([], ["--resume"]):  # as long as it is
        line = refusal(capsys, main(training(root, run if resume else disk / "new", *resume)))
        assert "cannot be written (Read-only file system)" in line
    assert sorted(p.name for p in disk.iterdir()) == ["run"]
    turn("rw")
    assert left_behind(run) == []
    assert main(training(root, run, "--resume")) == 0
    assert (run / runs.PREDICTIONS).read_bytes() == (straight / runs.PREDICTIONS).read_bytes()


def test_a_disk_that_vanishes(namespace: Namespace, root: Path, straight: Path, tmp_path: Path, capsys) -> None:
    """Its mount point is then an empty folder, into which nothing must be written."""
    store, inside = tmp_path / "store", tmp_path / "disk"
    store.mkdir()
    disk = namespace.mount(f"--bind '{store}'", inside)

    def vanish() -> None:
        assert namespace.run(f"umount --lazy '{inside}'") == ""  # the lock of the run keeps it busy

    line = refusal(capsys, interrupted(root, disk, ("refinement", 1), vanish))
    assert line == (
        f"lchp: error: {disk}: the folder is gone or was replaced (lock: No such file or directory); is its disk still "
        "mounted? Once it is back, give the same command with --resume"
    )
    assert list(disk.iterdir()) == []
    namespace.mount(f"--bind '{store}'", inside)
    assert load_checkpoint(disk / REFINE)["epoch"] == 1
    assert main(training(root, disk, "--resume")) == 0
    assert (store / runs.PREDICTIONS).read_bytes() == (straight / runs.PREDICTIONS).read_bytes()


@pytest.mark.parametrize("at", [("initialization", 1), ("refinement", 2)])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_folder_that_goes_away(root: Path, straight: Path, tmp_path: Path, at, replaced: bool, capsys) -> None:
    run, aside = tmp_path / "there" / "run", tmp_path / "aside"

    def event() -> None:
        run.rename(aside)
        if replaced:
            run.write_text("somebody's own")

    line = refusal(capsys, interrupted(root, run, at, event))
    assert str(run) in line
    assert "gone or was replaced" in line or "cannot be written" in line
    if replaced:
        assert run.read_text() == "somebody's own"
        run.unlink()
    elif run.exists():  # after the last epoch its checkpoint is written once more
        assert not (run / runs.SUMMARY).exists()
        shutil.rmtree(run)
    aside.rename(run)
    assert main(training(root, run, "--resume")) == 0
    assert (run / runs.PREDICTIONS).read_bytes() == (straight / runs.PREDICTIONS).read_bytes()


def test_temporary_files_of_a_killed_training_go_when_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / runs.CHECKPOINTS).mkdir()
    killed = [tmp_path / ".metrics.jsonl-a1b2c3d4", tmp_path / runs.CHECKPOINTS / ".initialization.pt-_x9y8z7w"]
    others = [tmp_path / ".note-to-myself", tmp_path / runs.CHECKPOINTS / ".initialization.pt"]
    for path in (*killed, *others):
        path.write_text("half")
    runs.write_config(tmp_path, preset("parts"))
    assert not [path for path in killed if path.exists()]
    assert [path.read_text() for path in others] == ["half"] * 2


def test_a_folder_is_synced_once_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that is not on disk is undone by a crash; so is the name of a new folder."""
    done: list[tuple[str, bytes]] = []
    path = tmp_path / "a" / "file"

    def fsync(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(tmp_path)
        done.append((str(place).partition("-")[0], path.read_bytes() if path.exists() else b""))

    path.parent.mkdir()
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    runs.write_atomically(path, lambda file: file.write(b"new"))
    assert done == [("a/.file", b"old"), ("a", b"new")]
    del done[:]
    runs.write_atomically(tmp_path / "a" / "b" / "c" / "other", lambda file: file.write(b"new"))
    assert [place for place, _ in done] == ["a/b", "a", "a/b/c/.other", "a/b/c"]


@pytest.mark.parametrize("format", ["jsonl", "csv", "coco", "yolo", "labelstudio"])
def test_predictions_on_a_full_disk(disk: Disk, format: str, root: Path, straight: Path, capsys) -> None:
    out = disk.folder / "boxes"
    command = ["predict", str(root), "--run", str(straight), "--output", str(out), "--format", format]
    command += ["--pictures"] if format == "yolo" else []  # whose own files are small
    with disk.full(0 if disk.mounted else 500):
        line = refusal(capsys, main(command))
        assert not out.exists()
    assert line.startswith(f"lchp: error: {out}: cannot be written ({disk.reason}); ")
    assert left_behind(disk.folder) == []
    assert main(command) == 0
    assert any(out.iterdir())


@pytest.fixture
def nowhere(namespace: Namespace, tmp_path: Path) -> Path:
    """A read-only folder."""
    return namespace.mount("-t tmpfs -o ro,size=1m tmpfs", tmp_path / "disk")


def test_predictions_into_a_read_only_folder(nowhere: Path, root: Path, straight: Path, capsys) -> None:
    line = refusal(capsys, main(["predict", str(root), "--run", str(straight), "--output", str(nowhere / "boxes")]))
    assert line.startswith(f"lchp: error: {nowhere / 'boxes'}: cannot be written (Read-only file system); make the")


def test_an_export_to_a_full_disk(disk: Disk, straight: Path, capsys) -> None:
    path = disk.folder / "model.pt"
    command = ["export", "--run", str(straight), "--output", str(path)]
    assert main(command) == 0
    before = path.read_bytes()
    capsys.readouterr()
    with disk.full(8192):
        line = refusal(capsys, main(command))
    assert line.startswith(f"lchp: error: {path}: cannot be written ({disk.reason}); ")
    assert path.read_bytes() == before
    assert left_behind(disk.folder) == []


def test_an_export_into_a_read_only_folder(nowhere: Path, straight: Path, capsys) -> None:
    line = refusal(capsys, main(["export", "--run", str(straight), "--output", str(nowhere / "model.pt")]))
    assert line.startswith(f"lchp: error: {nowhere / 'model.pt'}: cannot be written (Read-only file system); ")


def test_tables_on_a_full_disk(disk: Disk, tmp_path: Path, capsys) -> None:
    """Each file is that of before or the new one; none is half of one."""
    records, out = tmp_path / "records", disk.folder / "tables"
    write_run(records / "a", preset("parts"))
    command = ["--storage", str(records), "--out", str(out), "--table", "3", "4"]
    tables = analysis_script("make_tables").main
    assert tables(command) == 0
    old = {p.name: p.read_bytes() for p in out.iterdir()}
    write_run(records / "b", override(preset("parts"), {"refinement.tau": 0.5}))
    with disk.full(0 if disk.mounted else len(old["table_4.html"]) - 100):
        line = refusal(capsys, tables(command))
        halted = {p.name: p.read_bytes() for p in out.iterdir()}
    assert line.startswith(f"error: {out}/")
    assert f"cannot be written ({disk.reason}); " in line
    assert left_behind(out) == []
    assert tables(command) == 0
    new = {p.name: p.read_bytes() for p in out.iterdir()}
    assert old.keys() == halted.keys() == new.keys()
    assert all(halted[name] in (old[name], new[name]) for name in halted)
    assert disk.mounted or any(halted[name] != old[name] for name in halted)


def test_tables_into_a_read_only_folder(nowhere: Path, tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "records", preset("parts"))
    out = nowhere / "tables"
    line = refusal(capsys, analysis_script("make_tables").main(["--storage", f"{tmp_path}/records", "--out", f"{out}"]))
    assert line.startswith(f"error: {out}: cannot be written (Read-only file system); ")


def test_an_image_cache_on_a_disk_that_fills_up(
    disk: Disk, root: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """There was room when it was begun. A store into a map of the file would end the process by SIGBUS here."""
    folder, run = disk.folder / "cache", tmp_path / "run"
    command = [*training(root, run), "--data.cache", str(folder)]
    plenty = SimpleNamespace(free=10**9)
    with monkeypatch.context() as patched, disk.full(16384):
        patched.setattr(images.shutil, "disk_usage", lambda _: plenty)
        line = refusal(capsys, main(command))
    assert line == (
        f"lchp: error: data.cache = {str(folder)!r}: cannot be written ({disk.reason}); name another or say off"
    )
    assert list((folder / "images").iterdir()) == []
    assert not run.exists()
    assert main(command) == 0
    assert (run / runs.PREDICTIONS).read_bytes() == (straight / runs.PREDICTIONS).read_bytes()


def test_an_image_cache_that_does_not_fit(namespace: Namespace, root: Path, tmp_path: Path, capsys) -> None:
    folder = namespace.mount("-t tmpfs -o size=32k tmpfs", tmp_path / "disk")
    line = refusal(capsys, main([*training(root, tmp_path / "run"), "--data.cache", str(folder)]))
    assert "data.cache: 0.0 GB are needed" in line
    assert not any((folder / "images").iterdir())


def test_a_board_on_a_full_disk(disk: Disk) -> None:
    """It neither waits for ever nor forgets what it could not write."""
    run = disk.folder / "run"
    runs.make_folder(run)
    runs.write_json(run / runs.ENVIRONMENT, {"class_names": ["a"]})
    subject = Subject(run, "run", None, TrainConfig(), {}, run / runs.TRACKERS / "tensorboard.json", run, lambda: None)
    feed = Feed("tensorboard", subject)
    feed.update()
    runs.append_metrics(run, {"stage": "refinement", "epoch": 1, **{f"loss_{i}": 0.5 for i in range(300)}})
    with disk.full(0 if disk.mounted else 4096), pytest.raises(RunError) as error:
        feed.update()
    assert str(error.value).startswith(f"{run / 'tensorboard'}: cannot be written ({disk.reason}); ")
    feed.update()
    assert sum(path.read_bytes().count(b"refinement/loss_299") for path in (run / "tensorboard").iterdir()) == 1
