"""Progress bars."""

import os
import pty
import subprocess
import sys

PROGRAM = "from lchp.system.progress import tqdm; tqdm(total=10, desc='cells', initial=5).close()"


def test_a_terminal_without_a_size_shows_bars() -> None:
    """As `docker -t` and `script` open one."""
    ours, theirs = pty.openpty()
    assert os.get_terminal_size(theirs) == (0, 0)
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, check=True, timeout=100)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode().split("\r")
    os.close(ours)
    assert {len(line) for line in shown if "cells" in line} == {79}
