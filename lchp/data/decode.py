"""From an image file to pixels: the one place where images are decoded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, features

from lchp.data.base import require_regular
from lchp.errors import DataError, printable

# Named, so that content decides rather than the extension, and none of Pillow's exotic readers (EPS starts Ghostscript)
# is reached. JPEG includes MPO, which many phones write.
_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "QOI": (".qoi",),
    "AVIF": (".avif", ".avifs"),
}
# Formats without a mark of their own in the file, or seldom: read where the name says so alone.
_BY_NAME = {
    **dict.fromkeys((".tga", ".icb", ".vda", ".vst"), "TGA"),
    **dict.fromkeys((".sgi", ".bw", ".rgb", ".rgba"), "SGI"),
    **dict.fromkeys((".ras", ".sr"), "SUN"),
    ".ico": "ICO",
    ".pcx": "PCX",
    ".psd": "PSD",
    ".dds": "DDS",
}
_BUILT = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
"""Formats that a build of Pillow may lack, by the feature's name."""


def _formats() -> tuple[str, ...]:
    """The formats above that Pillow decodes here."""
    Image.init()
    return tuple(name for name in _EXTENSIONS if name in Image.OPEN and features.check(_BUILT.get(name, "pil")))


FORMATS = _formats()
EXTENSIONS = (*(extension for name in FORMATS for extension in _EXTENSIONS[name]), *_BY_NAME)
"""Of the files that are taken for images, in lower case."""
# fmt: off
PICTURES = frozenset([
    *(extension for some in _EXTENSIONS.values() for extension in some),
    *_BY_NAME, ".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".exr", ".hdr", ".pfm", ".eps", ".xcf",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", "",
])
# fmt: on
"""Extensions of pictures, and none. What has one that is not among `EXTENSIONS` is an image if its content can be
decoded here, as that of an AVIF called .heic."""

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


class CachedImage(NamedTuple):
    """An image as a cache keeps it, uint8 RGB, and the EXIF orientation (1: none) that `finished` has yet to apply."""

    pixels: np.ndarray
    orientation: int


class Header(NamedTuple):
    """Width and height in px as stored, and the EXIF orientation to be applied, 1 (none) to 8."""

    width: int
    height: int
    orientation: int

    def upright(self) -> tuple[int, int]:
        """Width and height in px of the picture that `decode` gives."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def decode(path: Path, size: int | None, exif: bool = False, content: bytes | None = None) -> np.ndarray:
    """The picture as uint8 RGB, `size` x `size` x 3 (both axes, bilinear with antialias), or H x W x 3 for `size` None.

    Gray becomes RGB, 16-bit gray is scaled to 8 bits, CMYK and palettes are converted; an alpha channel is dropped, not
    composited, so pixels under it show their stored colour. The first frame of an animation counts. `exif` turns the
    picture upright by its EXIF orientation (TIFF, where it belongs to the format, is always upright).
    content: the file's, where it has been read already.
    Raises DataError, naming the file, for whatever cannot be decoded in full, and for more pixels than Pillow's
    MAX_IMAGE_PIXELS.
    """
    with _opened(path, content) as image:
        orientation = _orientation(image) if exif else 1
        box = _draft(image, size)
        return _finished(_to_rgb(image), size, orientation, box)


def decode_kept(path: Path, size: int, exif: bool, content: bytes) -> CachedImage:
    """As `decode`, but at the source's size where `keeps_source`; `finished` then gives what `decode` does."""
    with _opened(path, content) as image:
        if not keeps_source(image.width, image.height, size):
            return CachedImage(decode(path, size, exif, content), 1)
        orientation = _orientation(image) if exif else 1
        return CachedImage(np.array(_to_rgb(image)), orientation)


def keeps_source(width: int, height: int, size: int) -> bool:
    """Whether an image is worth keeping at its own size (px) rather than at `size` x `size`: at half of the pixels."""
    return 2 * width * height <= size * size


def finished(kept: CachedImage, size: int) -> np.ndarray:
    """The pixels that `decode` gives, `size` x `size` x 3, of an image kept at its source's size."""
    return _finished(Image.fromarray(kept.pixels), size, kept.orientation, None)


def _finished(
    rgb: Image.Image, size: int | None, orientation: int, box: tuple[float, float, float, float] | None
) -> np.ndarray:
    if size is not None:
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if orientation in _TURNS:  # after the resize, since few pixels turn faster than many
        rgb = rgb.transpose(_TURNS[orientation])
    return np.array(rgb)


def read_file(path: Path) -> bytes:
    """The bytes of an image file. Raises DataError naming it."""
    with _named(path):
        require_regular(path)
        return path.read_bytes()


def header(path: Path, exif: bool = False, content: bytes | None = None) -> Header:
    """What an image's header says; `exif` and `content` as in `decode`. Raises DataError naming the file."""
    with _opened(path, content) as image:
        return Header(image.width, image.height, _orientation(image) if exif else 1)


def seen_alike(path: Path) -> bool:
    """Whether detectors, which read by OpenCV, see the picture that `decode` gives upright: by its content, whatever
    its name says, of a format that all of them read (not TIFF, of which OpenCV reads some kinds only), and turned by
    nothing but the EXIF block of a JPEG. Raises DataError naming the file."""
    with _opened(path) as image:
        if _orientation(image) not in _TURNS:
            return image.format in ("BMP", "JPEG", "MPO", "PNG", "WEBP")
        own = Image.Exif()  # without XMP, which Pillow heeds as well
        own.load(image.info.get("exif", b""))
        return image.format in ("JPEG", "MPO") and 0x0112 in own


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its name, which says of some kinds less than the content does."""
    name = path.name.lower()
    if name.endswith(EXTENSIONS) or os.path.splitext(name)[1] not in PICTURES:
        return name.endswith(EXTENSIONS)
    try:
        header(path)
    except DataError:
        return False
    return True


def image_size(path: Path, exif: bool = False) -> tuple[int, int]:
    """Width and height in px, read from the header; `exif` as in `decode`. Raises DataError naming the file."""
    return header(path, exif).upright()


def fault(path: Path, error: DataError) -> str:
    """What one of these functions said of the image, without the path that it begins with."""
    return str(error).removeprefix(f"{printable(str(path))}: ")


def verify(path: Path) -> None:
    """Checks what decoding passes over, such as PNG checksums. Raises DataError naming the file."""
    with _opened(path) as image:
        image.verify()


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[ImageFile.ImageFile]:
    """The image, its pixels not read yet; whatever goes wrong with it inside of the block becomes a DataError."""
    with _named(path):
        if content is None:
            require_regular(path)
        named = _BY_NAME.get(path.suffix.lower())
        formats = FORMATS if named is None else (*FORMATS, named)
        with Image.open(path if content is None else BytesIO(content), formats=formats) as image:
            _refuse_bomb(image)
            yield image


@contextmanager
def _named(path: Path) -> Iterator[None]:
    shown = printable(str(path))
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{shown}: no such image file") from None
    except (MemoryError, DataError):
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
