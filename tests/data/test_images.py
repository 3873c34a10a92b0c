"""Images decoded on demand, in this process or in others; the image cache; and what is remembered of files."""

import errno
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lchp.config import DataConfig
from lchp.data import fingerprint, folder, tiny_imagenet, training_fingerprint
from lchp.data.base import Split
from lchp.data.cache import Cached
from lchp.data.decode import decode, image_size
from lchp.data.images import Images, ahead, batches, in_order, lacking_memory, open_dataset, open_images
from lchp.errors import DataError

BAD = 3


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Eight images, the one at `BAD` cut off in its pixels."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "a" / f"{i}.png")
    bad = tmp_path / "train" / "a" / f"{BAD}.png"
    bad.write_bytes(bad.read_bytes()[:-400])
    return folder.load(tmp_path).train


def config(*, skip_bad: bool = False, cache: str = "off") -> DataConfig:
    return DataConfig(name="folder", cache=cache, resize=16, image_size=12, skip_bad=skip_bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_image_is_one_line(split: Split, workers: int) -> None:
    images = open_images(split, config(), show_progress=False)
    source = batches(images, in_order(8, 2), workers=workers, pin=False)
    assert next(source).index.tolist() == [0, 1]
    with pytest.raises(DataError) as error:
        next(source)
    assert split.paths is not None
    assert str(error.value).startswith(f"{split.paths[BAD]}: not a readable image")
    assert "\n" not in str(error.value)


def test_workers_can_be_spawned(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a spawned worker is handed: the images and the function that puts batches together."""
    images = open_images(split, config(), show_progress=False)
    made = []

    def loader(dataset: object, **options: object) -> list[object]:
        made.append(pickle.loads(pickle.dumps((dataset, options["collate_fn"]))))
        return []

    monkeypatch.setattr("lchp.data.images.DataLoader", loader)
    assert list(batches(images, in_order(8, 2), workers=2, pin=False)) == []
    ((copy, collate),) = made
    assert torch.equal(collate(copy.__getitems__([1, 2])).images, images.batch([1, 2]).images)


@pytest.mark.parametrize("cached", [False, True])
def test_skip_bad(split: Split, tmp_path: Path, cached: bool) -> None:
    cache = str(tmp_path / "cache") if cached else "off"
    images = open_images(split, config(skip_bad=True, cache=cache), show_progress=False)
    kept = [i for i in range(8) if i != BAD]
    assert (images.pixels is not None) == cached
    assert images.split.image_ids == tuple(split.image_ids[i] for i in kept)
    assert split.paths is not None
    assert [(p.file, p.image_id) for p in images.problems] == [(str(split.paths[BAD]), split.image_ids[BAD])]
    assert images.problems[0].message.startswith("not a readable image")
    (batch,) = batches(images, in_order(len(images), 7), workers=0, pin=False)
    assert torch.equal(batch.images, open_images(split.select(np.array(kept)), config()).batch(list(range(7))).images)


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_left_to_skip_to(split: Split, tmp_path: Path, cached: bool) -> None:
    cache = str(tmp_path / "cache") if cached else "off"
    with pytest.raises(DataError, match="not a readable image"):
        open_images(split.select(np.array([BAD])), config(skip_bad=True, cache=cache), show_progress=False)


def test_a_thread_makes_items_ahead_in_order() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for n in range(6):
            made.append(n)
            yield n
        raise DataError("the seventh is broken")

    items = ahead(source(), 2)
    for n in range(6):
        assert next(items) == n
        assert len(made) <= n + 4  # never more than two and the one in the making
    with pytest.raises(DataError, match="the seventh"):
        next(items)


def test_what_is_ahead_may_be_left_there() -> None:
    before = threading.active_count()
    items = ahead(iter(range(1000)), 2)
    assert [next(items), next(items)] == [0, 1]
    items.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


# --- the cache


@pytest.fixture
def small(tmp_path: Path) -> Split:
    """Images of many kinds and sizes, most of which a cache at 64 px keeps at their own."""
    rng, root = np.random.default_rng(0), tmp_path / "small"
    for part in ("train", "test"):
        (root / part / "a").mkdir(parents=True)
    for n, (width, height) in enumerate([(20, 20), (30, 17), (200, 9), (90, 90), (64, 64), (1, 1), (33, 62), (8, 40)]):
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = n + 1
        image.save(root / "train" / "a" / f"{n}.jpg", exif=exif)
        image.save(root / "train" / "a" / f"{n}.png", exif=exif)
        image.convert("P").save(root / "train" / "a" / f"{n}.gif")
        image.convert("CMYK").save(root / "train" / "a" / f"{n}.tif")
    image.save(root / "test" / "a" / "0.png")
    return folder.load(root).train


def cached(split: Split, tmp_path: Path, resize: int = 64) -> tuple[Images, Path]:
    """The opened images and images.npy."""
    settings = replace(config(cache=str(tmp_path / "cache")), resize=resize)
    images = open_images(split, settings, show_progress=False)
    (file,) = (tmp_path / "cache" / "images").glob("*/images.npy")
    return images, file


def everything(images: Images) -> np.ndarray:
    return images.batch(list(range(len(images)))).images.numpy()


@pytest.mark.parametrize("threads", [1, 3])
def test_small_images_are_kept_small_and_read_as_decoded(
    small: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images, file = cached(small, tmp_path)
    assert small.paths is not None
    want = np.stack([decode(path, 64, exif=True) for path in small.paths])
    assert np.array_equal(everything(images), want)
    assert images.batch([5, 2]).images.numpy().tobytes() == want[[5, 2]].tobytes()
    sizes = [Image.open(path).size for path in small.paths]
    expected = sum(3 * (w * h if 2 * w * h <= 64**2 else 64**2) for w, h in sizes)
    assert file.stat().st_size == 128 + expected
    assert images.sizes().tolist() == [list(image_size(path, exif=True)) for path in small.paths]


def test_a_cache_of_one_size_is_an_array_of_images(tiny20_root: Path, tmp_path: Path) -> None:
    """Tiny-ImageNet at 512 px: 64 times smaller, the same pixels."""
    split = tiny_imagenet.load(tiny20_root).test.select(np.arange(40))
    images, file = cached(split, tmp_path, resize=512)
    assert np.load(file, mmap_mode="r").shape == (40, 64, 64, 3)
    assert split.paths is not None
    assert np.array_equal(everything(images), np.stack([decode(path, 512) for path in split.paths]))


def test_large_images_are_kept_resized(tmp_path: Path, squares_root: Path) -> None:
    split = folder.load(squares_root).train
    images, file = cached(split, tmp_path, resize=40)
    assert np.load(file).shape == (len(split), 40, 40, 3)
    assert split.paths is not None
    assert np.array_equal(np.asarray(images.pixels), np.stack([decode(p, 40, exif=True) for p in split.paths]))


def overwrite(file: Path, at: int) -> None:
    """Eight bytes, as a disk or a stray program does; the file's length stays."""
    with file.open("r+b") as out:
        out.seek(at)
        old = out.read(8)
        out.seek(at)
        out.write(bytes(255 - b for b in old))


@pytest.mark.parametrize("at", [10, 128, 700, -8])
def test_a_cache_overwritten_before_a_start_is_made_anew(
    small: Split, tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    images, file = cached(small, tmp_path)
    want, size = everything(images), file.stat().st_size
    overwrite(file, at % size)
    images, file = cached(small, tmp_path)
    assert "damaged cache, made anew" in caplog.text
    assert np.array_equal(everything(images), want)
    caplog.clear()
    assert np.array_equal(everything(cached(small, tmp_path)[0]), want)
    assert "damaged" not in caplog.text


def test_a_cache_overwritten_while_it_is_read(small: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The image is decoded anew; what it is decoded from is not trusted either."""
    images, file = cached(small, tmp_path)
    want = everything(images)
    overwrite(file, 128)
    assert np.array_equal(everything(images), want)
    assert "damaged cache, removed" in caplog.text
    assert not file.exists()
    assert np.array_equal(everything(cached(small, tmp_path)[0]), want)
    assert small.paths is not None
    Image.new("RGB", (20, 20)).save(small.paths[0])
    with pytest.raises(DataError, match=r"damaged cache, and .* is no longer the image"):
        everything(images)


def test_a_cache_that_was_touched_is_verified_once(
    small: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images, file = cached(small, tmp_path)
    want, verified = everything(images), []
    damaged = Cached.damaged
    monkeypatch.setattr(Cached, "damaged", lambda *a: verified.append(1) or damaged(*a))
    os.utime(file)
    for _ in range(2):
        assert np.array_equal(everything(cached(small, tmp_path)[0]), want)
    assert len(verified) == 1
    assert "damaged" not in caplog.text


def test_a_copy_of_the_images_finds_the_same_cache(small: Split, tmp_path: Path) -> None:
    cached(small, tmp_path)
    copy = shutil.copytree(tmp_path / "small", tmp_path / "copy")
    cached(folder.load(Path(copy)).train, tmp_path)  # unpacks a single cache


def test_a_file_system_that_maps_no_files(
    small: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    images, file = cached(small, tmp_path)
    for there in (True, False):
        if not there:
            shutil.rmtree(file.parent)
        with monkeypatch.context() as patch:
            patch.setattr(np, "memmap", fail)
            with pytest.raises(DataError, match=r"cannot map files into memory \(mmap: No such device\)") as error:
                cached(small, tmp_path)
        assert "\n" not in str(error.value)
        assert file.exists() == there
    assert "damaged" not in caplog.text
    assert list((tmp_path / "cache" / "images").iterdir()) == []
    assert images.split.image_ids == small.image_ids


def test_room_is_asked_for_both_splits_at_once(
    squares_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings, dataset = config(cache=str(tmp_path)), folder.load(squares_root)
    needed = 16 * 16 * 3 * 24
    monkeypatch.setattr("lchp.data.images.shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(DataError, match=r"data\.cache: 0\.0 GB are needed in .* GB are free; name another"):
        open_dataset(dataset, settings, show_progress=False)
    assert list((tmp_path / "images").iterdir()) == []
    monkeypatch.setattr("lchp.data.images.shutil.disk_usage", lambda _: SimpleNamespace(free=needed))
    open_dataset(dataset, settings, show_progress=False)
    assert caplog.text.count(f" kB in {tmp_path}") == 2  # said before each is made
    monkeypatch.setattr("lchp.data.images.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    open_dataset(dataset, settings, show_progress=False)  # they are there


# --- what is known of files


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("read again")


@pytest.mark.parametrize("cache", ["off", "cache"])
def test_a_second_start_reads_no_image(
    squares_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = Path(shutil.copytree(squares_root, tmp_path / "images"))
    settings = config(cache=cache if cache == "off" else str(tmp_path / "cache"))
    first, *_ = open_dataset(folder.load(root), settings, show_progress=False)
    for name in ("content.read_file", "content.decode", "decode.Image.open"):
        monkeypatch.setattr(f"lchp.data.{name}", forbid)
    second, train, _ = open_dataset(folder.load(root), settings, show_progress=False)
    assert fingerprint(second) == fingerprint(first) == fingerprint(folder.load(root), settings.cache)
    assert train.sizes().tolist() == [[64, 48]] * len(train)
    assert not (tmp_path / "home").exists() or cache == "off"


def test_only_what_changed_is_read_again(tmp_path: Path, squares_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(shutil.copytree(squares_root, tmp_path / "images"))
    settings = config(cache=str(tmp_path / "cache"))
    before = fingerprint(folder.load(root), settings.cache)
    path, kept = root / "red" / "3.png", (root / "red" / "3.png").read_bytes()
    times = path.stat()
    Image.new("RGB", (64, 48)).save(path)
    path.write_bytes(path.read_bytes().ljust(len(kept), b"\0")[: len(kept)])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy or rsync leaves it: same size, same time
    read = []
    monkeypatch.setattr("lchp.data.content.read_file", lambda p: read.append(p) or p.read_bytes())
    changed = fingerprint(folder.load(root), settings.cache)
    assert read == [path]
    path.write_bytes(kept)
    assert fingerprint(folder.load(root), settings.cache) == before != changed


def test_bmp_images_exchanged_for_others_of_equal_size(tmp_path: Path) -> None:
    """No start takes the old pixels for the new ones, not even out of the cache."""
    root, settings, seen = tmp_path / "images", config(cache=str(tmp_path / "cache")), []
    for colour in ("red", "blue", "red"):
        for part in ("train", "test"):
            (root / part / "a").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), colour).save(root / part / "a" / "0.bmp")
            os.utime(root / part / "a" / "0.bmp", (1, 1))
        dataset, train, _ = open_dataset(folder.load(root), settings, show_progress=False)
        seen.append((training_fingerprint(dataset), fingerprint(dataset), everything(train)[0, 0, 0].tolist()))
    assert seen[0] == seen[2]
    assert not {*map(str, seen[0])} & {*map(str, seen[1])}


@pytest.mark.parametrize("fault", ["cut", "changed", "empty", "folder"])
def test_what_is_known_is_damaged(tmp_path: Path, squares_root: Path, fault: str) -> None:
    settings = config(cache=str(tmp_path))
    want = fingerprint(folder.load(squares_root), settings.cache)
    (file,) = (tmp_path / "contents").iterdir()
    whole = file.read_bytes()
    if fault == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"cut": whole[:-3], "changed": whole[:-30] + bytes(8) + whole[-22:], "empty": b""}[fault])
    assert fingerprint(folder.load(squares_root), settings.cache) == want
    assert fault == "folder" or file.read_bytes() == whole


def test_nowhere_to_remember(
    tmp_path: Path, squares_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No home, or one that cannot be written: it works, and each start reads all images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    want = fingerprint(folder.load(squares_root))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    dataset, *_ = open_dataset(folder.load(squares_root), config(), show_progress=False)
    assert fingerprint(dataset) == want
    assert caplog.text.count("the images are read again at every start") == 2

    def homeless(_: str) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("lchp.files.caches.platformdirs.user_cache_dir", homeless)
    dataset, *_ = open_dataset(folder.load(squares_root), config(), show_progress=False)
    assert fingerprint(dataset) == want
    with pytest.raises(DataError, match=r"data\.cache = 'auto': you have no home folder"):
        open_dataset(dataset, config(cache="auto"), show_progress=False)
    open_dataset(dataset, config(cache=str(tmp_path / "cache")), show_progress=False)


# --- shared memory


def shared_memory(free: int) -> SimpleNamespace:
    return SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=1)


def test_little_shared_memory(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's 64 MB are less than what eight processes of the preset imagenet need: threads give the same batches."""
    monkeypatch.setattr("lchp.data.images.os.statvfs", lambda _: shared_memory(64_000_000))
    lack = lacking_memory(8, 32, 512)
    assert lack == "/dev/shm has 64 MB free, and 8 processes need 503 MB"
    monkeypatch.setattr("lchp.data.images.os.statvfs", lambda _: shared_memory(503_316_480))
    assert lacking_memory(8, 32, 512) is None
    monkeypatch.setattr("lchp.data.images.os.statvfs", lambda _: shared_memory(1000))
    monkeypatch.setattr("lchp.data.images._by_processes", forbid)
    images = open_images(split, config(), show_progress=False)
    order = [[0, 1], [2, 4], [5]]
    drawn = []
    for workers in (0, 2):
        torch.manual_seed(0)
        got = list(batches(images, order, workers=workers, pin=False))
        drawn.append(([b.index.tolist() for b in got], [b.images.numpy().tobytes() for b in got], torch.rand(1)))
    assert drawn[0] == drawn[1]
    with pytest.raises(DataError, match="not a readable image"):
        list(batches(images, [[BAD]], workers=2, pin=False))


def test_open_says_that_shared_memory_lacks(
    squares_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lchp.data.images.os.statvfs", lambda _: shared_memory(1000))
    open_dataset(folder.load(squares_root), replace(config(), workers=2), show_progress=False)
    assert caplog.text.count("data.workers = 2: /dev/shm has 1 kB free, and 2 processes need") == 1


@pytest.mark.parametrize("fault", ["killed", "stuck", "none"])
def test_processes_that_fail(
    split: Split, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Threads go on with the batch that was due, and nothing else is drawn."""
    monkeypatch.setattr("lchp.data.images._PATIENCE", 1)
    images = open_images(split, config(), show_progress=False)
    order = [[0, 1], [2, 4], [5], [6, 7], [1, 0], [4]]
    torch.manual_seed(0)
    want = [b.images.numpy().tobytes() for b in batches(images, order, workers=0, pin=False)], torch.rand(1)
    main = os.getpid()

    def fail(self: Images, index: list[int]) -> object:
        if os.getpid() != main and index == [6, 7]:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(fault == "stuck" and 60)
        return self.batch(index)

    monkeypatch.setattr(Images, "__getitems__", fail)
    torch.manual_seed(0)
    got = [b.images.numpy().tobytes() for b in batches(images, order, workers=2, pin=False)], torch.rand(1)
    assert got == want
    assert ("threads decode instead" in caplog.text) == (fault != "none")
