"""How figures look, and how they are written: widths and letters for print, marks that need no colour, PNG and PDF.

Matplotlib's objects only: no pyplot, and its settings are changed inside `style()` alone.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lchp import pictures
from lchp.evaluation.predictions import TITLES
from lchp.files.runs import write_atomically
from lchp.files.targets import holding, require_file
from lchp.report.read import clean

COLUMN, PAGE = 3.5, 7.16
"""Widths of a column and of a page of the paper's journal, in inches. A figure is printed at the size it has."""
DPI = 300
SMALL = 7
"""Points; the smallest letters of any figure."""
GREY = "#555555"

_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that figures do not depend on the machine's fonts
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.1,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # letters as letters: journals refuse Type 3
}

_MARKS = {"png": b"tEXtSoftware\0lchp", "pdf": b"/Creator (lchp)"}
"""What each file of ours contains, by which an earlier one is known."""

DASHES: dict[str, Any] = {"solid": "-", "dashed": (0, (4, 3)), "dotted": (0, (1, 2))}
"""Line styles of `lchp.pictures` as matplotlib has them, in the same proportions."""


@dataclass(frozen=True)
class Mark:
    """How a curve looks; each of the three tells it from the others."""

    colour: str
    line: Any
    marker: str


ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
"""Okabe and Ito's colours, which readers with any colour vision can tell apart."""

CURVES = {
    name: Mark(colour, DASHES[pictures.STYLES[name].line], marker)
    for name, colour, marker in (("pseudo_label", ORANGE, "o"), ("lchp_i", GREEN, "s"), ("lchp_r", BLUE, "^"))
}
"""The three results in curves: the hues and lines that their boxes have in pictures, dark enough for lines on white."""


@dataclass(frozen=True)
class Drawing:
    """A figure. `name`: of its files; `caption`: what it shows and of which records, in sentences. It alone names
    what a record may have put any sign into: in the figure itself matplotlib would take `$` for mathematics."""

    name: str
    caption: str
    figure: Figure

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", clean(self.caption))


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's own defaults and ours, whatever the user's matplotlibrc says; put back at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_RC)
        yield


def rendered(drawing: Drawing, kind: Literal["png", "pdf"]) -> bytes:
    """The figure as a file. The same records give the same bytes: no date and no version of matplotlib is in a PNG."""
    metadata = {"png": {"Software": "lchp"}, "pdf": {"CreationDate": None, "Title": drawing.name, "Creator": "lchp"}}
    out = io.BytesIO()
    with style():
        drawing.figure.savefig(out, format=kind, dpi=DPI, metadata=metadata[kind])
    return out.getvalue()


def save(drawing: Drawing, folder: Path) -> None:
    """Writes NAME.png, NAME.pdf, and the caption as NAME.txt, over earlier ones; ConfigError where a file of
    such a name is none (a text is a caption where it lies beside a picture of ours)."""
    contents = {
        "png": rendered(drawing, "png"),
        "pdf": rendered(drawing, "pdf"),
        "txt": f"{drawing.caption}\n".encode(),
    }
    marked = {suffix: holding(mark) for suffix, mark in _MARKS.items()}
    own = {**marked, "txt": lambda path: marked["png"](path.with_suffix(".png"))}
    named = [(folder / f"{drawing.name}.{suffix}", suffix) for suffix in contents]
    for path in [require_file(path, "output", own[suffix], "figure of lchp") for path, suffix in named]:
        content = contents[path.suffix[1:]]
        write_atomically(path, lambda file, content=content: file.write(content))


def draw_picture(ax: Axes, pixels: Any, **options: Any) -> None:
    """An image (H x W x 3, or H x W with a colour map) as the unit square, y downwards: boxes are fractions of it."""
    ax.imshow(pixels, extent=(0, 1, 1, 0), interpolation="nearest", **options)
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


def draw_box(ax: Axes, box: Any, name: str, width: float = 1.0) -> None:
    """One box (x1 y1 x2 y2, fractions) in the colour and line that the result or the ground truth has everywhere.
    width: of the line, as a multiple of its usual width."""
    x1, y1, x2, y2 = (float(v) for v in box)
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, clip_on=False, **pen(name, "edgecolor", width)))


def box_handles(names: Iterable[str]) -> list[Artist]:
    """Legend entries of boxes."""
    return [Line2D([], [], label=TITLES.get(name, "ground truth"), **pen(name)) for name in names]


def pen(name: str, colour: str = "color", width: float = 1.0) -> dict[str, Any]:
    """How the line of a result's or the ground truth's boxes is drawn; `colour`: the keyword that takes its colour."""
    look = pictures.STYLES[name]
    width = 0.65 * look.width * width  # px on a screen, points on paper
    rim = withStroke(linewidth=width + 0.9, foreground="black")  # shows on any background
    rgb = tuple(c / 255 for c in look.colour)
    return {colour: rgb, "linewidth": width, "linestyle": DASHES[look.line], "path_effects": [rim]}
