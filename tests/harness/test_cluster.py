"""Starting, watching and leaving Ray, without starting it: authentication, limits, signals, what is left behind."""

import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killed
import pytest
import small

from lchp.errors import ConfigError, RunError, reason
from lchp.harness import cluster as startup
from lchp.harness import limits, main, reaper, watch
from lchp.system.interrupt import Interrupted

# --- reasons

MONITOR = """Failure # 1 (occurred at 2026-11-26_11-00-00)
ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: 12ab) where the task (actor ID: 34cd, name=ImplicitFunc.__init__, pid=7, memory
used=0.26GB) was running was 2.00GB / 62.80GB (0.0318), which exceeds the memory usage threshold of 0.02. Ray killed
this worker (ID: 56ef) because it was the most recently scheduled task; to see more information use `ray logs`.
Top 10 memory users:
PID\tMEM(GB)\tCOMMAND
7\t0.26\tray::ImplicitFunc.train
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/ray-core/oom.html"""
MONITOR_260 = """ray.exceptions.OutOfMemoryError: 1 worker(s) were killed due to the node running low on memory. Memory
on the node (IP: 10.0.0.1, ID: 12ab) was 2.0GB used / 62.8GB limit (0.0318)
OOM kill reason: Memory usage 9B exceeded threshold of 8B
Ray killed 1 worker(s) based on the killing policy
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io""".replace(
    "Memory\n", "Memory "
)
LOW = "Ray ended it since the machine's memory ran low"
TRACEBACK = """ray.exceptions.RayTaskError(RuntimeError): ray::ImplicitFunc.train() (pid=7, ip=10.0.0.1)
  File "trainable.py", line 331, in entrypoint
    raise RuntimeError(text)
RuntimeError: CUDA error: device-side assert triggered
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MONITOR, f"{LOW}: 2.00GB / 62.80GB (0.0318), threshold of 0.02"),
        (MONITOR_260, f"{LOW}: 2.0GB used / 62.8GB limit (0.0318), Memory usage 9B exceeded threshold of 8B"),
        (TRACEBACK, "RuntimeError: CUDA error: device-side assert triggered"),
        ("Could not start:\n  no space left\nsee the manual", "Could not start: no space left"),
        ("2 validation errors for Node\nport\n  not a number", "2 validation errors for Node: port: not a number"),
        ("one line", "one line"),
        ("", ""),
    ],
)
def test_the_line_that_says_why_is_shown(text: str, said: str) -> None:
    assert reason(text) == said


def test_the_reason_of_an_exception_names_its_cause() -> None:
    error = RuntimeError("Failed to connect\nto something")
    error.__cause__ = OSError(28, "No space left on device")
    assert reason(error) == "Failed to connect ([Errno 28] No space left on device)"
    assert reason(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MONITOR, "2.00GB / 62.80GB (0.0318)"),
        ("Traceback\nOSError: [Errno 28] No space left on device\n", "No space left on device, in /storage/work"),
        ("IsADirectoryError: [Errno 21] Is a directory: '/a'\n", "IsADirectoryError: [Errno 21] Is a directory: '/a'"),
        ("The actor is dead because its worker process has died. Causes:\n(1) ...", "was killed or crashed"),
        ("", "was killed or crashed"),
    ],
)
def test_what_a_trial_died_of(tmp_path: Path, text: str, said: str) -> None:
    from lchp.harness.tune import describe_error

    file = tmp_path / "error.txt"
    file.write_text(text)
    trial: Any = SimpleNamespace(error_file=str(file), config={"setting": {"work": "/storage/work"}})
    assert said in describe_error(trial)
    assert "\n" not in describe_error(trial)


# --- limits


def cgroups(folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], cores: int = 8) -> None:
    (folder / "own").write_text(own)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    monkeypatch.setattr(limits, "OWN", folder / "own")
    monkeypatch.setattr(limits, "CGROUPS", folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)


@pytest.mark.parametrize(
    ("own", "files", "cores", "expected"),
    [
        ("0::/\n", {}, 3, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 8, 2),  # docker --cpus 2.5
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 8, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 8, 3),  # a batch system's
        ("0::/host/path\n", {"cpu.max": "200000 100000"}, 8, 2),  # the container's own, at the top
        ("1:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 8, 4),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 8),
    ],
)
def test_affinity_and_quotas_decide_how_many_cores_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], cores: int, expected: int
) -> None:
    cgroups(tmp_path, monkeypatch, own, files, cores)
    assert limits.cpus() == expected


def test_too_few_processes_are_named_before_ray_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups(tmp_path, monkeypatch, "0::/\n", {"pids.max": "max", "pids.current": "40"})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert limits.free_processes() == math.inf
    startup._require_room()
    (tmp_path / "pids.max").write_text("100")
    with pytest.raises(ConfigError, match=r"about 250 processes and threads, but only 60 more are allowed here"):
        startup._require_room()
    (tmp_path / "pids.max").write_text("max")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits._threads_of(os.getuid()) + 10, 10**6))
    with pytest.raises(ConfigError, match=r"ulimit -u"):
        startup._require_room()
    assert "more processes and threads allowed (ulimit -u" in limits.tight()


def open_in(space: int, said: Path) -> None:
    """As a program whose address space is limited would; what it says goes into a file."""
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    try:
        startup._require_room()
    except ConfigError as error:
        said.write_text(str(error))


def test_too_little_address_space_is_named_before_ray_is_started(tmp_path: Path) -> None:
    process = killed.start(open_in, 5_000_000 * 2**10, tmp_path / "said")
    process.join(100)
    assert process.exitcode == 0
    said = (tmp_path / "said").read_text()
    assert "address space, but only 4.8 are allowed here; raise the limit (ulimit -v)" in said


# --- what is left behind


def writer(folder: Path, mode: str = "w") -> subprocess.Popen[bytes]:
    """A process in a session of its own with a file of the folder open."""
    (folder / "session_1").mkdir(exist_ok=True)
    (folder / "session_1" / "log").touch()
    code = f"import time; f = open({str(folder / 'session_1' / 'log')!r}, {mode!r}); print(flush=True); time.sleep(200)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_processes_that_write_to_rays_folder_are_ended_and_no_others(tmp_path: Path) -> None:
    ours, reader = writer(tmp_path), writer(tmp_path, "r")
    try:
        assert reaper.users(tmp_path) == [ours.pid]
        reaper.reap(tmp_path)
        assert ours.wait(60) == -signal.SIGKILL
        assert reader.poll() is None
    finally:
        for process in (ours, reader):
            process.kill()
            process.communicate()


def die(parent: Path, said: Path) -> None:
    """Ends as by a signal that nobody can handle, with a process of another session that writes to Ray's folder."""
    startup._short_folder = lambda: str(parent)
    with startup._folder_of_ray(guarded=True) as folder:
        said.write_text(f"{writer(folder).pid} {folder}")
        os.kill(os.getpid(), signal.SIGKILL)


def test_whatever_ends_the_program_nothing_of_ray_is_left(tmp_path: Path) -> None:
    process = killed.start(die, tmp_path, tmp_path / "said")
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    pid, folder = (tmp_path / "said").read_text().split()
    deadline = time.monotonic() + 100
    while Path(folder).exists() or reaper.users(Path(folder)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "python" not in _command(int(pid))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_folders_of_killed_programs_are_removed_with_and_without_their_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_short_folder", lambda: str(tmp_path))
    old = time.time() - 2 * startup.YOUNG
    for name, inside in {
        "lchp-aaaaaaa1": ["lock", "session_1/logs/a"],
        "lchp-aaaaaaa2": ["session_1/logs/a"],
        "lchp-aaaaaaa3": [],
        "lchp-results8": ["lock", "notes.txt"],  # somebody's own
        "lchp-mine": ["lock"],
    }.items():
        (tmp_path / name).mkdir()
        for part in inside:
            path = tmp_path / name / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for path in (*(tmp_path / name).rglob("*"), tmp_path / name):
            os.utime(path, (old, old))
    (tmp_path / "lchp-aaaaaaa4").mkdir()  # its program may be about to take the lock
    with startup._folder_of_ray(guarded=False) as folder:
        assert (folder / startup.LOCK).exists()
        left = {p.name for p in tmp_path.iterdir()} - {folder.name}
    assert left == {"lchp-results8", "lchp-mine", "lchp-aaaaaaa4"}
    assert not folder.exists()


# --- signals, and a Ray that dies


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes that Ray was left, which takes its time: three more signals come meanwhile."""
    done: list[str] = []

    def leave(*_: Any, **__: Any) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signum)
        done.append("left")

    monkeypatch.setattr(startup, "_leave_ray", leave)
    return done


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_block_once(tmp_path: Path, left: list[str], signum: int, status: int) -> None:
    before = [signal.getsignal(s) for s in startup.SIGNALS]
    with pytest.raises(Interrupted) as error, startup._interruptible(startup._End(tmp_path), own=True):
        signal.raise_signal(signum)
    assert error.value.status == status
    assert left == ["left"]
    assert [signal.getsignal(s) for s in startup.SIGNALS] == before


@pytest.mark.parametrize("impatient", [False, True])
def test_a_signal_lets_trainings_end_first_and_a_second_one_does_not(
    tmp_path: Path, left: list[str], impatient: bool
) -> None:
    def let_stop() -> None:
        assert left == []
        if impatient:
            signal.raise_signal(signal.SIGINT)
        left.append("let stop")

    end = startup._End(tmp_path)
    with pytest.raises(Interrupted) as error, startup._interruptible(end, own=True, before_leaving=let_stop):
        signal.raise_signal(signal.SIGTERM)
    assert error.value.status == 143
    assert left == (["left"] if impatient else ["let stop", "left"])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_ray_that_dies_ends_the_block_with_one_line(tmp_path: Path, left: list[str], elsewhere: bool) -> None:
    def body() -> None:
        end = startup._End(tmp_path)
        with startup._interruptible(end, own=True, before_leaving=lambda: left.append("waited for nothing")):
            threading.Thread(target=end.ray_is_gone, args=("Ray's raylet ended",), daemon=True).start()
            for _ in range(6000):
                time.sleep(0.01)
        raise AssertionError("went on")

    def run() -> None:
        if elsewhere:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(body).result()
        else:
            body()

    with pytest.raises(RunError, match=r"^Ray's raylet ended; finished epochs are kept, go on by --resume$"):
        run()
    assert left == ["left"]


@pytest.mark.usefixtures("left")
def test_an_error_of_ours_stays_and_one_of_rays_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^ours$"), startup._interruptible(startup._End(tmp_path), own=True):
        raise RunError("ours")
    foreign = type("RaySystemError", (Exception,), {"__module__": "ray.exceptions"})
    with (
        pytest.raises(RunError, match=r"^Ray failed: lost; fin"),
        startup._interruptible(startup._End(tmp_path), own=True),
    ):
        raise foreign("lost\nmore")


def test_the_watch_notices_each_way_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    look = watch.Watch(lambda _: None)
    look.stop()
    assert look.fault() is None
    clock[0] += watch.START + 1
    assert look.fault() == "Ray has not started within 240 s"
    states, raylet = {"me": 0, "other": watch.DEAD}, SimpleNamespace(returncode=None, poll=lambda: raylet.returncode)
    look._processes, look._head, look._node, look._heard = {"raylet": raylet}, lambda: states, "me", clock[0]
    assert look.fault() is None  # another node's death is no end
    states["me"] = watch.DEAD
    assert look.fault() == "Ray's raylet on this machine ended"
    states["me"] = 0

    def silent() -> Any:
        raise ConnectionError("no answer\nmore")

    look._head = silent
    assert look.fault() is None  # not yet
    clock[0] += watch.SILENCE + 1
    assert look.fault() == "the head of Ray has not answered for 31 s (no answer)"
    raylet.returncode = -9
    assert look.fault() == "Ray's raylet on this machine ended (exit status -9)"


# --- joining


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Iterator[str]:
    """What answers as Ray's head does when it is asked for its nodes; a parameter is the token that it demands."""
    import grpc
    import ray  # noqa: F401
    from ray.core.generated import gcs_service_pb2 as messages

    demanded = getattr(request, "param", None)

    def answer(_: Any, context: Any) -> Any:
        said = dict(context.invocation_metadata()).get("authorization")
        if demanded is not None and said != f"Bearer {demanded}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return messages.GetAllNodeInfoReply()  # pyright: ignore[reportAttributeAccessIssue]

    server = grpc.server(ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(
        answer,
        messages.GetAllNodeInfoRequest.FromString,  # pyright: ignore[reportAttributeAccessIssue]
        messages.GetAllNodeInfoReply.SerializeToString,  # pyright: ignore[reportAttributeAccessIssue]
    )
    service = grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"GetAllNodeInfo": method})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_head_without_a_token_is_joined_without_one(head: str, home: Path, tmp_path: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("t" * 32)  # of another time
    with startup._settings(head, tmp_path):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("head", ["t" * 32], indirect=True)
@pytest.mark.parametrize("place", ["home", "variable", "path"])
def test_a_head_that_demands_a_token_gets_the_users(
    head: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    refused = r"could not be joined: it asks for a token, and there is none here .*RAY_AUTH_TOKEN"
    with pytest.raises(ConfigError, match=refused), startup._settings(head, tmp_path):
        pass
    file = home / ".ray" / "auth_token" if place == "home" else home / "elsewhere"
    file.parent.mkdir(exist_ok=True)
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
    else:
        file.write_text("t" * 32)
    if place == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with startup._settings(head, tmp_path):
        assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "u" * 32)
    with pytest.raises(ConfigError, match=r"the token that is here is not the one"), startup._settings(head, tmp_path):
        pass


@pytest.mark.usefixtures("home")
def test_an_address_where_nothing_or_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(watch, "ANSWER", 0.5)
    # other tests and programs may have a Ray here
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"{address} could not be joined: .*no head of Ray"):
            startup._require_answer(address)
    with pytest.raises(ConfigError, match=rf"{address} could not be joined: .*refused"):
        startup._require_answer(address)
    with pytest.raises(ConfigError, match=r"cluster at auto could not be joined: Could not find any running Ray"):
        startup._require_answer("auto")


def test_a_sweep_on_a_cluster_that_is_not_there_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, storage = small.make_folder(tmp_path / "images"), tmp_path / "results"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in small.flags(root).items()]
    where = ["--storage", str(storage), "--address", "127.0.0.1:1"]
    assert main("grid", lambda _: [{"refinement.crop_margin": 0.1}], argv=[*flags, *where]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the Ray cluster at 127.0.0.1:1 could not be joined")
    assert not (storage / "sweeps" / "grid" / "sweep.json").exists()  # the same command may be given again


def test_a_ray_of_our_own_keeps_its_token_out_of_the_home_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with startup._settings(None, tmp_path):
        mode, token = os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
    assert mode == "token"
    assert len(token) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    with startup._settings(None, tmp_path):
        assert os.environ["RAY_AUTH_TOKEN"] != token
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with startup._settings(None, tmp_path):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert not (home / ".ray").exists()


def test_without_a_home_ray_gets_its_own_folder_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(_: int) -> Any:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")
    with startup._settings(None, tmp_path):
        assert os.environ["HOME"] == str(tmp_path)
    assert "HOME" not in os.environ


def test_a_file_in_the_way_of_ray_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    startup._require_ray_itself()
    (tmp_path / "ray.py").touch()
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "ray.py")))
    with pytest.raises(ConfigError, match=r"ray\.py: is imported in place of the package ray; rename it"):
        startup._require_ray_itself()
