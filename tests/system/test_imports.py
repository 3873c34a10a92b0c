"""A package that cannot be imported, for want of memory or because it is broken, is one line."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lchp.console import guarded
from lchp.system import imports

SWEEPS = Path(__file__).parents[2] / "sweeps"
AGAIN = "install it again, with all that it needs"
MEMORY = "there is too little memory or address space for it (ulimit -v, or the container's limit): raise that"
# what a package's __init__.py does -> what is said of it
FAILURES = {
    "raise ImportError('libx.so: undefined symbol: x')": f"(libx.so: undefined symbol: x); {AGAIN}",
    "import surely_not_here": f"(No module named 'surely_not_here'); {AGAIN}",
    "def": f"(invalid syntax (__init__.py, line 1)); {AGAIN}",
    "import os; os.surely_not_here": f"(module 'os' has no attribute 'surely_not_here'); {AGAIN}",
    "raise ImportError('liby.so: failed to map segment from shared object')": (
        f"(liby.so: failed to map segment from shared object); {MEMORY}"
    ),
    "raise OSError(12, 'Cannot allocate memory')": f"([Errno 12] Cannot allocate memory); {MEMORY}",
    "raise MemoryError": f"(MemoryError); {MEMORY}",
    "try: raise OSError('libz.so: failed to map segment')\nexcept OSError as e: raise ImportError('!') from e": (
        f"(libz.so: failed to map segment); {MEMORY}"
    ),
}


def importing(package: str, module: str = "lchp.some") -> Callable[[], int]:
    """A function of a module that imports a package."""
    names: dict[str, object] = {"__name__": module}
    exec(f"def body():\n    import {package}\n    return 0", names)
    return names["body"]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("code", FAILURES)
def test_a_broken_package_is_named_in_one_line(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site-packages" / "brokenpackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "brokenpackage", raising=False)
    assert guarded(importing("brokenpackage")) == 2
    assert capsys.readouterr().err == f"error: the package brokenpackage cannot be imported {FAILURES[code]}\n"


def test_a_package_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(importing("surely_not_here.part")) == 2
    assert capsys.readouterr().err == (
        f"error: the package surely_not_here cannot be imported (No module named 'surely_not_here'); {AGAIN}\n"
    )


def test_mistakes_in_our_own_code_and_the_users_stay_whole() -> None:
    for body in (importing("lchp.surely_not_here"), importing("surely_not_here", "users_script")):
        with pytest.raises(ImportError) as error:
            body()
        assert imports.failed_import(error.value) is None
    assert imports.failed_import(ValueError("anything")) is None


def test_every_sweep_begins_as_the_one_that_is_run_below() -> None:
    for path in sorted(SWEEPS.glob("*.py")):
        _, first, *more = ast.parse(path.read_text()).body
        assert ast.unparse(first) == "from lchp.harness import exit_program, run_named", path
        assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in more), path


@pytest.mark.parametrize("command", [["-m", "lchp", "train"], [str(SWEEPS / "search.py")]], ids=["lchp", "sweep"])
def test_too_little_address_space_for_torch_is_one_line(command: list[str], tmp_path: Path) -> None:
    """900 MB, which suffice for Python and NumPy."""
    limited = ["bash", "-c", 'ulimit -v 900000; exec "$@"', "-", sys.executable, *command]
    ended = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    (line,) = ended.stderr.splitlines()
    assert "error: the package torch cannot be imported (libtorch" in line
    assert line.endswith(MEMORY)
    assert ended.returncode in (1, 2)
    assert not [*tmp_path.iterdir()]
