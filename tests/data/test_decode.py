"""Images of every kind a folder may hold, decoded to uint8 RGB or refused by name."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lchp.data.decode import decode, image_size, verify
from lchp.errors import DataError

RED, GREEN = (250, 10, 10), (10, 250, 10)


def halves(width: int, height: int) -> Image.Image:
    """Red on the left, green on the right."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, GREEN
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def is_near(pixel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= 12)


def test_size_none_keeps_pixels(tmp_path: Path) -> None:
    image = halves(31, 17)
    assert np.array_equal(decode(save(image, tmp_path / "a.png"), None), np.asarray(image))


def test_resizes_both_axes_with_antialias(tmp_path: Path) -> None:
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    path = save(Image.fromarray(checker.astype(np.uint8)), tmp_path / "a.png")
    out = decode(path, 8)
    assert out.shape == (8, 8, 3)
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - 127).max() < 20  # a sampled checkerboard would be black and white


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes(tmp_path: Path, mode: str) -> None:
    extension = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    path = save(halves(40, 20).convert(mode), tmp_path / f"a.{extension}")
    out = decode(path, 16)
    assert out.shape == (16, 16, 3)
    if mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        assert is_near(out[8, 2], RED)
        assert is_near(out[8, 13], GREEN)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = halves(40, 20).convert("P", palette=Image.Palette.ADAPTIVE)
    path = save(image, tmp_path / "a.png", transparency=bytes([0, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = decode(path, None)
    assert is_near(out[5, 5], RED)
    assert is_near(out[5, 35], GREEN)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    image = halves(8, 8)
    image.putalpha(0)
    assert is_near(decode(save(image, tmp_path / "a.png"), None)[0, 0], RED)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_gray_of_16_bits_is_scaled(tmp_path: Path, extension: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    out = decode(save(Image.fromarray(values), tmp_path / f"a.{extension}"), None)
    assert out[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (out == out[..., :1]).all()


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.zeros((4, 4), np.float32)), tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*floating-point"):
        decode(path, None)


def test_one_pixel(tmp_path: Path) -> None:
    out = decode(save(Image.new("RGB", (1, 1), RED), tmp_path / "a.png"), 32)
    assert out.shape == (32, 32, 3)
    assert (out == RED).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, 24])
def test_exif_orientation(tmp_path: Path, orientation: int, size: int | None) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 2, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(stored), tmp_path / "a.png", exif=exif)
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    upright, plain = decode(path, size, exif=True), decode(path, size)
    want, want_plain = turned, stored
    if size is not None:
        want, want_plain = (np.asarray(Image.fromarray(p).resize((size, size), 2)) for p in (turned, stored))
    else:
        assert image_size(path, exif=True) == (want.shape[1], want.shape[0])
        assert image_size(path) == (32, 48)
    assert upright.shape == want.shape
    assert np.abs(upright.astype(int) - want).max() <= 1
    assert np.array_equal(plain, want_plain)


def test_damaged_exif_does_not_spoil_the_pixels(tmp_path: Path) -> None:
    path = save(halves(16, 16), tmp_path / "a.jpg", exif=b"Exif\0\0nonsense that is no TIFF header")
    assert decode(path, None, exif=True).shape == (16, 16, 3)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    Image.new("RGB", (8, 8), RED).save(
        path, save_all=True, append_images=[Image.new("RGB", (8, 8), GREEN)], lossless=True
    )
    assert is_near(decode(path, None)[4, 4], RED)


def test_content_decides_not_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    halves(8, 8).save(path, format="GIF")
    assert decode(path, None).shape == (8, 8, 3)


@pytest.mark.parametrize(("width", "height"), [(997, 613), (613, 2000), (400, 300)])
def test_draft_does_not_move_the_picture(tmp_path: Path, width: int, height: int) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8))
    path = save(image, tmp_path / "a.jpg", quality=95)
    with Image.open(path) as stored:
        want = np.asarray(stored.convert("RGB").resize((50, 50), Image.Resampling.BILINEAR), int)
    assert np.abs(decode(path, 50) - want).mean() < 1


@pytest.mark.parametrize("call", [lambda p: decode(p, 8), lambda p: image_size(p), verify])
@pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_no_image_is_named(tmp_path: Path, call, content: bytes) -> None:
    path = tmp_path / "odd name.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd name\.jpg: not a readable image"):
        call(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: no such image file"):
        decode(tmp_path / "gone.jpg", 8)


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "webp", "tif"])
def test_truncated_image_is_named(tmp_path: Path, extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"a.{extension}")
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=rf"a\.{extension}: not a readable image"):
            decode(path, 8)


def test_verify_sees_a_wrong_checksum(tmp_path: Path) -> None:
    path = save(halves(16, 16), tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"IHDR") + 17] ^= 1  # a byte of the header's CRC
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        verify(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [300, 100])  # Pillow warns above the limit, and refuses above its double
def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = save(Image.new("RGB", (20, 20)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"a\.png"):
        decode(path, 8)
