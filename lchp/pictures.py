"""Boxes drawn on pictures, so that they can be told from any background. Pillow only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
BoxPx = tuple[float, float, float, float]
"""x1 y1 x2 y2 in px of the picture, exclusive ends."""

BLACK, WHITE, YELLOW = (0, 0, 0), (255, 255, 255), (255, 221, 0)


@dataclass(frozen=True)
class Style:
    """How a box looks. `width` in px; `line`: `solid`, `dashed` or `dotted`."""

    colour: Colour
    width: int = 2
    line: Literal["solid", "dashed", "dotted"] = "solid"


# The colours are those of the paper's Figures 2 and 3; the lines differ for a reader who cannot tell them apart. In the
# order to draw them: broken lines last, so that both show where two boxes coincide.
STYLES = {
    "ground_truth": Style((230, 30, 30), 3),
    "lchp_r": Style((60, 130, 255), 2),
    "lchp_i": Style((40, 200, 60), 2, "dashed"),
    "pseudo_label": Style(YELLOW, 2, "dotted"),
}


def draw_box(image: Image.Image, box: BoxPx, style: Style) -> None:
    """Draws a box's outline into an RGB picture, inside of the box, with a black rim of one px around every stroke."""
    draw = ImageDraw.Draw(image)
    x1, y1 = _within(box[0], image.width), _within(box[1], image.height)
    x2, y2 = max(x1, _within(box[2] - 1, image.width)), max(y1, _within(box[3] - 1, image.height))
    w = min(style.width, x2 - x1 + 1, y2 - y1 + 1)
    on, period = {"solid": (x2 + y2 + 1,) * 2, "dashed": (4 * w, 7 * w), "dotted": (w, 3 * w)}[style.line]
    strokes = [(a, y, b, y + w - 1) for a, b in _dashes(x1, x2, on, period) for y in (y1, y2 - w + 1)]
    strokes += [(x, a, x + w - 1, b) for a, b in _dashes(y1, y2, on, period) for x in (x1, x2 - w + 1)]
    for left, top, right, bottom in strokes:
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=BLACK)
    for stroke in strokes:
        draw.rectangle(stroke, fill=style.colour)


def _within(value: float, size: int) -> int:
    """The pixel nearest to `value`."""
    return min(max(round(value), 0), size - 1)


def _dashes(start: int, stop: int, on: int, period: int) -> Iterator[tuple[int, int]]:
    for a in range(start, stop + 1, period):
        yield a, min(a + on - 1, stop)


def draw_label(image: Image.Image, at: tuple[float, float], text: str, colour: Colour = YELLOW) -> None:
    """Writes dark text on a patch of `colour` with its lower left corner at `at` (px), shifted to fit the picture."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, min(40, min(image.size) // 18)))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = max(0, min(round(at[0]), image.width - width))
    y = max(0, min(round(at[1]) - height, image.height - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), text, font=font, fill=BLACK)


def line_width(size: tuple[int, int]) -> int:
    """A width in px that shows on a picture of this size."""
    return max(2, round(min(size) / 150))
