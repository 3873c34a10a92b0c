"""Starting, joining and leaving Ray, quietly."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lchp.errors import ConfigError, RunError
from lchp.interrupt import SIGNALS, Interrupted
from lchp.locks import locked

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; lchp.harness.progress draws instead
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning per worker
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build an environment per worker
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per trial, for notices that the schedule does not use
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 s by default, which every short trial would wait for
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default, which starves trainings on a machine that does anything else
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us, and ends the sweep at once
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # stage-1 trials report no objective
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # snapshots of all trials, which grow with them and which nobody reads
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
OBJECT_STORE = 128 * 2**20
"""Bytes; nothing large goes through it."""


LOCK = "lock"
"""File in Ray's folder, held by the program whose folder it is."""
YOUNG = 60.0
"""Seconds for which a folder is left alone: its program may be about to take the lock."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has."""

    cpus: float
    gpus: float
    nodes: int


@contextlib.contextmanager
def cluster(address: str | None = None, *, dashboard: bool = False, **local: Any) -> Iterator[Resources]:
    """Joins the Ray cluster at `address` (or $RAY_ADDRESS), or starts one on this machine and stops it at the end.

    local: arguments of ray.init for a start of our own (num_cpus, num_gpus). Raises ConfigError where nothing answers.
    """
    os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
    warnings.filterwarnings("ignore", module=r"ray\.")
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():  # a program of the user's own: its cluster, which it stops itself
        yield _resources()
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    address = address or os.environ.get("RAY_ADDRESS")
    with contextlib.ExitStack() as stack:
        if address:
            _require_answer(address)
            common |= {"address": address, "runtime_env": {"env_vars": QUIET}}
        else:
            folder = stack.enter_context(_folder_of_ray())
            common |= {
                "_temp_dir": folder,
                "include_dashboard": dashboard,
                "object_store_memory": OBJECT_STORE,
                **local,
            }
            os.environ.pop("RAY_ADDRESS", None)
        take_signals = stack.enter_context(_signals())
        stack.callback(ray.shutdown)
        try:
            ray.init(**common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            what = f"the Ray cluster at {address} could not be joined" if address else "Ray could not be started"
            raise ConfigError(f"{what}: {reason}") from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # "Trials did not complete", which we say better
        take_signals()
        yield _resources()


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Gives what, once Ray has started, lets SIGINT and SIGTERM (of a batch system, say) end the block by Interrupted.

    Ray's own handler of SIGTERM prints stack traces, and while Ray waits it makes a plain KeyboardInterrupt of whatever
    a handler raises."""
    # who started the program in the background of a shell has SIGINT ignored, and means it
    before = {s: h for s in SIGNALS if (h := signal.getsignal(s)) is not signal.SIG_IGN}
    came: list[int] = []

    def handle(signum: int, _frame: FrameType | None) -> None:
        came.append(signum)
        raise Interrupted(signum)

    def take() -> None:
        if mine:
            for signum in before:
                signal.signal(signum, handle)

    mine = threading.current_thread() is threading.main_thread()  # elsewhere Python has no signals to handle
    try:
        yield take
    except KeyboardInterrupt:
        raise Interrupted(came[0] if came else signal.SIGINT) from None
    finally:
        if mine:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _folder_of_ray() -> Iterator[str]:
    """A temporary folder for Ray's sockets and logs. Those whose program was killed are removed as well."""
    folder = Path(tempfile.mkdtemp(prefix="lchp-", dir=_short_folder()))
    try:
        with locked(folder / LOCK):
            for lock in folder.parent.glob(f"lchp-*/{LOCK}"):
                with contextlib.suppress(RunError, OSError):  # in use, or another user's
                    if time.time() - lock.stat().st_mtime > YOUNG:
                        with locked(lock):
                            shutil.rmtree(lock.parent, ignore_errors=True)
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_answer(address: str) -> None:
    """Raises ConfigError where nothing listens at HOST:PORT; Ray itself would go on trying for minutes, with noise."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # "auto", which Ray resolves
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the Ray cluster at {address} could not be joined: {error}") from None


def _resources() -> Resources:
    import ray

    total = ray.cluster_resources()
    nodes = sum(bool(n["Alive"]) for n in ray.nodes())
    return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0), nodes)


def _short_folder() -> str | None:
    """Socket paths end at 107 bytes, and Ray's own part takes most of them; a long $TMPDIR would not fit."""
    return "/tmp" if Path("/tmp").is_dir() and os.access("/tmp", os.W_OK) else None
