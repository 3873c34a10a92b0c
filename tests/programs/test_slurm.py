"""sweeps/slurm.sbatch without SLURM: its syntax, and that the flags it gives to Ray and to us exist."""

import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "sweeps" / "slurm.sbatch"
TEXT = SCRIPT.read_text().replace("\\\n", "")


def flags_of(pattern: str) -> set[str]:
    """The options in the lines of the script that match."""
    lines = [line for line in TEXT.splitlines() if re.search(pattern, line) and not line.startswith("#")]
    assert lines, pattern
    return {word for line in lines for word in re.findall(r"(?<=\s)--[\w-]+", line)}


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_ray_has_the_flags() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    used = flags_of(r"ray_start") - {"--nodelist", "--exclude"}
    assert {"--head", "--address", "--num-cpus", "--block"} <= used <= known


def test_a_sweep_has_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lchp.cli import main

    used = flags_of("^lchp sweep")
    assert used == {"--address", "--nodes", "--resume"}
    given = ["delta_tau", "--limit", "1", "--storage", str(tmp_path), "--address", "127.0.0.1:1", "--nodes", "2"]
    assert main(["sweep", *given, "--resume"]) == 2
    assert "the Ray cluster at 127.0.0.1:1 could not be joined" in capsys.readouterr().err
