"""What a training will take, before it begins."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
from PIL import Image

from lchp.cli import main
from lchp.cli import train as command
from lchp.config import override, preset
from lchp.errors import DataError
from lchp.method.choice import Choice
from lchp.method.pseudo_boxes import Snapshots
from lchp.method.view_table import ViewTable
from lchp.training import forecast as module
from lchp.training.chain import chain_of
from lchp.training.forecast import Forecast, LinkForecast, forecast, spoken
from lchp.training.tried import Counts, _cut, _to_come


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 seconds"), (119, "119 seconds"), (150, "2.5 minutes"), (2400, "40 minutes"), (9000, "2.5 hours"),
     (100_000, "28 hours"), (400_000, "4.6 days"), (4_000_000, "46 days"), (1.2, "1 second")],
)  # fmt: skip
def test_a_time_in_words(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_a_training_says_first_what_is_to_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small.make_folder(tmp_path / "images")
    flags = [word for name, value in small.flags(root, first=1, second=1).items()
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    assert main(["train", *flags, "--output", str(tmp_path / "run"), "--dry-run"]) == 0
    said, logged = capsys.readouterr()
    for word in ("classifier", "localizer", "refinement", "in all about", "GB of memory", "run folder", "image cache"):
        assert word in said
    assert said.startswith("What is to come, measured on a few batches:")
    assert "epoch 1/" not in said + logged
    assert "measuring a few steps of each link, to say how long all will take\n" in logged
    assert not (tmp_path / "run").exists()
    assert main(["train", *flags, "--output", str(tmp_path / "run"), "--no-forecast"]) == 0
    said, logged = capsys.readouterr()
    assert "in all about" not in said
    assert "measuring" not in logged


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nowhere", "data.root = "),
        ("lone", "folder: all 32 training images are of one class (class_0); training needs two or more, since it "),
        ("bad", "2 problems in the data"),
        ("resumed", "holds no run to go on with"),
        ("weights", "say --model.no-pretrained for a random start"),
    ],
)
def test_what_training_would_refuse_is_refused_once_before_anything_is_measured(
    fault: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object, **_more: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "tried_links", measured)
    root = small.make_folder(tmp_path / "images")
    more = ["--resume"] if fault == "resumed" else []
    if fault == "nowhere":
        root = tmp_path / "nowhere"
    elif fault == "lone":
        (root / "boxes.csv").unlink()
        for label in range(1, small.CLASSES):
            for part in ("train", "test"):
                (root / f"{part}/class_{label}").rename(root / f"{part}/class_0/{label}")
    elif fault == "bad":
        for path in sorted(root.glob("train/class_1/*.png"))[:2]:
            path.write_bytes(b"no image")
    elif fault == "weights":
        more = ["--model.pretrained", "--model.weights-dir", str(tmp_path / "nothing"), "--model.classifier", "vgg16"]
    flags = [word for name, value in small.flags(root).items()
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    assert main(["train", *flags, *more, "--output", str(tmp_path / "run")]) == 2
    out, logged = capsys.readouterr()
    assert (out + logged).count(said) == 1
    assert not (tmp_path / "run").exists()


def test_a_forecast_tries_few_candidates_and_counts_all() -> None:
    first = override(preset("folder_cpu"), {}).initialization
    choice = Choice(first, "bap")
    assert len(choice.configs) == 56
    training = SimpleNamespace(modules={"choice": choice}, size=32)
    scale = _cut(training, Counts(10_000, 0, 100, 32))  # pyright: ignore[reportArgumentType]
    assert len(choice.configs) == 4
    assert scale * 32 * 4 == pytest.approx((64 * 56 + 128 * 24 + 192 * 8) / 3)


def test_of_a_slow_network_fewer_images_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small.config(small.make_folder(tmp_path / "images"))
    for seconds, images in ((0.01, 8), (0.06, 5), (3.0, 4)):
        monkeypatch.setattr(module, "_seconds_of_one", lambda *_, s=seconds: s)
        assert forecast(config, "classifier").images == images


def test_a_forecast_that_fails_keeps_no_training_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **_more: object) -> Forecast:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(module, "forecast", full)
    root = small.make_folder(tmp_path / "images")
    flags = [word for name, value in small.flags(root, first=1, second=1).items()
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    assert main(["train", *flags, "--output", str(tmp_path / "run")]) == 0
    assert "no forecast: [Errno 28] No space left on device: '/tmp/x'" in capsys.readouterr().out
    assert main(["train", *flags, "--output", str(tmp_path / "run"), "--dry-run"]) == 2


def test_what_a_forecast_tries_leaves_nothing_behind(tmp_path: Path) -> None:
    root = small.make_folder(tmp_path / "images")
    (tmp_path / "cache").mkdir()
    found = forecast(override(small.config(root), {"data.cache": str(tmp_path / "cache")}))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    assert found.seconds > 0


def test_the_cache_is_as_large_as_it_will_be(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder := tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(np.full((40, 50, 3), i, np.uint8)).save(folder / f"{i}.png")
    config = override(
        preset("parts"), {"data.name": "folder", "data.root": str(tmp_path), "data.resize": 32, "data.image_size": 32}
    )
    assert module.cache_size(module.load(config.data), config) == 12 * 32 * 32 * 3
    assert module.cache_size(module.load(config.data), override(config, {"data.cache": "off"})) == 0


def test_what_is_chosen_is_tried_too_and_counted_by_the_images_that_it_looks_at() -> None:
    """Also where the choice comes after more epochs than are tried."""
    values = {"initialization.delta": "auto", "initialization.mask_delta": 0.5, "initialization.auto_after": 4}
    config = override(preset("parts"), values | {"data.batch_size": 8, "threads": 1})
    found = {link.kind: link for link in forecast(config).links}
    assert found["choice"].steps == 3000 // 8 // 8
    assert found["localizer"].steps == 3000 // 8
    assert found["choice"].seconds < found["classifier"].seconds


def test_an_image_that_cannot_be_read_is_left_to_training(tmp_path: Path) -> None:
    root = small.make_folder(tmp_path / "images")
    next(path for path in root.rglob("*") if path.suffix in (".png", ".jpg")).write_bytes(b"no image")
    assert forecast(small.config(root)).cache > 0


def test_stage_2_alone_counts_stage_2_alone() -> None:
    config = override(preset("parts"), {"data.batch_size": 4, "threads": 1})
    assert [link.kind for link in forecast(config, without=("classifier", "localizer")).links] == ["refinement"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--preset", "folder"], "no GPU is used, and this takes more than an hour: --preset folder_cpu"),
        (["--preset", "folder_cpu"], "lower --data.image-size, or name mobilenet_v2"),
        (["--preset", "tiny_imagenet"], "lower --data.image-size, or name mobilenet_v2"),
    ],
)
def test_where_a_cpu_takes_hours_another_recipe_is_named(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    days = Forecast((LinkForecast("classifier", "initialization", 40, 100, 5000.0, 0.0),), {"process": 1e3}, 4, 0)
    monkeypatch.setattr(module, "forecast", lambda *_args, **_more: days)
    two = SimpleNamespace(train=SimpleNamespace(labels=[0, 1]))
    monkeypatch.setattr("lchp.data.load", lambda _config: two)
    assert main(["train", *flags, "--device", "cpu", "--dry-run"]) == 0
    assert said in capsys.readouterr().out
    hour = Forecast((LinkForecast("classifier", "initialization", 1, 100, 3000.0, 0.0),), {"process": 1e3}, 4, 0)
    monkeypatch.setattr(module, "forecast", lambda *_args, **_more: hour)
    assert main(["train", *flags, "--device", "cpu", "--dry-run"]) == 0
    assert "no GPU" not in capsys.readouterr().out
    assert command.ON_A_CPU.keys() == {"folder", "cub"}


def test_the_peak_of_what_was_tried_is_not_the_run_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reset: list[object] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(module, "resolve_device", lambda _: torch.device("cuda:0"))
    with pytest.raises(DataError):
        forecast(small.config(tmp_path / "nowhere"))
    assert reset == [torch.device("cuda:0")]


def test_what_grows_with_the_epochs_and_images_is_reckoned() -> None:
    """Tables of views, and the teachers that a choice may take."""
    config = override(preset("parts"), {"initialization.epochs": 20, "initialization.delta": "auto",
                                        "initialization.mask_delta": 0.5, "initialization.auto_after": 4})  # fmt: skip
    short = override(config, {"initialization.epochs": 2, "initialization.auto_after": 1})
    few, full = chain_of(short, "").links[0], chain_of(config, "").links[0]
    network = torch.nn.Linear(3, 4)
    modules = {"teachers": Snapshots(network, 2), "boxes": ViewTable(2, 10, 4), "whole": ViewTable(1, 10, 4)}
    tables, teachers = _to_come(modules, few, full, Counts(1000, 0, 100, 32))
    assert teachers == (8 - 2) * (3 * 4 + 4) * 4
    assert tables == ((20 * 1000 - 20) + (1000 - 10)) * 4 * 4


def test_filling_the_image_cache_is_counted(tmp_path: Path) -> None:
    config = small.config(small.make_folder(tmp_path / "images"))
    assert forecast(config).filling > 0
    assert forecast(override(config, {"data.cache": "off"})).filling == 0
