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


# Figures 2 and 3 of the paper; the lines differ too, for a reader who cannot tell the colours apart
STYLES = {
    "ground_truth": Style((230, 30, 30), 3),
    "pseudo_label": Style(YELLOW, 2, "dotted"),
    "lchp_i": Style((40, 200, 60), 2, "dashed"),
    "lchp_r": Style((40, 110, 255), 2),
}


def draw_box(image: Image.Image, box: BoxPx, style: Style) -> None:
    """Draws a box's outline into an RGB picture, with a dark rim (one px on both sides) around solid lines."""
    draw = ImageDraw.Draw(image)
    x1, y1 = max(0, round(box[0])), max(0, round(box[1]))
    x2 = min(image.width - 1, max(x1, round(box[2]) - 1))
    y2 = min(image.height - 1, max(y1, round(box[3]) - 1))
    x1, y1 = min(x1, x2), min(y1, y2)
    if style.line == "solid":
        _rectangle(draw, (x1 - 1, y1 - 1, x2 + 1, y2 + 1), BLACK, style.width + 2)
        _rectangle(draw, (x1, y1, x2, y2), style.colour, style.width)
        return
    w = style.width
    on, period = (4 * w, 7 * w) if style.line == "dashed" else (w, 3 * w)
    for a, b in _dashes(x1, x2, on, period):
        draw.rectangle((a, y1, b, min(y1 + w - 1, y2)), fill=style.colour)
        draw.rectangle((a, max(y2 - w + 1, y1), b, y2), fill=style.colour)
    for a, b in _dashes(y1, y2, on, period):
        draw.rectangle((x1, a, min(x1 + w - 1, x2), b), fill=style.colour)
        draw.rectangle((max(x2 - w + 1, x1), a, x2, b), fill=style.colour)


def draw_label(image: Image.Image, at: tuple[float, float], text: str, colour: Colour = YELLOW) -> None:
    """Writes dark text on a patch of `colour` whose lower left corner is `at` (px), shifted and cut to fit the picture."""
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


def _rectangle(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], colour: Colour, width: int) -> None:
    x1, y1, x2, y2 = corners
    # Pillow fills a box thinner than its line beyond the box
    draw.rectangle(corners, outline=colour, width=max(1, min(width, (min(x2 - x1, y2 - y1) + 1) // 2)))


def _dashes(start: int, stop: int, on: int, period: int) -> Iterator[tuple[int, int]]:
    for a in range(start, stop + 1, period):
        yield a, min(a + on - 1, stop)
