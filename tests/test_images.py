"""Images without a cache: decoded on demand, in this process or in workers."""

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lchp.config import DataConfig
from lchp.data import folder
from lchp.data.base import Split
from lchp.data.images import ahead, batches, in_order, open_images
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
