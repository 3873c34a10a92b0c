"""Ray's workers, forked from one process that has imported what they import: each starts in a second, not in eight.

What a worker runs is Ray's own and ours, as always; only the start of its interpreter and its imports are shared. Tests
of that start, and of the processes that a program leaves, do without (tests/programs).
"""

import argparse
import contextlib
import gc
import importlib
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import forked

WITHOUT_RAY = ["torch", "torchvision", "pandas", "pyarrow.compute", "scipy.ndimage", "cv2", "torch._dynamo"]
WITH_RAY = ["ray._private.workers.default_worker", "ray.train.torch", "lchp.harness.tune", "lchp.training.run"]


@contextlib.contextmanager
def forked_workers(folder: Path) -> Iterator[None]:
    """A Ray that this process starts meanwhile has such workers. One Ray, with one driver."""
    from ray._private.parameter import RayParams

    absent = RayParams.update_if_absent

    def update(params: RayParams, **more: object) -> None:
        absent(params, setup_worker_path=__file__)
        absent(params, **more)

    with forked.server(__file__, folder), mock.patch.object(RayParams, "update_if_absent", update):
        yield


def prepare(environment: dict[str, str]) -> None:
    """Imports what is Ray's, with the environment of the first worker: what all have in common, job and raylet, Ray
    reads as it is imported."""
    if "ray" in sys.modules:
        return
    os.environ.clear()
    os.environ.update(environment)
    import ray.actor
    from ray._raylet import ActorClassID

    # Ray's own source of random numbers must not be begun here, else all workers draw the same IDs
    drawn = SimpleNamespace(from_random=lambda: ActorClassID(os.urandom(ActorClassID.size())))
    with mock.patch.object(ray.actor, "ActorClassID", drawn):
        for name in WITH_RAY:
            importlib.import_module(name)
    gc.freeze()
    assert drawn_by_a_fork() != drawn_by_a_fork()


def drawn_by_a_fork() -> bytes:
    """An ID of Ray's that a forked process draws."""
    from ray._raylet import UniqueID

    here, there = os.pipe()
    if os.fork() == 0:
        os.write(there, UniqueID.from_random().binary())
        os._exit(0)
    os.close(there)
    with open(here, "rb") as drawn:
        return drawn.read()


def work() -> None:
    """What Ray's setup_worker.py does, without another interpreter."""
    from ray._private.runtime_env.context import RuntimeEnvContext

    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    context, sys.argv = parser.parse_known_args(sys.argv[1:])
    os.environ.update(RuntimeEnvContext.deserialize(context.serialized_runtime_env_context).env_vars)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        forked.ask()
    else:
        for name in WITHOUT_RAY:
            importlib.import_module(name)
        forked.serve(prepare).close()
        work()
