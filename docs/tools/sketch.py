"""The sketch of packages and their imports in docs/architecture.md, made from the code as it lies.

python docs/tools/sketch.py             # prints it
python docs/tools/sketch.py --write     # renews it in docs/architecture.md

A part is a package or a module directly under lchp/. It points to every part that it imports, wherever in the file the
import stands, but not under TYPE_CHECKING. An arrow that others imply is left out of the picture, and not of the table.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
MARKS = ("<!-- sketch -->\n", "<!-- end -->\n")


def parts(package: Path) -> dict[str, list[Path]]:
    """Name -> files of each part, `__init__` and `__main__` of the package itself left out."""
    found = {p.stem: [p] for p in sorted(package.glob("*.py")) if not p.stem.startswith("__")}
    folders = sorted(p.parent for p in package.glob("*/__init__.py"))
    return found | {folder.name: sorted(folder.rglob("*.py")) for folder in folders}


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The parts that a file imports."""
    for node in ast.iter_child_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from imported(node, package)
        yield from (name.split(".")[1] for name in names if name.startswith(f"{package}."))


def graph(package: Path) -> nx.DiGraph:
    """Parts and their imports; each node has `about`, the first sentence of its docstring."""
    out, files = nx.DiGraph(), parts(package)
    for name, paths in files.items():
        home = next((p for p in paths if p.name == "__init__.py"), paths[0])
        about = " ".join((ast.get_docstring(ast.parse(home.read_text())) or "").split("\n\n")[0].split())
        out.add_node(name, about=about.split(". ")[0].rstrip("."), package=home.name == "__init__.py")
        for path in paths:
            found = {n for n in imported(ast.parse(path.read_text(), str(path)), package.name) if n in files}
            out.add_edges_from((name, other) for other in found - {name})
    return out


def sketch(package: Path) -> str:
    """A picture (Mermaid) and a table, both from the top down: a part stands above all that it imports."""
    found = graph(package)
    knots = nx.condensation(found)  # parts that import each other in a circle are one
    height = dict.fromkeys(knots, 0)
    for knot in reversed(list(nx.topological_sort(knots))):
        height[knot] = max((height[other] + 1 for other in knots.successors(knot)), default=0)
    knot_of = knots.graph["mapping"]
    names = sorted(found, key=lambda n: (-height[knot_of[n]], n))
    arrows = [
        (name, other)
        for above, below in nx.transitive_reduction(knots).edges
        for name in knots.nodes[above]["members"]
        for other in knots.nodes[below]["members"]
        if found.has_edge(name, other)
    ]
    arrows += [(a, b) for a, b in found.edges if knot_of[a] == knot_of[b]]
    arrows.sort(key=lambda arrow: (names.index(arrow[0]), names.index(arrow[1])))
    picture = ["flowchart TD", *(f"    {a} --> {b}" for a, b in arrows)]
    lone = [n for n in names if not found.degree(n)]
    picture += [f"    {name}" for name in lone]
    table = ["| part | what it holds | imports |", "|---|---|---|"]
    for name in names:
        others = ", ".join(sorted(found.successors(name), key=names.index)) or "-"
        shown = f"{name}/" if found.nodes[name]["package"] else f"{name}.py"
        table.append(f"| `{shown}` | {found.nodes[name]['about'].replace('|', chr(92) + '|')} | {others} |")
    return "\n".join(["```mermaid", *picture, "```", "", *table, ""])


def renewed(text: str, package: Path) -> str:
    """The page with the sketch of a package between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise SystemExit(f"{PAGE}: no {MARKS[0].strip()} with {MARKS[1].strip()} after it")
    return f"{before}{MARKS[0]}\n{sketch(package)}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(renewed(PAGE.read_text(), ROOT / "lchp"))
    else:
        print(sketch(ROOT / "lchp"))
