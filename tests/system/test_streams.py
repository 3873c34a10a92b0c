"""Standard output that is closed, read no more, full or of an encoding without a sign: no traceback, nothing lost."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lchp.cli import main
from lchp.system import streams

SCRIPT = """
import os, sys
from lchp.system import streams
from lchp.cli import guarded

def body():
    {body}
    return 0

raise SystemExit(guarded(body))
"""


def run(body: str, shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a program of that body; shell: how, with the program as "$@"."""
    command = ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, "-c", SCRIPT.format(body=body)]
    set_here = os.environ | {"PYTHONUNBUFFERED": ""} | environment
    return subprocess.run(command, capture_output=True, env=set_here, timeout=100)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
def test_what_an_encoding_lacks_is_escaped(encoding: str) -> None:
    done = run("print('\\u00b1 \\U0001f426 \\udcff'); print('\\U0001f426', file=sys.stderr)", PYTHONIOENCODING=encoding)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert b"\\udcff" in done.stdout
    if encoding == "ascii":
        assert done.stdout == b"\\xb1 \\U0001f426 \\udcff\n"


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_nothing_and_its_number_stays_nobodys(closed: str, tmp_path: Path) -> None:
    """Else the first file that is opened gets number 1, and what programs print."""
    file = tmp_path / "file"
    body = (
        f"file = open({str(file)!r}, 'w'); print('hello', flush=True); print('hello', file=sys.stderr, flush=True)\n"
        "    os.system('echo hello'); sys.stdout.isatty(); file.write(str(file.fileno() > 2)); file.close()"
    )
    assert run(body, f'"$@" {closed}').returncode == 0
    assert file.read_text() == "True"


def test_a_program_ends_where_nobody_reads_it() -> None:
    done = run("[print(i) for i in range(100000)]", '"$@" | head -1')
    assert (done.returncode, done.stdout, done.stderr) == (streams.UNREAD, b"0\n", b"")
    few = run("import time; time.sleep(0.3); print('little, which waits in a buffer')", '"$@" | true')
    assert (few.returncode, few.stderr) == (streams.UNREAD, b"")


def test_work_outlasts_its_reader(tmp_path: Path) -> None:
    file = tmp_path / "file"
    body = (
        "streams.outlast(); streams.outlast()\n"
        "    for i in range(20000): print(i); print(i, file=sys.stderr)\n"
        f"    open({str(file)!r}, 'w').write('done')"
    )
    done = run(body, '"$@" 2>&1 | head -1')
    assert (done.returncode, done.stdout, file.read_text()) == (0, b"0\n", "done")


def test_a_full_disk_is_one_line() -> None:
    done = run("print('x')", '"$@" > /dev/full')
    assert done.returncode == 2
    assert done.stderr == b"error: file or standard output: No space left on device\n"


def test_a_mistake_comes_before_an_unread_pipe() -> None:
    done = run("print('x'); from lchp.errors import ConfigError; raise ConfigError('mistake')", '"$@" | true')
    assert (done.returncode, done.stderr) == (2, b"error: mistake\n")


def test_training_goes_on_without_a_reader_and_without_stderr(squares_root: Path, tmp_path: Path) -> None:
    flags = "--preset parts --data.name folder --data.cache off --data.resize 36 --data.image-size 32"
    flags += " --initialization.epochs 1 --refinement.epochs 1"
    shell = f'set -o pipefail; "$0" -m lchp train {flags} --data.root "$1" --output "$2" 2>&- | head -1'
    where = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "ascii"}
    command = ["bash", "-c", shell, sys.executable, str(squares_root), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, env=os.environ | where, timeout=200)
    assert done.returncode == 0
    assert done.stdout.startswith(b"What is to come, measured on a few batches")
    assert (tmp_path / "run" / "summary.json").is_file()


def test_predictions_to_a_closed_output_are_refused(
    squares_root: Path, squares_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)
    assert main(["predict", str(squares_root), "--run", str(squares_run)]) == 2
    assert capsys.readouterr().err == "lchp: error: standard output is closed; name --output DIR to write to\n"


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", rb"\U0001f426"), ("utf-8", "\U0001f426".encode())])
def test_predictions_in_another_encoding(
    squares_root: Path, squares_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding, name
) -> None:
    image = tmp_path / "\U0001f426.png"
    image.write_bytes((squares_root / "red" / "0.png").read_bytes())
    raw = os.fsencode(tmp_path) + b"/\xff.png"  # which is no UTF-8, and is written as it is where that is the encoding
    Path(os.fsdecode(raw)).write_bytes(image.read_bytes())
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    assert main(["predict", str(tmp_path), "--run", str(squares_run), "--format", "csv"]) == 0
    first = {line.partition(b".png")[0] for line in out.getvalue().splitlines()[1:]}
    assert first == {name, b"\xff" if encoding == "utf-8" else rb"\udcff"}


def test_streams_are_as_they_were_afterwards() -> None:
    before = sys.stdout, sys.stderr
    streams.outlast()
    assert sys.stdout is not before[0]
    assert sys.stdout.encoding == before[0].encoding
    streams.settle()
    assert (sys.stdout, sys.stderr) == before
