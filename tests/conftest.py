"""Fixtures: the real image samples, and a run of seconds.

Where samples are missing, what needs them is skipped, saying so; with $LCHP_REQUIRE_DATA set it fails instead.
"""

import contextlib
import functools
import os
import shlex
import sys
import tempfile

# one thread here and in every process that a test starts: sums in another order are other digits. Before torch is read
os.environ["OMP_NUM_THREADS"] = "1"

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import forked
import numpy as np
import pytest
from buckets import machine, one_url, s3_server, url  # noqa: F401  # fixtures
from PIL import Image

from lchp import TrainConfig, override, preset

LONG = [
    *("test_harness_ray", "test_sweep_programs", "test_faults", "test_export", "test_nodes"),
    *("test_run", "test_backbones", "test_sharing"),
    *("test_own_classifier", "test_search", "test_figures", "test_disk", "test_fake_cuda"),
]
"""The files that take longest, in the order in which they are begun. Three of the first five start Ray and wait half of
their time, so others run beside them; they do not all begin at once, since many Rays that start together are slow."""


def pytest_configure(config: pytest.Config) -> None:
    """All tests run on the CPU, whose figures they know, but those that are asked for by `-m gpu`."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """The processes of pytest-xdist are forked from one that has imported what they import, but for those that use a
    GPU. This one imports little, since they wait for it."""
    if config.option.markexpr == "gpu":
        return
    stack = contextlib.ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    stack.enter_context(forked.server(forked.__file__, folder))
    config.add_cleanup(stack.close)
    for spec in specs:
        spec.python = shlex.join([sys.executable, forked.__file__])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which pytest-xdist hands out files: whole, since the tests of one share what they train."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Networks that a test builds without a seed begin alike every time, whatever ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def quick_starts() -> Iterator[None]:
    """For tests that ask nothing of the first weights: large tensors begin with a stretch of the same million random
    numbers, repeated, torchvision's normal distributions keep their tails, and VGG's classification layers, which no
    trunk has, are left as the memory was. Each takes up to seconds per network."""
    import torch

    def quick(name: str, scale: Callable[[float, float], float]) -> Callable[..., torch.Tensor]:
        draw: Callable[..., torch.Tensor] = getattr(torch.Tensor, name)
        pool = draw(torch.empty(2**20 + 7), generator=torch.Generator().manual_seed(0))

        def drawn(tensor: torch.Tensor, low: float = 0.0, high: float = 1.0, **more: Any) -> torch.Tensor:
            n, at = tensor.numel(), 0
            if n < 10**5 or tensor.device.type != "cpu" or not tensor.is_contiguous():
                return draw(tensor, low, high, **more)
            if tensor.dim() == 2 and n >= 10**7:
                return tensor
            flat, start = tensor.view(-1), int(torch.randint(len(pool), ()))
            while at < n:
                part = pool[start : start + n - at]
                flat[at : at + len(part)] = part
                at, start = at + len(part), 0
            return tensor.mul_(scale(low, high)).add_(low)

        return drawn

    def whole(weight: torch.Tensor, mean: float = 0.0, std: float = 1.0, **_: float) -> torch.Tensor:
        return torch.nn.init.normal_(weight, mean, std)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", quick("normal_", lambda _, std: std))
        patch.setattr(torch.Tensor, "uniform_", quick("uniform_", lambda low, high: high - low))
        patch.setattr(torch.nn.init, "trunc_normal_", whole)
        yield


@pytest.fixture(scope="module")
def coarse_thresholds() -> Iterator[None]:
    """For tests that ask nothing of the best threshold of score maps: at the thousand that a run tries, most of a tiny
    run's time is theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lchp.training.measure.MAP_INTERVAL", 0.05)
        yield


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of the tests' images does not go into the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session", autouse=True)
def coarse_figures() -> Iterator[int]:
    """A pixel of a figure's file is asked for by no test: at 300 of them an inch, most of a figure's time is theirs.
    Letters go into a PDF in the way that is quickly made. Gives the way that users have, for the test that asks."""
    from lchp.report.figures import style

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 60)
        users = style._RC["pdf.fonttype"]
        patch.setitem(style._RC, "pdf.fonttype", 3)
        yield users


@pytest.fixture(scope="session", autouse=True)
def options_read_once() -> Iterator[None]:
    """tyro reads the source of a command's classes for every command line, and where pytest runs many times over."""
    from tyro._docstrings import _ClassTokenization as Source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "make", staticmethod(functools.cache(Source.make)))
        yield


def _absent(message: str) -> NoReturn:
    if os.environ.get("LCHP_REQUIRE_DATA"):
        pytest.fail(f"{message}; LCHP_REQUIRE_DATA is set")
    pytest.skip(message)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the sample archives: $LCHP_TEST_DATA, or ../shared/data beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LCHP_TEST_DATA", beside))
    if not folder.is_dir():
        _absent(f"no sample images: {folder} is missing (LCHP_TEST_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def weights_dir(shared_data: Path) -> Path:
    folder = shared_data / "weights"
    if not folder.is_dir():
        _absent(f"no sample weights: {folder} is missing")
    return folder


@pytest.fixture(scope="session")
def cub50_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _unpack(shared_data / "cub50.tar", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny20_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _unpack(shared_data / "tiny20.tar", tmp_path_factory)


@pytest.fixture(scope="session")
def ilsvrc10_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _unpack(shared_data / "ilsvrc10.tar", tmp_path_factory)


def _unpack(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacks an archive with one top folder, and returns that folder."""
    if not archive.is_file():
        _absent(f"no sample images: {archive} is missing")
    target = tmp_path_factory.mktemp(archive.stem)
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    (top,) = target.iterdir()
    return top


@pytest.fixture(scope="session")
def squares_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 generated images of one coloured square each, 64 x 48 px, in three class folders, with boxes.csv."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    rows = ["image,x1,y1,x2,y2"]
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for i in range(8):
            pixels = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
            x, y = rng.integers(0, 30, 2).tolist()
            pixels[y : y + 16, x : x + 24, channel] = 230
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,{x},{y},{x + 24},{y + 16}")
    (root / "boxes.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def squares_config(squares_root: Path) -> TrainConfig:
    """A run of seconds: tiny networks at 32 px, one epoch each."""
    values = {
        "data.name": "folder",
        "data.root": str(squares_root),
        "data.cache": "off",
        "data.resize": 40,
        "data.image_size": 32,
        "data.batch_size": 8,
        "model.classifier": "tiny",
        "model.localizer": "tiny",
        "model.pretrained": False,
        "initialization.epochs": 1,
        "refinement.epochs": 1,
        "precision": "fp32",
        "device": "cpu",
    }
    return override(preset("cub"), values)


@pytest.fixture(scope="session")
def squares_run(squares_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder. Tests only read it."""
    from lchp.training.run import train

    run = tmp_path_factory.mktemp("runs") / "squares"
    train(squares_config, output=run)
    return run
