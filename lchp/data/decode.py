"""From an image file to pixels: the one place where images are decoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from lchp.data.base import require_regular
from lchp.errors import DataError, printable

# Named, so that content decides rather than the extension, and none of Pillow's exotic readers (EPS starts Ghostscript)
# is reached. JPEG includes MPO, which many phones write; GIF only ever shows up under another extension.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")

_WHITE_16 = 65535

# EXIF orientation -> what turns the stored picture upright, as in PIL.ImageOps.exif_transpose
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: Path, size: int | None, exif: bool = False) -> np.ndarray:
    """The picture as uint8 RGB, `size` x `size` x 3 (both axes, bilinear with antialias), or H x W x 3 for `size` None.

    Gray becomes RGB, 16-bit gray is scaled to 8 bits, CMYK and palettes are converted; an alpha channel is dropped, not
    composited, so pixels under it show their stored colour. The first frame of an animation counts. `exif` turns the
    picture upright by its EXIF orientation (TIFF, where it belongs to the format, is always upright).
    Raises DataError, naming the file, for whatever cannot be decoded in full, and for more pixels than Pillow's
    MAX_IMAGE_PIXELS.
    """
    with _opened(path) as image:
        orientation = _orientation(image) if exif else 1
        box = _draft(image, size)
        rgb = _to_rgb(image)
        if size is not None:
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if orientation in _TURNS:  # after the resize, since few pixels turn faster than many
            rgb = rgb.transpose(_TURNS[orientation])
        return np.array(rgb)


def image_size(path: Path, exif: bool = False) -> tuple[int, int]:
    """Width and height in px, read from the header; `exif` as in `decode`. Raises DataError naming the file."""
    with _opened(path) as image:
        sideways = exif and _orientation(image) >= 5
        return (image.height, image.width) if sideways else image.size


def fault(path: Path, error: DataError) -> str:
    """What one of these functions said of the image, without the path that it begins with."""
    return str(error).removeprefix(f"{printable(str(path))}: ")


def verify(path: Path) -> None:
    """Checks what decoding passes over, such as PNG checksums. Raises DataError naming the file."""
    with _opened(path) as image:
        image.verify()


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image, its pixels not read yet; whatever goes wrong with it inside of the block becomes a DataError."""
    shown = printable(str(path))
    try:
        require_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            _refuse_bomb(image)
            yield image
    except FileNotFoundError:
        raise DataError(f"{shown}: no such image file") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever their parsing trips over in a damaged file
        raise DataError(f"{shown}: not a readable image ({_reason(error)})") from error


def _refuse_bomb(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice the limit
        raise ValueError(f"{image.width} x {image.height} is more than the {limit} pixels allowed")


def _draft(image: ImageFile.ImageFile, size: int | None) -> tuple[float, float, float, float] | None:
    """Lets a JPEG much larger than needed decode at a fraction of its size.

    Returns the box of the drafted pixels that is exactly the picture (it need not be whole pixels), or None for all.
    """
    if size is None or image.mode not in ("RGB", "L"):
        return None
    drafted = image.draft(image.mode, (2 * size, 2 * size))
    return None if drafted is None else drafted[1]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: I;16 and its byte orders, or I where Pillow widens it
        wide = np.asarray(image).astype(np.int64).clip(0, _WHITE_16)
        return Image.fromarray(((wide * 255 + _WHITE_16 // 2) // _WHITE_16).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("32-bit floating-point pixels have no fixed range; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _orientation(image: ImageFile.ImageFile) -> int:
    """1 (upright) to 8."""
    try:
        orientation = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block does not spoil the pixels
        return 1
    return orientation if orientation in _TURNS else 1


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "empty, or of no known image type"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
