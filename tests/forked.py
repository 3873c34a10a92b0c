"""Processes that are forked from one that has imported what they import: each starts in a moment, not in eight seconds.

Those of pytest-xdist, each with a fork server of multiprocessing's, from which `killed` starts programs and trainings;
and Ray's workers (forked_workers.py). What they run is pytest, Ray and ours, as always.

As a program: `forked.py -c CODE` is as `python -c CODE`, in a process that the server at $LCHP_FORKED forks;
`forked.py serve SOCKET` is that server.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import ModuleType
from unittest import mock

SERVER = "LCHP_FORKED"
"""Environment variable: the server's address."""
PARTS = [
    *("lchp.cli", "lchp.harness.search", "lchp.harness.tune", "lchp.training.run", "lchp.report.figures", "killed"),
    *("cv2", "optuna", "pandas", "pyarrow.compute", "ray.train.torch", "scipy.ndimage", "torch._dynamo", "torchvision"),
]
FILTERS = [*warnings.filters]
"""Of warnings, as Python has them. What is imported adds its own, which pytest takes back after it has collected."""


@contextlib.contextmanager
def server(program: str, folder: Path) -> Iterator[None]:
    """Runs a server, whose socket is in `folder` and whose address in the environment, until the block ends."""
    address = str(folder / "forked")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(address)
        here.listen(100)
        command = [sys.executable, program, "serve", str(here.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[here.fileno()])
    with process, mock.patch.dict(os.environ, {SERVER: address}):  # it ends with its input, which is closed here
        yield


def ask() -> None:
    """Has a process forked in the place of this one, with its arguments, environment, folder and files."""
    question = json.dumps([sys.argv, dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(os.environ[SERVER])
        socket.send_fds(there, [len(question).to_bytes(8, "big")], [0, 1, 2])
        there.sendall(question)
        there.recv(1)


def serve(prepare: Callable[[dict[str, str]], object], first: Callable[[], object] = lambda: None) -> socket.socket:
    """Forks a process per question, until the standard input ends. Returns in each of them, with its arguments in
    `sys.argv`, what the asker waits for to be closed. prepare: called with the environment of each, here; first: called
    in each, before it has its files."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGCHLD, signal.SIGINT)}
    with socket.socket(fileno=int(sys.argv[2])) as here:
        while here in select.select([here, 0], [], [])[0]:
            question, _ = here.accept()
            size, files, _, _ = socket.recv_fds(question, 8, 3)
            with question.makefile("rb") as text:
                arguments, environment, folder = json.loads(text.read(int.from_bytes(size, "big")))
            prepare(environment)
            if os.fork() == 0:
                break
            question.close()
            for file in files:
                os.close(file)
        else:
            os._exit(0)
    for number, handler in before.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    first()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return question


def start_fork_server() -> None:
    """Forks the fork server of `killed` from this process, which has no threads yet."""

    def fork(_: bytes, arguments: Sequence[str], kept: Sequence[int]) -> int:
        if child := os.fork():
            return child
        for file in map(int, os.listdir("/proc/self/fd")):
            if file > 2 and file not in kept:
                with contextlib.suppress(OSError):  # that of the list itself
                    os.close(file)
        with contextlib.suppress(SystemExit):
            exec(arguments[-1], {})
        os._exit(0)

    # what they print is not for the terminal; this process gets its own files next
    with tempfile.TemporaryFile() as unread:
        os.dup2(unread.fileno(), 1)
        os.dup2(unread.fileno(), 2)
    resource_tracker.ensure_running()
    with mock.patch("multiprocessing.util.spawnv_passfds", fork):
        forkserver.ensure_running()


def run_code() -> None:
    """What Python does with `-c CODE`."""
    code = sys.argv[sys.argv.index("-c") + 1]
    sys.argv = ["-c"]
    warnings.filters = FILTERS
    atexit.register(gc.unfreeze)  # else triton's library tells of what is left
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(code, main.__dict__)


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        ask()
    else:
        sys.path.insert(1, str(Path(__file__).parents[1]))
        for name in PARTS:
            importlib.import_module(name)
        gc.freeze()
        serve(lambda _: None, start_fork_server).detach()  # open until this process has ended: the asker waits for that
        run_code()
