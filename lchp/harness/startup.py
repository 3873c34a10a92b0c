"""Starting, joining and leaving Ray, quietly."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lchp.errors import ConfigError

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; lchp.harness.progress draws instead
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning per worker
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build an environment per worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 s by default, which every short trial would wait for
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default, which starves trainings on a machine that does anything else
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us, and ends the sweep at once
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # stage-1 trials report no objective
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
OBJECT_STORE = 128 * 2**20
"""Bytes; nothing large goes through it."""


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
    folder: str | None = None
    if address:
        _require_answer(address)
        common |= {"address": address, "runtime_env": {"env_vars": QUIET}}
    else:
        folder = tempfile.mkdtemp(prefix="lchp-", dir=_short_folder())
        common |= {"_temp_dir": folder, "include_dashboard": dashboard, "object_store_memory": OBJECT_STORE, **local}
        os.environ.pop("RAY_ADDRESS", None)
    try:
        try:
            ray.init(**common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            what = f"the Ray cluster at {address} could not be joined" if address else "Ray could not be started"
            raise ConfigError(f"{what}: {reason}") from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        with _terminated_as_interrupted():
            yield _resources()
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (of a batch system, say) ends a sweep as Ctrl-C does; Ray's own handler prints stack traces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


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
