"""Starting, joining and leaving Ray, quietly."""

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lchp.errors import ConfigError, RunError, reason
from lchp.files.locks import locked
from lchp.harness import reaper
from lchp.harness.limits import address_space, cpus, free_processes, tight
from lchp.harness.reaper import reap
from lchp.harness.watch import Watch, nodes_of
from lchp.system.interrupt import SIGNALS, Interrupted

log = logging.getLogger(__name__)

QUIET = {
    "GRPC_VERBOSITY": "ERROR",  # else the watch's channel notes on the terminal that Ray has ended
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; lchp.harness.display draws instead
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning per worker
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build an environment per worker
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per trial, for notices that the schedule does not use
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 s by default, which every short trial would wait for
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # workers without the environment that Tune gives its trials
    "RAY_worker_niceness": "0",  # 15 by default, which starves trainings on a machine that does anything else
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us, and ends the sweep at once
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # only refinements report an objective
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # snapshots of all trials, which grow with them and which nobody reads
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
OBJECT_STORE = 128 * 2**20
"""Bytes; nothing large goes through it."""
ADDRESS_SPACE = 6 * 2**30
"""Bytes; with 5e9 Ray aborts this program with a stack trace of its own, with 6.5e9 it starts."""


LOCK = "lock"
"""File in Ray's folder, held by the program whose folder it is."""
YOUNG = 60.0
"""Seconds for which a folder is left alone: its program may be about to take the lock."""
PROCESSES = 250
"""Processes and threads that Ray takes on a machine with two cores, its first training included (230 were counted)."""
STARTS = 3
"""Times that a start is tried on a machine where it takes too long."""
LEAVING = 10.0
"""Seconds that Ray gets to shut down before it is killed."""
JOIN = 300.0
"""Seconds in which the nodes of a cluster must have joined."""
KEPT = "finished epochs are kept, go on by --resume"
STUCK = 3.0
"""Seconds in which a call into Ray must give way once Ray has died; most wait for the dead for a minute."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has."""

    cpus: float
    gpus: float
    nodes: int
    shared: bool = False
    """Whether the cluster was there before, so that others may use it too."""


@contextlib.contextmanager
def cluster(
    address: str | None = None,
    *,
    nodes: int = 1,
    dashboard: bool = False,
    before_leaving: Callable[[], None] = lambda: None,
    **local: Any,
) -> Iterator[Resources]:
    """Joins the Ray cluster at `address` (or $RAY_ADDRESS), or starts one on this machine and stops it at the end.

    nodes: as many as the cluster must have; waits for them, and raises ConfigError where they do not come within JOIN.
    local: arguments of ray.init for a start of our own (num_cpus, num_gpus). before_leaving: called where a signal ends
    the block, while Ray is still there; a second signal ends it. Raises ConfigError where Ray cannot be
    started or joined, RunError where it dies, and Interrupted for SIGINT, SIGTERM and SIGHUP. Whatever ends the block,
    or the program, nothing of a Ray of our own is left.
    """
    os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
    warnings.filterwarnings("ignore", module=r"ray\.")
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _require_ray_itself()
    import ray

    if ray.is_initialized():  # a program of the user's own: its cluster, which it stops itself
        yield _resources(shared=True)
        return
    address = address or os.environ.get("RAY_ADDRESS")
    address = None if address == "local" else address  # Ray's word for a start of one's own
    if address is None:
        _require_room()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder_of_ray(guarded=address is None))
        end = _End(folder)
        stack.enter_context(_settings(address, folder))
        stack.enter_context(_unprinted())
        stack.enter_context(_interruptible(end, own=address is None, before_leaving=before_leaving))
        _start(address, folder, end, {"include_dashboard": dashboard, "num_cpus": cpus(), **local})
        yield _with_nodes(nodes, address)


def _start(address: str | None, folder: Path, end: "_End", local: dict[str, Any]) -> None:
    import ray
    from ray.job_config import JobConfig

    # Ray puts the current folder first in the path of its workers, where any torch.py would stand in for torch; where
    # this program imports from there itself (python -m), so do they
    here = str(Path.cwd())
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "configure_logging": True,
        "job_config": JobConfig(_client_job=sys.path[0] not in ("", here)),
    }
    if address:
        common |= {"address": address, "runtime_env": {"env_vars": QUIET}}
    else:
        common |= {"_temp_dir": str(folder), "object_store_memory": OBJECT_STORE, **local}
    try:
        for left in reversed(range(STARTS)):
            try:
                with _lean(whole=bool(address) or local["include_dashboard"]):
                    ray.init(**common)
                break
            except Exception as error:  # a bare one; the 30 s are a constant of Ray's, too short on a loaded machine
                if not left or address or tight() or "timed out during startup" not in str(error):
                    raise
                log.warning("Ray did not start within its own limit of 30 s: trying again")
                reap(folder)
    except SystemExit:  # the answer of Ray's own handler to SIGTERM
        raise Interrupted(signal.SIGTERM) from None
    except Exception as error:
        why = reason(error)
        if address:
            raise ConfigError(f"the Ray cluster at {address} could not be joined: {why}") from None
        short = f"; it may be for want of what is limited here: {tight()}" if tight() else ""
        raise ConfigError(f"Ray could not be started: {why}{short}") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # "Trials did not complete", which we say better
    end.take_signals()
    end.watch.follow()


@dataclass
class _End:
    """How a block on Ray ends before its time: by a signal, or because Ray is gone (`fault`)."""

    folder: Path
    thread: threading.Thread = field(default_factory=threading.current_thread)
    came: list[int] = field(default_factory=list)
    fault: str | None = None
    leaving: threading.Event = field(default_factory=threading.Event)
    """Set once the block is being left: who asks again has been heard."""

    def __post_init__(self) -> None:
        self.mine = self.thread is threading.main_thread()  # elsewhere Python has no signals to handle
        # who started the program in the background of a shell has SIGINT ignored, and means it
        self.before: dict[int, Any] = {s: h for s in SIGNALS if (h := signal.getsignal(s)) is not signal.SIG_IGN}
        self.before[signal.SIGUSR1] = signal.getsignal(signal.SIGUSR1)
        self.watch = Watch(self.ray_is_gone)

    def take_signals(self) -> None:
        """SIGINT, SIGTERM (of a batch system, say) and SIGHUP end the block by Interrupted. Ray's own handler of
        SIGTERM, which it sets when it starts, prints stack traces."""
        if self.mine:
            for signum in self.before:
                signal.signal(signum, self._handle)

    def give_signals_back(self) -> None:
        """As they were before."""
        if self.mine:
            for signum, handler in self.before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if signum != signal.SIGUSR1:
            self.came.append(signum)
        if not self.leaving.is_set():
            raise Interrupted(signum)

    def ray_is_gone(self, fault: str) -> None:
        """Called by the watch, in its thread: gets the block's thread out of whatever call into Ray it waits in."""
        self.fault = fault
        if self.mine:
            signal.pthread_kill(self.thread.ident or 0, signal.SIGUSR1)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
            )
        if not self.leaving.wait(STUCK):
            reap(self.folder)  # what it waits for is dead, then
        if not self.leaving.wait(STUCK):
            print(f"error: {fault}; {KEPT}", file=sys.stderr, flush=True)
            os._exit(2)


@contextlib.contextmanager
def _interruptible(end: _End, *, own: bool, before_leaving: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lets the block end by Interrupted or RunError, as `end` has it, and leaves Ray, undisturbed by more signals.
    While Ray waits, it makes a plain KeyboardInterrupt of whatever a handler raises."""
    end.take_signals()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if end.came and end.fault is None:
            with contextlib.suppress(KeyboardInterrupt):
                before_leaving()
        end.leaving.set()
        if isinstance(error, KeyboardInterrupt) and (end.came or end.fault is None):
            raise Interrupted(end.came[0] if end.came else signal.SIGINT) from None
        fault = end.fault or end.watch.fault()  # an error of Ray's may be quicker than the watch
        if fault is None and type(error).__module__.partition(".")[0] == "ray":
            fault = f"Ray failed: {reason(error)}"
        if fault is None or isinstance(error, ConfigError):
            raise
        raise RunError(f"{fault}; {KEPT}") from None
    finally:
        end.leaving.set()
        end.watch.stop()
        _leave_ray(end.folder, own=own)
        end.give_signals_back()


def _leave_ray(folder: Path, *, own: bool) -> None:
    """Shuts Ray down, within LEAVING: a Ray of which a part is dead may wait for that part for ever."""
    import ray

    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(LEAVING)
    if own:
        reap(folder)
        leaving.join(LEAVING)


@contextlib.contextmanager
def _settings(address: str | None, folder: Path) -> Iterator[None]:
    """The environment that Ray reads. Without a home folder Ray cannot even be imported whole.

    Ray's own default is to write an access token into the home folder at the first local start, which from then on
    every `ray start` demands, and to send none to an address. Here, a Ray of our own asks for a token that only its
    processes know, unless $RAY_AUTH_MODE says `disabled`; one that is joined gets the user's, if it asks for one."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "HOME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.pop("RAY_ADDRESS", None)
    if os.path.expanduser("~").startswith("~"):
        os.environ["HOME"] = str(folder)
    try:
        if address is None:
            mode = "disabled" if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" else "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            _authenticate(mode)
        elif "://" in address:
            _require_port(address)
        else:
            _require_answer(address)
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _authenticate(None)


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Keeps Ray's notes on workers that died, ours at Ctrl-C too, from the standard output, where they come whatever
    `log_to_driver` says. The flag is the one that Ray's own debugger sets."""
    from ray._private import worker

    before = worker._worker_logs_enabled
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


@contextlib.contextmanager
def _lean(*, whole: bool) -> Iterator[None]:
    """Within it Ray starts without its autoscaler, the reader of its workers' logs and what would serve its dashboard,
    which take three CPU seconds to start and 1 % of a core. `ray start` has flags for the first two, ray.init has none.
    whole: with all three."""
    from ray._private import node, parameter

    found, without = parameter.RayParams, {"include_log_monitor": False, "no_monitor": True}
    serve = node.Node.start_api_server
    if not whole:
        parameter.RayParams = functools.partial(found, **without)  # pyright: ignore[reportAttributeAccessIssue]
        node.Node.start_api_server = lambda *_, **__: None
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = found, serve


def _authenticate(mode: str | None) -> None:
    """Sets Ray's way of authentication, which it reads once, in this process and those that it starts."""
    if mode is not None:
        os.environ["RAY_AUTH_MODE"] = mode
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:  # a Ray that knows no tokens
        return
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _require_answer(address: str) -> None:
    """Raises ConfigError where no head of Ray answers at HOST:PORT; Ray itself would go on trying for minutes, with
    noise. Finds out whether it asks for a token."""
    import grpc
    from ray._private import services

    what = f"the Ray cluster at {address} could not be joined"
    try:
        found = services.canonicalize_bootstrap_address(address) if address == "auto" else address
    except Exception as error:
        raise ConfigError(f"{what}: {reason(error)}") from None
    _require_port(found or address, address)
    refused = "no access"
    for mode in ("disabled", "token"):
        try:
            _authenticate(mode)
            nodes_of(found or address)()
            return
        except grpc.RpcError as error:
            code = error.code()  # pyright: ignore[reportAttributeAccessIssue]
            if code != grpc.StatusCode.UNAUTHENTICATED:
                why = "something listens there, but it is no head of Ray, or it is stuck"
                raise ConfigError(f"{what}: {why} ({code.name})") from None
            refused = "the token that is here is not the one it asks for" if mode == "token" else refused
        except Exception as error:  # of Ray's, which finds no token
            refused = f"it asks for a token, and there is none here ({reason(error).partition('.')[0]})"
    raise ConfigError(
        f"{what}: {refused}; give the one that it was started with, by RAY_AUTH_TOKEN, by RAY_AUTH_TOKEN_PATH or in "
        "~/.ray/auth_token"
    )


def _require_port(address: str, said: str | None = None) -> None:
    """Raises ConfigError where nothing listens at HOST:PORT."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the Ray cluster at {said or address} could not be joined: {error}") from None


def _require_ray_itself() -> None:
    """Raises ConfigError where a file of the user's is imported in place of Ray."""
    found = importlib.util.find_spec("ray")
    origin = None if found is None else found.origin
    if origin is None or Path(origin).name == "__init__.py":
        return
    raise ConfigError(f"{origin}: is imported in place of the package ray; rename it, or start from another folder")


def _require_room() -> None:
    """Raises ConfigError where limits would not let Ray start: it would try for half a minute, or crash."""
    if (free := free_processes()) < PROCESSES:
        raise ConfigError(
            f"Ray needs about {PROCESSES} processes and threads, but only {max(0, free):.0f} more are allowed here; "
            "raise the limit (ulimit -u, or that of the container)"
        )
    if (space := address_space()) < ADDRESS_SPACE:
        raise ConfigError(
            f"Ray and PyTorch need about {ADDRESS_SPACE / 2**30:.0f} GiB of address space, but only "
            f"{space / 2**30:.1f} are allowed here; raise the limit (ulimit -v)"
        )


@contextlib.contextmanager
def _folder_of_ray(*, guarded: bool) -> Iterator[Path]:
    """A temporary folder for Ray's sockets and logs. Those whose program was killed are removed as well. guarded: a
    process of its own clears up behind this program, however it ends."""
    folder = Path(tempfile.mkdtemp(prefix="lchp-", dir=_short_folder()))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(locked(folder / LOCK))
        if guarded:
            stack.enter_context(_guard(folder))
        for other in _abandoned(folder.parent):
            with contextlib.suppress(RunError, OSError), locked(other / LOCK):
                reap(other)
                shutil.rmtree(other, ignore_errors=True)
        yield folder


def _abandoned(parent: Path) -> Iterator[Path]:
    """Folders as `_folder_of_ray` makes them, of this user and not young, with the lock or with nothing but Ray's: a
    program may be killed before it has the lock, or while it removes the folder."""
    for folder in parent.glob("lchp-*"):
        with contextlib.suppress(OSError):
            there = [p for p in folder.iterdir() if not p.name.startswith("session_")]
            ours = re.fullmatch(r"lchp-[a-z0-9_]{8}", folder.name) and folder.stat().st_uid == os.getuid()
            young = time.time() - max(p.stat().st_mtime for p in (folder, *there)) <= YOUNG
            if ours and not young and all(p.name in (LOCK, "ray_current_cluster") for p in there):
                yield folder


@contextlib.contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Clears up `folder` once this program has ended, in whatever way."""
    try:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals of the terminal are not for it
        )
    except OSError as error:
        raise ConfigError(f"no process could be started: {error}") from None
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        guard.communicate()


def _with_nodes(nodes: int, address: str | None) -> Resources:
    """The cluster's resources, once it has this many nodes."""
    begin = time.monotonic()
    while True:
        found = _resources(shared=address is not None)
        if found.nodes >= nodes:
            return found
        if address is None:
            raise ConfigError(f"--nodes = {nodes}: Ray on this machine alone has one; --address names a cluster")
        if time.monotonic() - begin > JOIN:
            raise ConfigError(f"--nodes = {nodes}: the cluster at {address} has {found.nodes} after {JOIN:.0f} s")
        time.sleep(1)


def _resources(*, shared: bool) -> Resources:
    import ray

    total = ray.cluster_resources()
    nodes = sum(bool(n["Alive"]) for n in ray.nodes())
    return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0), nodes, shared)


def _short_folder() -> str | None:
    """Socket paths end at 107 bytes, and Ray's own part takes most of them; a long $TMPDIR would not fit."""
    return "/tmp" if Path("/tmp").is_dir() and os.access("/tmp", os.W_OK) else None
