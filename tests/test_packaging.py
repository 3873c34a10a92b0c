"""What is distributed: files of the wheel and of the source distribution, metadata, licences of what they need."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from licences import ROOT, as_table, installed, pinned, read_table, refused

import lchp

NAME = f"lchp-{lchp.__version__}"
INFO = f"{NAME}.dist-info"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built without the network from a copy of the working tree and of what often lies in one."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for folder in ("lchp", "sweeps", "analysis", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("[!.]*.*"):
        if path.is_file():
            shutil.copy(path, tree)
    shutil.copy(ROOT / "LICENSE", tree)
    for stray in (
        "lchp/data/bird.jpg",
        "lchp/weights.safetensors",
        "sweeps/results.csv",
        "results/store/x.py",
        "data/a.png",
    ):
        (tree / stray).parent.mkdir(parents=True, exist_ok=True)
        (tree / stray).write_bytes(b"x")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return out


def package() -> set[str]:
    """Files of the package: modules, the paper's values, the report's templates, and the mark of typed packages."""
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "lchp").rglob("*.py")}
    modules |= {"lchp/py.typed", "lchp/report/paper.csv"}
    return modules | {f"lchp/report/page/templates/report.{suffix}" for suffix in ("css", "html.j2", "js")}


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
        assert set(wheel.namelist()) == package() | {f"{INFO}/{name}" for name in about}
        metadata = message_from_string(wheel.read(f"{INFO}/METADATA").decode())
        assert wheel.read(f"{INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "lchp = lchp.cli:program" in wheel.read(f"{INFO}/entry_points.txt").decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_the_source_distribution_adds_the_scripts(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        found = {m.name.removeprefix(f"{NAME}/") for m in sdist if m.isfile()}
    files = {"CHANGELOG.md", "LICENSE", "LICENSES.md", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml"}
    scripts = {p.relative_to(ROOT).as_posix() for name in ("sweeps", "analysis") for p in (ROOT / name).glob("*.py")}
    made = {name for name in found if name.startswith("lchp.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert found == package() | files | scripts | made


def test_licences_of_what_is_installed() -> None:
    here = installed()
    assert len(here) > 50
    assert refused(here) == {}
    listed, versions = read_table(), pinned()
    assert here.keys() <= listed.keys() <= versions.keys()
    # versions for other Pythons may word their licence otherwise
    one = [name for name in here if versions[name] == 1]
    assert [here[n] for n in one] == [listed[n] for n in one], "renew it: python tests/licences.py --write"


def test_refused_licences() -> None:
    texts = {
        "a": "GNU General Public License v3 (GPLv3)",
        "b": "AGPL-3.0-only",
        "c": "UNKNOWN",
        "d": "GPL-2.0-only OR MIT",
        "e": "GNU Lesser General Public License v2 (LGPLv2)",
        "f": "MPL-2.0 AND MIT",
        "g": "MIT AND GPL-3.0-or-later",
    }
    assert refused(texts).keys() == {"a", "b", "c", "g"}
    assert as_table({"a": "MIT"}).endswith("| a         | MIT       |\n")
