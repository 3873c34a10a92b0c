"""One job as a Ray Tune trial: `lchp.training.run.train_links`, wrapped once plainly and once in Ray Train.

All that matters is on disk: a trial that is started again goes on from the last epoch in its work folder, and a result
that another sweep has published meanwhile is taken instead of training it.
"""

import contextlib
import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lchp.data import fingerprint, load
from lchp.errors import DataError, LchpError, RunError
from lchp.files import runs
from lchp.files.locks import LOCK, Claim, HeldError, locked
from lchp.files.marks import RemoteClaim
from lchp.files.remote import Remote, RemoteError
from lchp.harness.attempts import Attempt
from lchp.harness.cells import Job
from lchp.harness.schedule import Reason
from lchp.harness.stopping import Unfinished, watch_for_mark
from lchp.harness.store import Store
from lchp.system import distributed
from lchp.system.interrupt import Interrupted, Stop
from lchp.training.chain import Kind

Report = Callable[[dict[str, Any]], None]

LOCK_WAIT = 180.0
"""Seconds that a trial waits for a predecessor, whose node was cut off or killed, to let go of the work folder: a
network file system keeps the lock of a lost node for its lease, 90 s by default."""
PASSES = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
"""Errors of the system after which trying again may help: a network file system, or memory that is short for a
while."""


@dataclass(frozen=True)
class Setting:
    """How the trials of a sweep run. `work`: folder for unfinished trainings; cpus and gpus are per worker. `claim`:
    the mark of the lock that the sweep holds in the folder of `work` (see `Claim`), None where nobody holds one. `url`:
    of the storage that `storage` is a mirror of."""

    storage: str
    work: str
    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    objective: str | None = None
    claim: str | None = None
    url: str | None = None

    @property
    def remote(self) -> Remote | None:
        """The storage behind a URL."""
        return None if self.url is None else Remote(self.url)

    def here(self) -> "Setting":
        """With the folders of this machine, where the storage is behind a URL: each has mirrors of its own."""
        if self.remote is None:
            return self
        storage = self.remote.mirror("trials")
        work = storage / Path(self.work).relative_to(self.storage)
        runs.make_folder(work)
        return replace(self, storage=str(storage), work=str(work))

    @property
    def works(self) -> Unfinished:
        """The unfinished trainings."""
        work, remote = Path(self.work), self.remote
        return (
            Unfinished(work) if remote is None else Unfinished(work, remote, work.relative_to(self.storage).as_posix())
        )

    @property
    def wrapper(self) -> Literal["plain", "ray_train"]:
        """Ray Train where a trial uses a GPU or several workers, a plain function on CPUs."""
        return "ray_train" if self.gpus > 0 or self.workers > 1 else "plain"


def run_job(job: Job, setting: Setting, report: Report) -> None:
    """Trains a job and publishes its result, reporting after every epoch and once at the end, by `state`: `done`,
    `failed` (with `error` and `reason`: a fault that trying again would not mend) or `lost_source` (with `lost`: the
    jobs whose results are damaged or gone)."""
    begin = time.time()
    here = {"job": job.name, "node": socket.gethostname(), "pid": os.getpid(), "devices": _devices(), "begin": begin}
    last: dict[str, Any] = {}
    spent: dict[str, float] = {}

    def on_epoch(metrics: dict[str, Any]) -> None:
        last.update(metrics)
        done = job.finished_epochs(metrics["stage"], metrics["epoch"])
        with notice.at_rest():
            report(here | _scalars(metrics, setting) | {"state": "running", "done_epochs": done})

    def finish(state: str, **facts: Any) -> None:
        report(here | _scalars(last, setting) | {"state": state, "seconds": time.time() - begin, **facts})

    try:
        setting = setting.here()
        with watch_for_mark(setting.works, job.name, first=distributed.rank() == 0) as notice:
            lost = _train(job, setting, on_epoch, spent, notice.stop)
    except Interrupted:
        if not notice.stop.asked:
            raise
        return  # the driver's mark: it is leaving, and hears nothing more
    except (LchpError, OSError) as error:
        if distributed.size() > 1 or _may_pass(error):
            raise  # workers that do not agree cannot report together
        kept = f"; what was trained is kept on {here['node']}" if isinstance(error, RemoteError) else ""
        finish("failed", error=f"{_line(error)}{kept}", reason=reason_of(error))
        return
    finish("lost_source", lost=",".join(lost)) if lost else finish("done", **spent)


def reason_of(error: Exception) -> Reason:
    """The code of an error, for records."""
    from lchp.training.definition import DivergedError

    return "diverged" if isinstance(error, DivergedError) else "error"


def _train(job: Job, setting: Setting, on_epoch: Report, spent: dict[str, float], stop: Stop) -> list[str]:
    """Returns the names of the jobs whose results are lost; none where the job is done. `spent` receives the training's
    own time, by which the harness is judged."""
    from lchp.training.definition import Session
    from lchp.training.run import train_links

    store = Store(Path(setting.storage), setting.remote)
    work = Path(setting.work) / job.name
    first = distributed.rank() == 0
    attempt = Attempt(setting.remote, f"{setting.works.name}/{job.name}", work) if setting.remote and first else None
    _require_claimed(setting)
    with contextlib.ExitStack() as held:
        if first:
            held.enter_context(_held(work.with_name(f"{work.name}.lock")))
            setting.works.begin(job.name)
            held.callback(setting.works.end, job.name)
        # it was not there, or somebody found it damaged
        if distributed.from_first(lambda: store.find(job.kind, job.key, mistrust=True)) is not None:
            return []
        there: dict[Kind, Path | None] = distributed.from_first(
            lambda: {kind: store.find(kind, key) for kind, key in job.sources.items()}
        )
        found: dict[Kind, Path] = {kind: path for kind, path in there.items() if path is not None}
        if len(found) < len(there):
            return [name for name, kind in zip(job.needs, job.sources, strict=True) if kind not in found]
        if first and (changed := _changed_data(job)) is not None:
            raise changed
        if attempt is not None:
            attempt.fetch()
        resume = distributed.from_first(lambda: _can_resume(work, job))
        if first:
            work.mkdir(exist_ok=True)  # not those above it: the storage may be gone
        begin = time.perf_counter()

        def after_epoch(metrics: dict[str, Any]) -> None:
            if attempt is not None:
                attempt.send()
            on_epoch(metrics)

        session = Session(job.config.seed, resume, on_epoch=after_epoch, show_progress=False, stop=stop)
        try:
            train_links(job.config, work, session, last=job.kind, found=found)
        except KeyboardInterrupt:  # at a step's end, with a checkpoint: the next attempt may be on another node
            if attempt is not None:
                with contextlib.suppress(RemoteError):
                    attempt.send()
            raise
        spent["train_seconds"] = time.perf_counter() - begin
        if first:
            _require_claimed(setting)
            if (changed := _changed_data(job)) is not None:
                shutil.rmtree(work, ignore_errors=True)  # trained on neither
                if attempt is not None:
                    attempt.remove()
                raise changed
            store.publish(work, job.kind, job.key)
            if attempt is not None:
                attempt.remove()
    return []


def _require_claimed(setting: Setting) -> None:
    """Raises RunError where the folder of the sweep is no longer the one that its driver claimed."""
    if setting.claim is None:
        return
    if setting.remote is not None:
        RemoteClaim(setting.remote, str(PurePosixPath(setting.works.name).with_name(LOCK)), setting.claim).check()
    else:
        Claim(Path(setting.work).with_name(LOCK), setting.claim).check()


def _changed_data(job: Job) -> DataError | None:
    """The error to raise where the files of the data set are not those that the job's key was made of: its result would
    be found by those who ask for another's. Raises DataError where they cannot be read."""
    if job.config.data.root is None:  # generated
        return None
    now = fingerprint(load(job.config.data), job.config.data.cache)
    if now == job.data:
        return None
    return DataError(
        f"data.root = {job.config.data.root!r}: the data has changed since the sweep was started (fingerprint "
        f"{job.data}, now {now}); nothing was published, start the sweep again with --resume, on the data as it is"
    )


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error is, or was raised over, a refusal of the system that may not come again."""
    if isinstance(error, OSError):
        return error.errno in PASSES or isinstance(error, (TimeoutError, ConnectionError))
    return error is not None and _may_pass(error.__context__)


def _line(error: Exception) -> str:
    """What an error says, the system's own with the file that it is about."""
    if not isinstance(error, OSError):
        return str(error)
    said = error.strerror or str(error) or type(error).__name__
    return said if error.filename is None else f"{error.filename}: {said}"


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[None]:
    """As `locked`; a lock that stays taken is no fault of the config, so that Tune is to try the trial again."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, wait=LOCK_WAIT))
        except HeldError as error:
            raise TimeoutError(str(error)) from None
        yield


def _can_resume(work: Path, job: Job) -> bool:
    """Whether a work folder holds a beginning of this training. One that cannot be used is cleared away, or that was
    begun when other results were there to be taken."""
    from lchp.training.checkpoints import previous

    if not work.exists():
        return False
    try:
        begun = runs.read_environment(work).get("links", {}) if (work / runs.ENVIRONMENT).exists() else {}
        taken = {kind for kind, place in begun.items() if place["run"] is not None}
        if runs.read_config(work) == job.config and (not begun or taken == job.sources.keys()):
            runs.read_metrics(work)
            there = set((work / runs.CHECKPOINTS).glob("*.pt"))
            newest = there - {previous(c) for c in there}
            if all(_intact(c) or (previous(c) in there and _intact(previous(c))) for c in newest):
                return True
    except RunError:
        pass  # damaged, or never begun in earnest: training it again is always right
    shutil.rmtree(work)
    return False


def _intact(checkpoint: Path) -> bool:
    from lchp.training.checkpoints import load_checkpoint

    try:
        load_checkpoint(checkpoint)
    except RunError:
        return False
    return True


def _scalars(metrics: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """An epoch's metrics as reported to Tune. The objective is there in a refinement only, and not in its last epoch,
    so that a scheduler which stops bad trials by it leaves other links and finished trainings alone."""
    names = ("stage", "epoch", "epochs", "images_per_second")
    out = {f"train_{k}": metrics[k] for k in names if k in metrics}
    last = "epochs" in metrics and metrics["epoch"] == metrics["epochs"]
    if setting.objective is not None and setting.objective in metrics and not last:
        out["objective"] = metrics[setting.objective]
    return out


def _devices() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def plain_trial(config: dict[str, Any]) -> None:
    """A Tune trial without Ray Train: one process."""
    from ray import tune

    run_job(_job_of(config), Setting(**config["setting"]), tune.report)


def ray_train_trial(config: dict[str, Any]) -> None:
    """A Tune trial that runs the job on Ray Train's workers (DDP where there are several)."""
    from ray import tune
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    job, setting = _job_of(config), Setting(**config["setting"]).here()
    resources = {"CPU": setting.cpus} | ({"GPU": setting.gpus} if setting.gpus else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=setting.workers,
            use_gpu=setting.gpus > 0,
            resources_per_worker=resources,
            # without a shared disk they need a common one
            placement_strategy="PACK" if setting.remote is None else "STRICT_PACK",
        ),
        # gloo where a GPU only counts as a slot
        torch_config=TorchConfig(backend="nccl" if setting.gpus and job.config.device == "cuda" else "gloo"),
        run_config=RunConfig(
            name=f"{job.name}-{time.time_ns()}",
            storage_path=str(Path(setting.work) / "ray_train"),
            failure_config=FailureConfig(max_failures=0),  # the schedule counts them
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        failures = error.worker_failures.values()
        mistakes = [e for e in failures if isinstance(e, (LchpError, OSError)) and not _may_pass(e)]
        if not mistakes:
            raise
        mistake = mistakes[0]
        report = {"job": job.name, "state": "failed", "error": _line(mistake), "reason": reason_of(mistake)}
        tune.report(report)


def _worker(config: dict[str, Any]) -> None:
    import ray.train

    run_job(_job_of(config), Setting(**config["setting"]), ray.train.report)


def _job_of(config: dict[str, Any]) -> Job:
    return Job.from_dict(json.loads(config["job"]))
