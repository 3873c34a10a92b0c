"""Imports point one way, and what should not need torch or Ray does not."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lchp"

# from the bottom up; a module imports from its own package and from what stands before it
LAYERS = [
    "errors",
    "boxes",
    "pictures",
    "config",
    "system",
    "files",
    "console",
    "data",
    "backbones",
    "method",
    "baselines",
    "evaluation",
    "tracking",
    "training",
    "deploy",
    "report",
    "harness",
    "cli",
    "__main__",
    "__init__",
]
LEVEL = {name: level for level, name in enumerate(LAYERS)}
WITHOUT_TORCH = (
    "errors",
    "boxes",
    "config",
    "files",
    "console",
    "cli",
    "system/streams",
    "system/imports",
    "system/interrupt",
    "evaluation/frames",
    "evaluation/metrics",
    "evaluation/predictions",
    "deploy/formats",
    "tracking",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The layer's name: a top-level module, or the package it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


class Read(NamedTuple):
    """What a file says: dotted names that it imports, those of them that run when it is imported itself, and its types:
    classes, and aliases of the form `Name = Something[...]`."""

    imports: tuple[str, ...]
    top_level: tuple[str, ...]
    types: tuple[str, ...]


@functools.cache
def read(path: Path) -> Read:
    tree = ast.parse(path.read_text(), str(path))
    found = list(imports(tree))
    return Read(tuple(n for n, _ in found), tuple(n for n, later in found if not later), tuple(types(tree)))


def imports(node: ast.AST, later: bool = False) -> Iterator[tuple[str, bool]]:
    """Names, and whether they are imported only when a function runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, later) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import: {ast.unparse(child)}"
            yield from ((f"{child.module}.{alias.name}", later) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        elif isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):  # an expression imports nothing
            yield from imports(child, later or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))


def types(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name) and t.id.strip("_")[0].isupper())


def test_every_module_has_a_layer() -> None:
    assert {part_of(p) for p in modules()} == set(LAYERS), "a part stands in LAYERS as low as its imports allow"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = part_of(path)
    for name in read(path).imports:
        parts = name.split(".")
        if parts[0] == "lchp" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {name} from a layer above it"


def module_of(name: str) -> str | None:
    """The module of the package that an imported name is, or lies in."""
    while name:
        path = ROOT / name.replace(".", "/")
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return name
        name = name.rpartition(".")[0]
    return None


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Within a layer, or a package, modules may import each other, but not in a circle."""
    uses: dict[str, set[str]] = {}
    for path in modules():
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found = {module_of(n) for n in read(path).imports if n.split(".")[0] == "lchp"}
        uses[own] = {name for name in found if name is not None} - {own}
    assert uses["lchp.training.run"] >= {"lchp.training.chain", "lchp.training.links"}

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        for name in uses[start] - seen:
            seen.add(name)
            if name == goal or reaches(name, goal, seen):
                return True
        return False

    assert not [name for name in uses if reaches(name, name, set())]


def test_no_two_types_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in modules():
        for name in read(path).types:
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert places["TrainConfig"] == ["lchp/config/fields.py"]
    assert "Overrides" in places, "aliases are among them"
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_only_the_harness_and_sweeps_import_ray() -> None:
    for path in (*modules(), *sorted((ROOT / "analysis").rglob("*.py"))):
        if path.is_relative_to(PACKAGE / "harness"):
            continue
        assert not [n for n in read(path).imports if n.split(".")[0] == "ray"], path


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_light_modules_import_no_torch(name) -> None:
    heavy = {"torch", "torchvision", "ray", "imgaug"}
    paths = [p for p in modules() if p.relative_to(PACKAGE).with_suffix("").is_relative_to(name)]
    assert paths
    assert not [n for p in paths for n in read(p).top_level if n.split(".")[0] in heavy]


def test_analysis_needs_no_torch_but_to_measure_networks() -> None:
    for path in sorted((ROOT / "analysis").rglob("*.py")):
        if path.stem in (
            "baseline",
            "benchmark",
            "method_costs",
            "teacher_boxes",
            "together",
            "auto_regret",
            "learnt_boxes",
            "several",
        ):
            continue
        assert not [n for n in read(path).imports if n.split(".")[0] in ("torch", "torchvision", "ray")], path


def run_without(*blocked: str, code: str) -> None:
    """Runs code in a process where some packages cannot be imported."""
    guard = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
"""
    subprocess.run([sys.executable, "-c", guard + code], check=True, cwd=ROOT)


def test_training_needs_neither_ray_nor_what_is_optional() -> None:
    optional = ("ray", "imgaug", "cv2", "tensorboardX", "mlflow", "wandb", "onnx", "onnxruntime", "tyro", "optuna")
    run_without(*optional, code="import lchp.training.run")


def test_importing_the_package_is_light() -> None:
    run_without("torch", "numpy", "ray", code="import lchp; lchp.TrainConfig(); assert lchp.__version__")


def test_a_wrong_folder_or_share_is_refused_before_torch_is_imported() -> None:
    code = """
from lchp.cli import main
assert main("train --preset folder --data.root nowhere".split()) == 2
assert main("predict nowhere --run nowhere".split()) == 2
assert main("predict . --run nowhere --format csv --min-confidence 5".split()) == 2
"""
    run_without("torch", code=code)


def test_public_names_exist() -> None:
    import lchp

    for name in lchp.__all__:
        assert getattr(lchp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        lchp.Trainer  # noqa: B018
